"""Videos: their frames before they are written and after they are decoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pwm_atari.catch import Catch
from pwm_atari.envs import AtariEnv
from pwm_core.commands import cli
from pwm_core.config_file import load_config
from pwm_core.envs import VectorEnv, env_seeds
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir
from pwm_core.runs.mp4 import VideoWriter, enlarged, read_video
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Tracker
from pwm_core.training.episode_videos import SIZE, Episode, film
from pwm_core.training.evaluation import play
from pwm_core.training.model_videos import GIVEN, PREDICTED, log_videos, open_loop
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.trainer import Trainer
from pwm_dmc.envs import DMCEnv
from pwm_dmc.rendering import try_renderer
from tests.helpers import Data, load_small, make_agent, make_world_model
from tests.helpers_envs import CONFIG, DEFAULTS, TINY, counting_domain
from tests.helpers_runs import evaluate_run, train_on

KINDS = ("Observation", "Reconstruction", "Imagination", "Comparison", "OpenLoop")


pytestmark = pytest.mark.usefixtures("logdir")


def check_alike(
    found: np.ndarray, expected: np.ndarray, mean: float = 4.0, *, moves: bool = True
) -> None:
    """Check that two videos are equal except for the loss of H.264.

    With ``moves``, some neighbouring frames must differ by more than that loss, so that the order
    is tested too.
    """
    assert found.shape == expected.shape
    error = np.abs(found.astype(float) - expected).mean(axis=(1, 2, 3))
    assert error.max() < mean
    steps = np.abs(np.diff(expected.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert not moves or steps.max() > mean, "another order would be as alike"


# ----------------------------------------------------------------------------- what training shows


@pytest.mark.parametrize("discrete", [True, False])
def test_open_loop_predicts_with_the_real_actions(discrete: bool) -> None:
    """With a certain prior, a prediction is the prior's mode after a parallel pass."""
    config = load_small("Models.WorldModel.Unimix=0")
    model = make_world_model(config, discrete=discrete).eval()
    with torch.no_grad():
        model.prior[-1].weight *= 1e4
    rows = Data(rows=3, steps=9, firsts=((1, 0), (2, 6)), discrete=discrete).batch(config)
    latent = torch.randint(0, model.classes, (3, 9, model.stoch))
    with torch.no_grad():
        taken, given = open_loop(model, latent, rows, context=4)
        deter, _ = model.sequence(taken, model.policy.encode(rows.action), rows.is_first)
        prior = model.predict_latent(deter.flatten(0, 1)).argmax(-1).view(3, 9, -1)
    expected = torch.zeros(3, 9, dtype=torch.bool)
    expected[:, :4] = True
    expected[2, 6] = True  # nothing before it tells what a new episode looks like
    assert torch.equal(given, expected)
    assert torch.equal(taken[given], latent[given])
    predicted = ~given[:, 1:]
    assert torch.equal(taken[:, 1:][predicted], prior[:, :-1][predicted])
    other = rows._replace(action=rows.action.flip(1))
    with torch.no_grad():
        assert not torch.equal(open_loop(model, latent, other, context=4)[0], taken)


