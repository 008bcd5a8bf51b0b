"""The one interface through which a domain's environments are seen.

What the flags of a step mean:

===================================  ======  ===============================  ============
what happened at this step           done    is_first of the next step        finished
===================================  ======  ===============================  ============
nothing special                      0       0                                empty
a life was lost, the game goes on    1       1                                empty
the episode ended in a final state   1       1                                one entry
the episode was cut off at its limit 0       1                                one entry
===================================  ======  ===============================  ============
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import gymnasium
import numpy as np


class Finished(NamedTuple):
    """A whole episode that ended: which environment, its undiscounted return, its agent steps."""

    env: int
    episode_return: float
    length: int


class Step(NamedTuple):
    """What follows one action in each of N environments.

    Attributes:
        obs: (N, *observation_shape) the observation to act on next. Where an episode ended it is
            already the first observation of the following one.
        reward: (N,) float32, the reward of the action just taken, the episode's last one included.
        done: (N,) bool, the action led to an end that the world model learns to predict.
        is_first: (N,) bool, ``obs`` begins an episode (or a new life).
        finished: the whole episodes that ended at this step.
    """

    obs: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    is_first: np.ndarray
    finished: list[Finished]


class VectorEnv(ABC):
    """N environments stepped together. ``send`` and ``recv`` split a step so that other work can
    run while the environments do.

    Attributes:
        num_envs: N.
        observation_space, action_space: the spaces of a single environment.
        frame_skip: emulator or simulator frames per agent step.
    """

    num_envs: int
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.Space
    frame_skip: int

    @abstractmethod
    def reset(self) -> np.ndarray:
        """Begin an episode everywhere; returns the first observations (N, *observation_shape)."""

    @abstractmethod
    def send(self, actions: np.ndarray) -> None:
        """Start a step with ``actions``: (N,) int64 if discrete, (N, A) float32 if continuous."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step started by ``send``."""

    def step(self, actions: np.ndarray) -> Step:
        """``send`` then ``recv``."""
        self.send(actions)
        return self.recv()

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        """Actions of the warm-up phase, uniform over the action space unless a domain says else."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return rng.integers(self.action_space.n, size=self.num_envs)
        low, high = self.action_space.low, self.action_space.high
        return rng.uniform(low, high, size=(self.num_envs, *low.shape)).astype(np.float32)

    @abstractmethod
    def close(self) -> None:
        """Release what the environments hold."""


class ReturnCounter:
    """Adds up the rewards of N running episodes."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)

    def add(self, reward: np.ndarray, ended: np.ndarray) -> list[Finished]:
        """Count one step's ``reward`` (N,), the last of an episode too; ``ended`` (N,) bool."""
        self._returns += reward
        self._lengths += 1
        finished = [
            Finished(int(i), float(self._returns[i]), int(self._lengths[i]))
            for i in np.flatnonzero(ended)
        ]
        self._returns[ended] = 0
        self._lengths[ended] = 0
        return finished


def env_seeds(seed: int, num_envs: int) -> np.ndarray:
    """A seed of its own for every environment: (N,) int64 in [0, 2**31), from one run seed."""
    return np.random.SeedSequence(seed).generate_state(num_envs, np.uint32).astype(np.int64) >> 1
