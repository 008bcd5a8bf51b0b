"""Videos of evaluated episodes.

Episodes are played again from their seeds and actions, in environments that show pictures: what is
filmed needs no pixels in the observation, and the evaluation itself is not slowed down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pwm_core.envs import VectorEnv
from pwm_core.runs.files import replacing

SIZE = 256
"""Least height and width of a video in pixels."""
FRAMES_PER_SECOND = 15
"""An Atari step of 4 frames lasts 1/15 s on the console."""


@dataclass(frozen=True)
class Episode:
    """An episode that was played to its end.

    Attributes:
        env: which environment played it, and
        number: the how manieth of that environment it was.
        actions: (steps, ...) all actions.
        episode_return: the undiscounted sum of its rewards.
    """

    env: int
    number: int
    actions: np.ndarray
    episode_return: float


class VideoWriter:
    """An mp4 (H.264, 4:2:0, which every browser plays), frame by frame, enlarged to :data:`SIZE`.

    The file appears under its name when all of it has been written.
    """

    def __init__(self, path: Path, fps: int = FRAMES_PER_SECOND) -> None:
        self._path, self._fps = path, fps

    def __enter__(self) -> Self:
        """Open the file."""
        import imageio.v3 as imageio

        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            file = imageio.imopen(temporary, "w", plugin="pyav", container="mp4")
            self._video = stack.enter_context(file)
            self._video.init_video_stream("libx264", fps=self._fps, pixel_format="yuv420p")
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the file, or remove it after an error."""
        self._open.__exit__(*error)

    def write(self, frame: np.ndarray) -> None:
        """Append ``frame`` (H, W, C) uint8."""
        self._video.write_frame(enlarged(frame))


def enlarged(frame: np.ndarray, size: int = SIZE) -> np.ndarray:
    """(H, W, 1 or 3) uint8 -> RGB, every pixel a square, both sides at least ``size`` and even."""
    factor = -(-size // min(frame.shape[:2]))
    if factor > 1 and factor % 2:
        factor += 1
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (side - side % 2 for side in frame.shape[:2])  # 4:2:0 halves both
    return np.broadcast_to(frame[:height, :width], (height, width, 3))


def film(
    make_env: Callable[[int], VectorEnv],
    episodes: Sequence[Episode],
    paths: Sequence[Path],
) -> list[str]:
    """Play ``episodes`` again and write what was seen at each of their steps.

    Args:
        make_env: (number of environments) -> environments that show pictures, with the seeds of
            those that played.
        episodes: of one evaluation.
        paths: where each one's video goes.

    Returns:
        a line for each episode that did not come out as it was evaluated, and so has no video.
    """
    rounds: list[dict[int, tuple[Episode, Path]]] = []  # in each, at most one episode of an env
    for episode, path in zip(episodes, paths, strict=True):
        free = next((played for played in rounds if episode.env not in played), None)
        if free is None:
            rounds.append(free := {})
        free[episode.env] = (episode, path)
    env = make_env(1 + max(episode.env for episode in episodes))
    try:
        return [line for played in rounds for line in _film(env, played)]
    finally:
        env.close()


def _film(env: VectorEnv, played: dict[int, tuple[Episode, Path]]) -> list[str]:
    """Film one episode in each of some environments, side by side."""
    numbers = np.zeros(env.num_envs, np.int64)
    for index, (episode, _) in played.items():
        numbers[index] = episode.number
    begun = {
        "numbers": numbers,
        "returns": np.zeros(env.num_envs),
        "actions": [[] for _ in numbers],
    }
    obs = env.load_state_dict({"episodes": begun, "restarts": 0})
    shape = next(iter(played.values()))[0].actions[0]
    idle = np.zeros((env.num_envs, *np.shape(shape)), np.asarray(shape).dtype)
    came: dict[int, tuple[int, float]] = {}  # steps and return of the first to finish
    with ExitStack() as stack:
        videos = {i: stack.enter_context(VideoWriter(path)) for i, (_, path) in played.items()}
        for step in range(max(len(episode.actions) for episode, _ in played.values())):
            actions = idle.copy()
            for index, (episode, _) in played.items():
                if step < len(episode.actions):
                    videos[index].write(obs[index])
                    actions[index] = episode.actions[step]
            result = env.step(actions)
            obs = result.obs
            for found in result.finished:
                came.setdefault(found.env, (found.length, found.episode_return))
    return [line for i, pair in played.items() if (line := _check(*pair, came.get(i)))]


def _check(episode: Episode, path: Path, came: tuple[int, float] | None) -> str:
    """An empty string; or why the video is not what was evaluated, and it is removed."""
    if came == (len(episode.actions), episode.episode_return):
        return ""
    path.unlink()
    how = f"it ended after {came[0]} steps with {came[1]:g}" if came else "it did not end"
    return (
        f"{path.name} is left out: played again, {how}; "
        f"it took {len(episode.actions)} steps and returned {episode.episode_return:g}"
    )