@pytest.mark.parametrize(("steps", "horizon"), [(16, 5), (8, 10)])
def test_what_the_videos_hold(steps: int, horizon: int) -> None:
    """All videos have their full size, also if a sequence is shorter than the horizon."""
    config = load_small(
        f"JointTrainAgent.ImagineHorizon={horizon}", "JointTrainAgent.ImagineContext=1"
    )
    agent, batch = make_agent(config), Data(rows=5, steps=steps, firsts=((0, 2),)).batch(config)
    videos = log_videos(agent, batch)
    assert list(videos) == [f"Video/{kind}" for kind in KINDS]
    seen, rebuilt, _, compared, predicted = videos.values()
    starts = min(horizon + 1, steps - 1)
    assert [len(frames) for frames in videos.values()] == [
        steps, steps, horizon + 1, starts, steps,
    ]  # fmt: skip
    assert seen.shape[1:] == (16, 4 * 16, 3)
    assert compared.shape[1:] == predicted.shape[1:] == (3 * 16, 4 * 16, 3)

    tiles = batch.obs[:4].permute(1, 2, 0, 3, 4).reshape(steps, 16, 64, 3).numpy()
    assert np.array_equal(seen, tiles)
    assert np.array_equal(compared[:, :16], seen[-starts:])
    assert np.array_equal(compared[:, 16:32], rebuilt[-starts:])
    truth, prediction, error = predicted[:, :16], predicted[:, 16:32], predicted[:, 32:]
    assert np.array_equal(truth, seen)
    assert np.array_equal(error[:, 1:], abs(truth[:, 1:].astype(int) - prediction[:, 1:]))
    line = prediction[:, 0].reshape(steps, 4, 16, 3)
    context = steps // 4
    for step in range(steps):
        for row in range(4):
            given = step < context or (row, step) == (0, 2)
            assert (line[step, row] == (GIVEN if given else PREDICTED)).all()


def test_where_imagination_begins() -> None:
    """With a certain posterior, imagination starts at the reconstruction of its first step."""
    config = load_small("Models.WorldModel.Unimix=0", "JointTrainAgent.ImagineHorizon=5")
    agent, batch = make_agent(config), Data(rows=3, steps=12).batch(config)
    with torch.no_grad():
        agent.world_model.posterior[-1].weight *= 1e4
    videos = log_videos(agent, batch)
    rebuilt, compared = videos["Video/Reconstruction"], videos["Video/Comparison"]
    assert np.array_equal(compared[0, 32:], rebuilt[-6])
    assert np.array_equal(videos["Video/Imagination"][0], rebuilt[-1])
    assert not np.array_equal(rebuilt[-6], rebuilt[-1])


def test_the_prediction_of_a_certain_model_is_its_reconstruction_where_given() -> None:
    """In the context, the open-loop prediction shows the reconstruction."""
    config = load_small()
    agent, batch = make_agent(config), Data(rows=2, steps=12).batch(config)
    videos = log_videos(agent, batch)
    prediction = videos["Video/OpenLoop"][:, 16:32]
    assert np.array_equal(prediction[:3, 1:], videos["Video/Reconstruction"][:3, 1:])
    assert not np.array_equal(prediction[3:, 1:], videos["Video/Reconstruction"][3:, 1:])


class Keep:
    """A tracker's sink that keeps all values."""

    def __init__(self) -> None:
        self.videos: dict[Path, np.ndarray] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def video(self, step: int, name: str, frames: np.ndarray, path: Path) -> None:
        self.videos[path] = frames

    def close(self) -> None:
        pass


def test_training_writes_what_the_trackers_get() -> None:
    """Every video file of a real run is decoded and compared with its frames."""
    short = "JointTrainAgent={SampleMaxSteps: 30, VideoLogStep: 15, TrainAgentEverySteps: 6}"
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=[*TINY, short])
    domain, _ = counting_domain((7,))
    env = domain.make_env(config, "count", 1, 0)
    render = env._render
    env._render = lambda: 40 * render()  # a step is then more than what H.264 loses
    agent = cli.make_agent(domain, config, env, "cpu")
    folder, keep = RunFolder("run"), Keep()
    folder.begin(config, {})
    replay = ReplayBuffer(domain.transition(config, env), 1, 60, torch.device("cpu"))
    tracker = Tracker(JsonLines(folder.metrics), folder.videos, [keep])
    rng = np.random.default_rng(0)
    Trainer(config, "count", env, agent, replay, tracker, folder, rng).run()
    tracker.close()
    names = {f"{kind.lower()}_{step:09d}.mp4" for kind in KINDS for step in (30,)}
    assert {path.name for path in folder.videos.iterdir()} == names
    assert {path.name for path in keep.videos} == names
    for path, frames in keep.videos.items():
        moves = path.name.startswith("observation")
        # Tiles of 8 pixels lose more than pictures.
        check_alike(read_video(path)[0], frames, mean=12, moves=moves)


