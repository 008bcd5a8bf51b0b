"""The Atari environments on the real emulator, with ``ale_py.ALEInterface`` as the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import cv2
import gymnasium
import numpy as np
import pytest
from ale_py import Action, ALEInterface, LoggerMode, roms
from ale_py.vector_env import AtariVectorEnv

from pwm_atari.envs import PROTOCOLS, AtariEnv, check_task, describe_protocol
from pwm_core.config_file import load_config
from pwm_core.envs import Finished, env_seeds, episode_seed
from pwm_core.errors import UserError

ATARI_100K = {  # game -> size of its minimal action set
    "Alien": 18, "Amidar": 10, "Assault": 7, "Asterix": 9, "BankHeist": 18, "BattleZone": 18,
    "Boxing": 18, "Breakout": 4, "ChopperCommand": 18, "CrazyClimber": 9, "DemonAttack": 6,
    "Freeway": 3, "Frostbite": 18, "Gopher": 8, "Hero": 18, "Jamesbond": 18, "Kangaroo": 18,
    "Krull": 18, "KungFuMaster": 14, "MsPacman": 9, "Pong": 6, "PrivateEye": 18, "Qbert": 6,
    "RoadRunner": 18, "Seaquest": 18, "UpNDown": 6,
}  # fmt: skip
STICKY = {"pamorl": 0.25, "standard": 0.0}
"""Repeat-action probability of each protocol as published; it is not read from the code."""


class Seen(NamedTuple):
    """The results of one environment at one step."""

    obs: np.ndarray
    reward: float
    done: bool
    is_first: bool
    over: bool


class Emulator:
    """A single game, stepped frame by frame.

    The frame skip is 4. An observation is the maximum of the last two frames, shrunk by OpenCV's
    area interpolation. A lost life is ``done``, but only the end of a game begins a new one.
    """

    def __init__(self, rom: str, seed: int, sticky: float, noops: int = 0) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", sticky)
        self.rom, self.seed, self.game = roms.get_rom_path(rom), seed, -1
        self.begin(noops)
        self.actions = self.ale.getMinimalActionSet()

    def begin(self, noops: int = 0) -> None:
        """Begin the next game from the seed of its number."""
        self.game += 1
        self.ale.setInt("random_seed", episode_seed(self.seed, self.game))
        self.ale.loadROM(self.rom)
        self.ale.reset_game()
        for _ in range(noops):
            self.ale.act(Action.NOOP)
        self.lives = self.ale.lives()

    def obs(self, *frames: np.ndarray) -> np.ndarray:
        frame = np.maximum.reduce(frames) if frames else self.ale.getScreenRGB()
        return cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)

    def step(self, action: int) -> Seen:
        reward, frames = 0, []
        while len(frames) < 4 and not self.ale.game_over():
            reward += self.ale.act(self.actions[action])
            frames.append(self.ale.getScreenRGB())
        obs, over, lost = self.obs(*frames[-2:]), self.ale.game_over(), self.lives
        self.lives = self.ale.lives()
        if over:
            self.begin()
            obs = self.obs()
        done = over or self.lives < lost
        return Seen(obs, reward, done, done, over)


def play(
    env: AtariEnv, steps: int, seed: int = 0, *, reset: bool = True
) -> Iterator[tuple[int, list[Seen], list[Finished]]]:
    """Take the same random action in every environment, ``steps`` times."""
    rng = np.random.default_rng(seed)
    if reset:
        env.reset()
    for _ in range(steps):
        action = int(rng.integers(env.action_space.n))
        step = env.step(np.full(env.num_envs, action))
        over = {finished.env for finished in step.finished}
        fields = zip(step.obs, step.reward, step.done, step.is_first, strict=True)
        yield action, [Seen(*f, i in over) for i, f in enumerate(fields)], step.finished


def record(env: AtariEnv, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (T, N, 64, 64, 3) and rewards (T, N) of :func:`play`, including the reset."""
    obs, rewards = [env.reset()], [np.zeros(env.num_envs)]
    for _, seen, _ in play(env, steps, reset=False):
        obs.append(np.stack([s.obs for s in seen]))
        rewards.append(np.array([s.reward for s in seen]))
    return np.stack(obs), np.stack(rewards)


