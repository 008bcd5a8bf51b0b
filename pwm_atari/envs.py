"""Atari games in ALE's own vector environment, which runs and preprocesses them in C++ threads.

The task ``Catch`` is a small game of our own, without an emulator (:mod:`pwm_atari.catch`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from pwm_atari.benchmark import CATCH
from pwm_atari.catch import CELLS, PIXELS, Catch
from pwm_core.config import Config
from pwm_core.envs import Episodes, Step, VectorEnv
from pwm_core.errors import UserError, closest


@dataclass(frozen=True)
class Protocol:
    """The rules of play. Scores under different protocols cannot be compared, so each has a name.

    Attributes:
        repeat_action_probability: probability that the emulator repeats the previous action.
        noop_max: largest number of random no-ops after a reset.
    """

    repeat_action_probability: float
    noop_max: int


PROTOCOLS = {
    "pamorl": Protocol(repeat_action_probability=0.25, noop_max=0),
    "standard": Protocol(repeat_action_probability=0.0, noop_max=30),
}
CATCH_PROTOCOL = "catch"
"""The name of the one protocol of Catch, which has no settings."""

WARMUP_ACTION = {"freeway": 1}
"""Games whose warm-up repeats one action (up), as in the published code. With random actions, the
chicken never crosses the road during the warm-up."""


def game_name(task: str) -> str:
    """The name of the ROM of a task such as ``ALE/Pong-v5``.

    Raises:
        UserError: there is no such game.
    """
    gymnasium.register_envs(ale_py)
    games = {
        name: str(spec.kwargs["game"])
        for name, spec in gymnasium.registry.items()
        if name.startswith("ALE/") and name.endswith("-v5")
    }
    if task not in games:
        hint = (
            closest(task, [CATCH, *games])
            or "; write it as ALE/Pong-v5 (control tasks are pwm_dmc's)"
        )
        raise UserError(f"unknown game {task!r}{hint}")
    return games[task]


def find_protocol(name: str) -> Protocol:
    """The protocol called ``name``.

    Raises:
        UserError: there is no protocol of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(
            f"BasicSettings.Protocol = {name!r} is not valid: it must be {' or '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


class AtariEnv(VectorEnv):
    """N environments of one game. An observation is the maximum over the last two skipped frames.

    A lost life sets ``done``, and ``is_first`` of the next step, while the game continues; returns
    are of whole games. A game that reaches ALE's limit of 108,000 frames ends without ``done``.

    Args:
        task: name such as ``ALE/Pong-v5``.
        num_envs: N.
        seed: seed of the run; every game derives its own seed from it.
        protocol: a key of :data:`PROTOCOLS`.
        image_size: height and width of an observation.
        frame_skip: emulator frames per step.
        channels: 3 for RGB, 1 for grayscale.

    Raises:
        UserError: unknown game or protocol.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        *,
        protocol: str = "pamorl",
        image_size: int = 64,
        frame_skip: int = 4,
        channels: int = 3,
    ) -> None:
        self.game, self.num_envs, self.frame_skip = game_name(task), num_envs, frame_skip
        self._env = AtariVectorEnv(
            self.game,
            num_envs,
            frameskip=frame_skip,
            grayscale=channels == 1,
            img_height=image_size,
            img_width=image_size,
            stack_num=1,
            reward_clipping=False,
            use_fire_reset=False,
            life_loss_info=True,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
            **asdict(find_protocol(protocol)),
        )
        self._image_shape = (image_size, image_size, channels)
        self.observation_space = gymnasium.spaces.Box(0, 255, self._image_shape, np.uint8)
        self.action_space = self._env.single_action_space
        self.episodes = Episodes(seed, num_envs)
        self._game_frames = np.zeros(num_envs, np.int64)

    def reset(self) -> np.ndarray:
        """Begin the next game everywhere: (N, height, width, channels) uint8."""
        self.episodes.begin()
        return self._restart(np.ones(self.num_envs, bool))

    def _restart(self, where: np.ndarray) -> np.ndarray:
        """Begin the games where the mask ``where`` (N,) is set; returns all N observations."""
        seeds = self.episodes.seeds[where]
        # ALE's first reset must be one of all games, so it takes no mask.
        options = None if where.all() else {"reset_mask": where}
        obs, info = self._env.reset(seed=seeds, options=options)
        self._game_frames[where] = info["episode_frame_number"][where]
        return self._images(obs)

    def send(self, actions: np.ndarray) -> None:
        """Start a step of the emulators with ``actions`` (N,) int64."""
        self.episodes.act(actions)
        self._env.send(actions)

    def recv(self) -> Step:
        """Wait for the emulators' step."""
        obs, reward, terminated, truncated, info = self._env.recv()
        frames = info["episode_frame_number"].astype(np.int64)
        ended = terminated | truncated
        # ALE reports a lost life as terminated too, but the game's frame count then continues.
        game_over = ended & (frames <= self._game_frames)
        self._game_frames = frames
        images, reward = self._images(obs), reward.astype(np.float32)
        finished = self.episodes.add(reward, game_over)
        if game_over.any():  # ALE has begun the next game already, but from another seed
            images = self._restart(game_over)
        return Step(images, reward, terminated, ended, finished)

    def _play_again(self) -> np.ndarray:
        """See ``VectorEnv``. All emulators step together, so the longest game begins first."""
        actions = self.episodes.actions
        lengths = np.array([len(taken) for taken in actions])
        images = self._restart(np.ones(self.num_envs, bool))
        for left in range(lengths.max(), 0, -1):
            if (lengths == left).any():
                self._restart(lengths == left)
            now = [taken[-left] if len(taken) >= left else 0 for taken in actions]
            obs, *_, info = self._env.step(np.array(now, np.int64))
            images = self._images(obs)
            self._game_frames = info["episode_frame_number"].astype(np.int64)
        if (lengths == 0).any():
            images = self._restart(lengths == 0)
        return images

    def _images(self, obs: np.ndarray) -> np.ndarray:
        """(N, 1, height, width[, 3]) -> (N, height, width, channels)."""
        return obs.reshape(self.num_envs, *self._image_shape)

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform actions, except for the games of :data:`WARMUP_ACTION`."""
        if self.game in WARMUP_ACTION:
            return np.full(self.num_envs, WARMUP_ACTION[self.game], np.int64)
        return super().random_actions(rng)

    def close(self) -> None:
        """Close the environments. The emulators' threads end when this object is dropped."""
        self._env.close()


def check_task(config: Config, task: str) -> None:
    """Check that Atari supports the task and the config.

    Raises:
        UserError: the game or the protocol is unknown, observations are not pixels, or the frame
            skip is not a number.
    """
    if task == CATCH:
        _check_catch(config)
        return
    game_name(task)
    find_protocol(config.BasicSettings.Protocol)
    if config.BasicSettings.ObsType != "visual":
        raise UserError("BasicSettings.ObsType must be visual: Atari games are seen as pixels")
    if config.BasicSettings.FrameSkip == "task":
        raise UserError(
            "BasicSettings.FrameSkip = task is for DeepMind Control alone: write a number, such as "
            "4"
        )


def _check_catch(config: Config) -> None:
    """Check the settings of which Catch has one value.

    Raises:
        UserError: names the setting.
    """
    side = CELLS * PIXELS
    needed = {
        "Protocol": CATCH_PROTOCOL, "ObsType": "visual", "FrameSkip": 1, "ObsShape": (side, side, 3)
    }  # fmt: skip
    for key, value in needed.items():
        found = getattr(config.BasicSettings, key)
        if found != value:
            raise UserError(
                f"BasicSettings.{key} = {found!r} is not valid: Catch needs {value}; use "
                "-config_path config_files/atari_catch.yaml"
            )


def describe_protocol(config: Config) -> dict[str, Any]:
    """The protocol's name and settings, for the score files."""
    name = config.BasicSettings.Protocol
    return {"name": name} | ({} if name == CATCH_PROTOCOL else asdict(find_protocol(name)))


def make_env(config: Config, task: str, num_envs: int, seed: int) -> VectorEnv:
    """``num_envs`` environments of ``task`` with the settings of ``config``."""
    if task == CATCH:
        return Catch(num_envs, seed)
    basic = config.BasicSettings
    return AtariEnv(
        task,
        num_envs,
        seed,
        protocol=basic.Protocol,
        image_size=basic.ObsShape[0],
        channels=basic.ObsShape[2],
        frame_skip=basic.FrameSkip,
    )