# ---------------------------------------------------------------------------------- video files


def test_video_plays_in_a_browser(tmp_path: Path) -> None:
    """The file is an mp4 with H.264, 4:2:0 and the given frame rate."""
    path = tmp_path / "video.mp4"
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = [np.stack([np.roll(np.tile(ramp, (64, 1)), 4 * i, 1)] * 3, -1) for i in range(20)]
    with VideoWriter(path, fps=10, least=SIZE) as video:
        for frame in frames:
            video.write(frame)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 10
        assert "mp4" in container.format.name
    check_alike(read_video(path)[0], np.stack([enlarged(frame, SIZE) for frame in frames]))
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_a_video_that_fails_leaves_no_file(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "video.mp4").__enter__()
    video.write(np.zeros((64, 64, 3), np.uint8))
    error = KeyboardInterrupt()
    video.__exit__(KeyboardInterrupt, error, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64, 3), (256, 256, 3)),
        ((64, 64, 1), (256, 256, 3)),
        ((100, 65, 3), (400, 260, 3)),
        ((300, 257, 3), (300, 256, 3)),
    ],
)
def test_enlarged(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Pixels are enlarged by a whole factor, and both sides are even and large enough."""
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    large = enlarged(frame, SIZE)
    assert large.shape == expected
    factor = max(1, expected[0] // shape[0])
    assert np.array_equal(large[::factor, ::factor], np.broadcast_to(
        frame[: expected[0] // factor, : expected[1] // factor],
        (*large[::factor, ::factor].shape[:2], 3),
    ))  # fmt: skip


# ----------------------------------------------------------------------------- filmed evaluations


class Player:
    """Has the interface of an agent and acts at random."""

    def __init__(self, env: VectorEnv) -> None:
        self._env, self._rng = env, np.random.default_rng(0)

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, *_: Any, greedy: bool = False) -> np.ndarray:
        return self._env.random_actions(self._rng)


def played(env: VectorEnv, episodes: int) -> list[Episode]:
    try:
        return play(Player(env), env, episodes)
    finally:
        env.close()


def test_film_shows_each_step_of_the_episodes(tmp_path: Path) -> None:
    """Of three episodes in two environments, the third is the second one of environment 0."""
    episodes = played(Catch(2, seed=3), 3)
    assert [(e.env, e.number) for e in episodes] == [(0, 0), (0, 1), (1, 0)]
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    assert film(lambda count: Catch(count, seed=3), episodes, paths) == []
    for episode, path in zip(episodes, paths, strict=True):
        env = Catch(2, seed=3)
        obs = [env.reset()]
        for _ in range(episode.number):
            for _ in range(7):
                obs[0] = env.step(np.ones(2, int)).obs
        obs += [env.step(np.full(2, action)).obs for action in episode.actions[:-1]]
        expected = np.stack([enlarged(o[episode.env], SIZE) for o in obs])
        check_alike(read_video(path)[0], expected, mean=2)


def test_what_does_not_come_out_as_evaluated_is_said(tmp_path: Path) -> None:
    """With another seed the replay differs, and its video is removed."""
    episodes = played(Catch(1, seed=3), 3)
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    lines = film(lambda count: Catch(count, seed=4), episodes, paths)
    left = {path.name for path in tmp_path.iterdir()}
    assert lines
    assert left == {path.name for path in paths if not any(path.name in line for line in lines)}


def test_fewer_environments_keep_their_seeds() -> None:
    """The seeds of the first environments do not depend on the number of environments."""
    assert np.array_equal(env_seeds(5, 3), env_seeds(5, 20)[:3])


@pytest.mark.parametrize("protocol", ["pamorl", "standard"])
def test_film_of_a_game(protocol: str, tmp_path: Path) -> None:
    """The real emulator replays the same game at another size and in fewer environments."""
    game = {"protocol": protocol, "frame_skip": 64}
    episodes = played(AtariEnv("ALE/Pong-v5", 3, 1, **game), 3)
    path = tmp_path / "game.mp4"

    def make_env(count: int) -> AtariEnv:
        return AtariEnv("ALE/Pong-v5", count, 1, image_size=SIZE, **game)

    assert film(make_env, episodes[1:2], [path]) == []
    frames = read_video(path)[0]
    assert frames.shape == (len(episodes[1].actions), SIZE, SIZE, 3)
    court = np.median(frames.reshape(-1, 3), axis=0)
    assert np.abs(court - (144, 72, 17)).max() < 12  # Pong's court is brown


def test_film_of_what_was_evaluated_from_vectors(tmp_path: Path) -> None:
    if all(try_renderer(renderer) for renderer in ("egl", "osmesa")):
        pytest.skip("no renderer on this machine: neither EGL nor OSMesa")
    settings = {"frame_skip": 100, "workers": 1}
    episodes = played(DMCEnv("cup_catch", 2, 5, obs_type="proprio", **settings), 2)

    def make_env(count: int) -> DMCEnv:
        return DMCEnv("cup_catch", count, 5, obs_type="visual", image_size=SIZE, **settings)

    path = tmp_path / "cup.mp4"
    assert film(make_env, episodes[1:], [path]) == []
    frames = read_video(path)[0].astype(float)
    assert frames.shape == (10, SIZE, SIZE, 3)
    assert np.abs(np.diff(frames, axis=0)).max() > 50, "something moves"


def trained(name: str) -> Any:
    domain = counting_domain((5, 7))[0]
    short = "JointTrainAgent={SampleMaxSteps: 40, TrainAgentEverySteps: 9, TrainModelEverySteps: 9}"
    train_on(domain, name, "-set", short)
    return domain


def test_eval_films_its_first_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    """There is one file per episode and checkpoint, and videos do not change the scores."""
    domain = trained("run")
    argv = ["-n", "run", "-device", "cpu", "-checkpoint", "all"]
    evaluate_run(domain, argv)
    scores = find_logdir().scores / "run.csv"
    before = scores.read_text()
    evaluate_run(domain, [*argv, "-video", "3"])
    assert scores.read_text() == before
    found = sorted((find_logdir().runs / "run" / "videos").iterdir())
    assert [p.name for p in found] == [
        f"evaluation{i}_{step:09d}.mp4" for i in range(3) for step in (20, 40)
    ]
    assert [len(read_video(path)[0]) for path in found[::2]] == [5, 5, 7]
    assert "warning" not in capsys.readouterr().out


def test_scores_do_not_depend_on_room_for_videos(capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoints after the one whose video fails are evaluated too."""
    domain = trained("run")
    (find_logdir().runs / "run" / "videos").write_text("where the folder should be")
    argv = ["-n", "run", "-device", "cpu", "-checkpoint", "all", "-video", "1"]
    evaluate_run(domain, argv)
    assert capsys.readouterr().out.count("the scores are written, but no video: ") == 2


def test_scores_do_not_depend_on_a_renderer(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a renderer, a message says so, and the scores are still written."""
    domain = trained("run")

    def make_env(config: Any, *arguments: Any) -> VectorEnv:
        if config.BasicSettings.ObsShape[0] == SIZE:
            raise UserError("no headless renderer works")
        return domain.make_env(config, *arguments)

    blind = dataclasses.replace(domain, make_env=make_env)
    evaluate_run(blind, ["-n", "run", "-device", "cpu", "-video", "1"])
    assert "no video: no headless renderer works" in capsys.readouterr().out
    assert (find_logdir().scores / "run.csv").exists()
    with pytest.raises(UserError, match="-video: -1 is not a whole number"):
        evaluate_run(domain, ["-n", "run", "-device", "cpu", "-video", "-1"])
