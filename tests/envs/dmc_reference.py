"""dm_control stepped by hand, and its tasks, which several test files share."""

from __future__ import annotations

import numpy as np
import pytest

from pwm_core.envs import episode_seed
from pwm_dmc.benchmark import BENCHMARK

with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("MUJOCO_GL", "disabled")
    from dm_control import suite

PUBLISHED_TASKS = BENCHMARK.lists["all"]
"""Two of them are not in ``suite.BENCHMARKING``, and one has another name there."""
BENCHMARK_TASKS = tuple(f"{domain}_{task}" for domain, task in suite.BENCHMARKING)


class Reference:
    """dm_control stepped by hand: action repeat, sum of rewards, a reset when an episode ends."""

    def __init__(self, domain: str, task: str, seed: int, frame_skip: int) -> None:
        self.env = suite.load(domain, task, task_kwargs={"random": seed})
        self.frame_skip, self.seed, self.episode = frame_skip, seed, -1
        self.obs = self._flat(self._begin())

    def _begin(self):
        """Begin the next episode, from the seed of its number."""
        self.episode += 1
        self.env.task.random.seed(episode_seed(self.seed, self.episode))
        return self.env.reset()

    @staticmethod
    def _flat(timestep) -> np.ndarray:
        values = [np.ravel(value) for value in timestep.observation.values()]
        return np.concatenate(values).astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        total, repeats = 0.0, 0
        timestep = None
        while repeats < self.frame_skip and not (timestep and timestep.last()):
            timestep = self.env.step(action)
            total += timestep.reward
            repeats += 1
        last = timestep.last()
        self.obs = self._flat(self._begin() if last else timestep)
        return self.obs, total, last