@pytest.mark.parametrize(("game", "actions"), ATARI_100K.items())
def test_every_game_constructs_and_steps(game: str, actions: int) -> None:
    with closing(AtariEnv(f"ALE/{game}-v5", 2, seed=1)) as env:
        assert env.action_space.n == actions
        assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        obs = env.reset()
        for action in range(actions):
            step = env.step(np.full(2, action))
            assert (step.reward.dtype, step.reward.shape) == (np.float32, (2,))
            assert (step.done.dtype, step.is_first.dtype) == (np.bool_, np.bool_)
        for image in (obs, step.obs):
            assert (image.dtype, image.shape) == (np.uint8, (2, 64, 64, 3))
        assert np.ptp(step.obs) > 50, "a blank screen"
        assert np.ptp(step.obs, axis=-1).max() > 0, "RGB, not grey"


def test_there_are_26_games() -> None:
    assert len(ATARI_100K) == 26


def find_start(rom: str, seed: int, sticky: float, first: np.ndarray, noops: int) -> list[Emulator]:
    """Emulators that show ``first`` after at most ``noops`` no-ops.

    There are several if nothing moves during these no-ops.
    """
    search, counts = Emulator(rom, seed, sticky), []
    for count in range(noops + 1):
        if np.abs(search.obs().astype(int) - first).max() <= 1:
            counts.append(count)
        search.ale.act(Action.NOOP)
    return [Emulator(rom, seed, sticky, count) for count in counts]


@pytest.mark.parametrize(
    ("protocol", "noops", "task", "steps", "games"),
    [
        ("pamorl", 0, "ALE/Breakout-v5", 500, 2),
        ("pamorl", 0, "ALE/MsPacman-v5", 150, 0),  # its rewards are tens: they are not clipped
        ("standard", 30, "ALE/Seaquest-v5", 150, 0),
    ],
)
def test_steps_repeat_frame_by_frame_on_a_bare_emulator(
    protocol: str, noops: int, task: str, steps: int, games: int
) -> None:
    """The environments agree with an emulator that is stepped by hand, to within one grey level.

    The comparison covers frame skip, max-pooling, interpolation, sticky actions, no-ops, lost
    lives, resets and rewards.
    """
    with closing(AtariEnv(task, 2, seed=3, protocol=protocol)) as env:
        first, seed = env.reset()[1], int(env_seeds(3, 2)[1])
        fitting = find_start(env.game, seed, STICKY[protocol], first, noops)
        for action, seen, _ in play(env, steps, reset=False):
            expected = [emulator.step(action) for emulator in fitting]
            fitting = [
                emulator
                for emulator, e in zip(fitting, expected, strict=True)
                if e[1:] == seen[1][1:] and np.abs(e.obs.astype(int) - seen[1].obs).max() <= 1
            ]
            assert fitting, "the bare emulator shows something else"
            games -= seen[1].over
    assert games <= 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_seeds(protocol: str) -> None:
    """The same seed of a run repeats exactly, and another seed differs.

    The environments of one run differ from each other, and so do the games after another reset.
    """
    recorded = []
    for seed in (1, 1, 2):
        with closing(AtariEnv("ALE/Seaquest-v5", 2, seed, protocol=protocol)) as env:
            recorded.append(record(env, 60))
            if seed == 2:
                recorded.append(record(env, 60))
    first, again, other, later = recorded
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert (first[0] != other[0]).any()
    assert (later[0] != other[0]).any()
    assert (first[0][:, 0] != first[0][:, 1]).any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_reach_the_emulator(protocol: str) -> None:
    """What makes games differ under the same actions depends on the protocol.

    With ``pamorl`` all games start alike, and sticky actions make them differ. With ``standard``
    no-ops make the starts differ, and games with the same number of no-ops stay equal.
    """
    with closing(AtariEnv("ALE/Seaquest-v5", 16, seed=6, protocol=protocol)) as env:
        obs, _ = record(env, 60)
    starts = {obs[0, i].tobytes() for i in range(16)}
    courses = {obs[:, i].tobytes() for i in range(16)}
    if protocol == "pamorl":
        assert (len(starts), len(courses)) == (1, 16)
    else:
        assert 4 <= len(starts) <= len(courses) < 16


