"""Videos of evaluated episodes.

The episodes are replayed from their seeds and actions in environments whose observations are
pictures. The evaluated agent itself therefore needs no pixels, and videos do not slow down the
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.runs.mp4 import VideoWriter

SIZE = 256
"""Smallest height and width of a video in pixels."""


@dataclass(frozen=True)
class Episode:
    """An episode that was played to its end.

    Attributes:
        env: index of the environment that played it.
        number: episode index within that environment.
        actions: (steps, ...) all of its actions.
        episode_return: the undiscounted sum of its rewards.
    """

    env: int
    number: int
    actions: np.ndarray
    episode_return: float


def as_pictures(config: Config) -> Config:
    """``config`` with observations that are pictures of :data:`SIZE` pixels a side."""
    shape = (SIZE, SIZE, config.BasicSettings.ObsShape[2])
    changes = {"ObsType": "visual", "ObsShape": shape}
    return config.model_copy(
        update={"BasicSettings": config.BasicSettings.model_copy(update=changes)}
    )


def film(
    make_env: Callable[[int], VectorEnv],
    episodes: Sequence[Episode],
    paths: Sequence[Path],
) -> list[str]:
    """Replay ``episodes`` and write a video of each, with one frame per step.

    Args:
        make_env: (number of environments) -> environments whose observations are pictures, with the
            seeds of the evaluation.
        episodes: episodes of one evaluation.
        paths: the path of each video.

    Returns:
        a line for each episode whose replay differs from the evaluation; it has no video.
    """
    rounds: list[dict[int, tuple[Episode, Path]]] = []  # a round has at most one episode of an env
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
    """Film at most one episode in each environment, all at the same time."""
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
    came: dict[int, tuple[int, float]] = {}  # steps and return of each environment's first episode
    with ExitStack() as stack:
        videos = {
            i: stack.enter_context(VideoWriter(path, least=SIZE)) for i, (_, path) in played.items()
        }
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
    """An empty string if the replay equals the evaluation.

    Otherwise the video is removed, and the result is a line that says how the replay differs.
    """
    if came == (len(episode.actions), episode.episode_return):
        return ""
    path.unlink()
    how = f"it ended after {came[0]} steps with {came[1]:g}" if came else "it did not end"
    return (
        f"{path.name} is left out: played again, {how}; "
        f"it took {len(episode.actions)} steps and returned {episode.episode_return:g}"
    )