def test_protocol_is_described_for_score_files() -> None:
    for name, noops in (("pamorl", 0), ("standard", 30)):
        override = f"BasicSettings.Protocol={name}"
        config = load_config("config_files/atari.yaml", overrides=[override])
        assert describe_protocol(config) == {
            "name": name, "repeat_action_probability": STICKY[name],
            "noop_max": noops,
        }  # fmt: skip


def test_lost_life_is_done_but_the_return_counts_the_whole_game() -> None:
    lost_lives, games, running, length = 0, 0, 0.0, 0
    with closing(AtariEnv("ALE/Breakout-v5", 1, seed=4)) as env:
        emulator = Emulator("breakout", int(env_seeds(4, 1)[0]), STICKY["pamorl"])
        for action, (seen,), finished in play(env, 800):
            expected = emulator.step(action)
            running, length = running + expected.reward, length + 1
            assert (seen.reward, seen.done, seen.is_first) == expected[1:4]
            assert len(finished) == expected.over
            lost_lives += expected.done and not expected.over
            if expected.over:
                assert finished == [Finished(0, running, length)]
                games, running, length = games + 1, 0.0, 0
    assert games >= 2
    assert lost_lives >= 4 * games


def test_last_reward_is_in_the_return() -> None:
    """A game of Pong ends at 21 points for one side, and the last point is in the return."""
    sums, games = np.zeros(3), [0, 0, 0]
    with closing(AtariEnv("ALE/Pong-v5", 3, seed=2)) as env:
        for _, seen, finished in play(env, 2100):
            sums += [s.reward for s in seen]
            for env_id, value, _ in finished:
                assert value == sums[env_id]
                assert -21 <= value <= -10, "a random player loses by 21 points to few"
                assert seen[env_id].reward == -1, "the last reward is the point that ends the game"
                assert seen[env_id].done
                sums[env_id] = 0
                games[env_id] += 1
    assert min(games) >= 2


def test_frame_limit_truncates_without_done() -> None:
    """Episodes that are cut off by ALE's limit are not ``done``, and none repeats another.

    The emulator has a limit of 400 frames in place of 108,000, and every episode has the same
    actions.
    """
    with closing(AtariEnv("ALE/Pong-v5", 2, seed=0)) as env:
        start = env.reset().copy()
        env._env.close()
        env._env = AtariVectorEnv(
            "pong", 2, max_num_frames_per_episode=400, grayscale=False, img_height=64, img_width=64,
            stack_num=1, reward_clipping=False, use_fire_reset=False, noop_max=0,
            repeat_action_probability=0.25, life_loss_info=True,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )  # fmt: skip
        env.reset()
        courses = set()
        for _ in range(3):
            sums, course = np.zeros(2), [b"", b""]
            for index, (_, seen, finished) in enumerate(play(env, 100, reset=False)):
                sums += [s.reward for s in seen]
                course = [c + s.obs.tobytes() for c, s in zip(course, seen, strict=True)]
                cut = index == 99
                assert not any(s.done for s in seen)
                assert [s.is_first for s in seen] == [cut, cut]
                assert finished == ([Finished(i, sums[i], 100) for i in range(2)] if cut else [])
            np.testing.assert_array_equal(np.stack([s.obs for s in seen]), start)
            courses.update(course)
        assert len(courses) == 6


@pytest.mark.parametrize("protocol", ["pamorl", "standard"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_saved_game_goes_on_bit_for_bit(protocol: str, num_envs: int) -> None:
    """The state is restored in about the third game, at another step in each environment."""
    rng = np.random.default_rng(1)
    with closing(AtariEnv("ALE/Breakout-v5", num_envs, seed=6, protocol=protocol)) as env:
        env.reset()
        for _ in range(500):
            seen = env.step(env.random_actions(rng)).obs
        state = env.state_dict()
        assert (state["episodes"]["numbers"] >= 1).all()
        actions = [env.random_actions(rng) for _ in range(400)]
        expected = [env.step(action) for action in actions]
    assert sum(len(step.finished) for step in expected) >= num_envs
    with closing(AtariEnv("ALE/Breakout-v5", num_envs, seed=6, protocol=protocol)) as env:
        assert (env.load_state_dict(state) == seen).all()
        for action, before in zip(actions, expected, strict=True):
            after = env.step(action)
            assert (after.obs == before.obs).all()
            assert (after.reward == before.reward).all()
            assert (after.is_first == before.is_first).all()
            assert after.finished == before.finished


def test_games_of_several_environments_equal_those_of_one() -> None:
    """The end of a game in one environment does not change the other environments."""
    with closing(AtariEnv("ALE/Breakout-v5", 2, seed=6)) as both:
        together = [s for _, s, _ in play(both, 700)]
        alone = AtariEnv("ALE/Breakout-v5", 1, seed=0)
        alone.episodes._env_seeds = both.episodes._env_seeds[1:]
        with closing(alone):
            for (_, (seen,), _), pair in zip(play(alone, 700), together, strict=True):
                assert seen[1:] == pair[1][1:]
                assert (seen.obs == pair[1].obs).all()


def test_observations_are_not_overwritten_by_the_next_step() -> None:
    with closing(AtariEnv("ALE/Pong-v5", 1, seed=0)) as env:
        kept = [env.reset()] + [env.step(np.array([2])).obs for _ in range(20)]
        copies = [obs.copy() for obs in kept]
        for _ in range(20):
            env.step(np.array([3]))
        assert all((a == b).all() for a, b in zip(kept, copies, strict=True))
        assert (kept[0] != kept[-1]).any()


def test_warm_up_of_freeway_presses_up_and_scores() -> None:
    rng = np.random.default_rng(0)
    with closing(AtariEnv("ALE/Freeway-v5", 2, seed=0)) as env:
        meanings = Emulator("freeway", 0, 0.0).actions
        env.reset()
        crossed = np.zeros(2)
        for _ in range(300):
            actions = env.random_actions(rng)
            assert [meanings[a] for a in actions] == [Action.UP, Action.UP]
            crossed += env.step(actions).reward
        assert (crossed > 0).all()
    with closing(AtariEnv("ALE/Boxing-v5", 4, seed=0)) as env:
        drawn = np.concatenate([env.random_actions(rng) for _ in range(100)])
        assert set(drawn.tolist()) == set(range(18))


@pytest.mark.parametrize(
    ("task", "near"),
    [
        ("ALE/Pnog-v5", "ALE/Pong-v5"),
        ("Pong", "ALE/Pong-v5"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("ALE/Pong", "ALE/Pong-v5"),
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("ALE/Breakuot-v5", "ALE/Breakout-v5"),
        ("ALE/MsPackman-v5", "ALE/MsPacman-v5"),
        ("ALE/Up_Down-v5", "ALE/UpNDown-v5"),
        ("catch", "'Catch'"),
        ("", "ALE/Pong-v5"),
        ("walker_walk", "ALE/Pong-v5"),
    ],
)
def test_unknown_game_names_near_ones(task: str, near: str) -> None:
    config = load_config("config_files/atari.yaml")
    for refused in (lambda: AtariEnv(task, 1, 0), lambda: check_task(config, task)):
        with pytest.raises(UserError) as caught:
            refused()
        message = str(caught.value)
        assert repr(task) in message
        assert near in message
        assert "\n" not in message


def test_unknown_protocol_names_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"Protocol.*'sticky'.*pamorl or standard"):
        AtariEnv("ALE/Pong-v5", 1, 0, protocol="sticky")


def test_a_frame_skip_by_task_is_refused() -> None:
    config = load_config("config_files/atari.yaml", overrides=["BasicSettings.FrameSkip=task"])
    with pytest.raises(UserError, match="write a number, such as 4"):
        check_task(config, "ALE/Pong-v5")
