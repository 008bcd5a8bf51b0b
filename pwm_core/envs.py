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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # so that models and benchmarks run where gymnasium is not installed
    import gymnasium


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
        episodes: which episodes are running.
        restarts: how often a process that ran environments had to be replaced.
    """

    num_envs: int
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.Space
    frame_skip: int
    episodes: Episodes
    restarts: int = 0

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
        """Actions of the warm-up: uniform over the action space, unless a domain overrides it."""
        if np.issubdtype(self.action_space.dtype, np.integer):
            return rng.integers(self.action_space.n, size=self.num_envs)
        low, high = self.action_space.low, self.action_space.high
        return rng.uniform(low, high, size=(self.num_envs, *low.shape)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """What the running episodes can be played again from; not between ``send`` and ``recv``."""
        return {"episodes": self.episodes.state_dict(), "restarts": self.restarts}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Bring every environment to where ``state`` was taken, by playing its episode again.

        Returns:
            (N, *observation_shape) what the agent saw there.
        """
        self.episodes.load_state_dict(state["episodes"])
        self.restarts = state["restarts"]
        return self._play_again()

    @abstractmethod
    def _play_again(self) -> np.ndarray:
        """Play the running episodes from their seeds and actions; returns the observations."""

    @abstractmethod
    def close(self) -> None:
        """Release what the environments hold."""


class Episodes:
    """The running episodes of N environments: number, actions and return so far.

    Episode ``number`` of an environment begins from a seed of its own. Number and actions are
    therefore enough to play an episode again, which is how a run goes on exactly where it stopped
    without a simulator that can save its state.

    Attributes:
        numbers: (N,) int64, episodes begun before the running one; -1 before the first.
    """

    def __init__(self, seed: int, num_envs: int) -> None:
        self._env_seeds = env_seeds(seed, num_envs)
        self.numbers = np.full(num_envs, -1, np.int64)
        self._returns = np.zeros(num_envs, np.float64)
        self._actions: list[list[np.ndarray]] = [[] for _ in range(num_envs)]

    def begin(self, where: np.ndarray | None = None) -> None:
        """The next episode in every environment, or in those of the (N,) bool mask ``where``."""
        for env in range(len(self.numbers)) if where is None else np.flatnonzero(where):
            self.numbers[env] += 1
            self._returns[env] = 0.0
            self._actions[env] = []

    @property
    def seeds(self) -> np.ndarray:
        """(N,) int64, from which the running episodes began."""
        pairs = zip(self._env_seeds, self.numbers, strict=True)
        return np.array([episode_seed(int(seed), int(number)) for seed, number in pairs])

    @property
    def actions(self) -> list[np.ndarray]:
        """Of each environment, the actions (n, ...) of its running episode."""
        return [np.array(actions) for actions in self._actions]

    def act(self, actions: np.ndarray) -> None:
        """Note the actions (N, ...) of one step."""
        for taken, action in zip(self._actions, actions, strict=True):
            taken.append(np.array(action))

    def add(self, reward: np.ndarray, ended: np.ndarray) -> list[Finished]:
        """Count that step's ``reward`` (N,), the last of an episode too. Where it ``ended`` ((N,)
        bool) the next episode begins."""
        self._returns += reward
        finished = [
            Finished(int(i), float(self._returns[i]), len(self._actions[i]))
            for i in np.flatnonzero(ended)
        ]
        self.begin(ended)
        return finished

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain lists and arrays."""
        return {
            "numbers": self.numbers.copy(),
            "returns": self._returns.copy(),
            "actions": self.actions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.numbers = state["numbers"].copy()
        self._returns = state["returns"].copy()
        self._actions = [list(actions) for actions in state["actions"]]


def env_seeds(seed: int, num_envs: int) -> np.ndarray:
    """A seed of its own for every environment: (N,) int64 in [0, 2**31), from one run seed."""
    return np.random.SeedSequence(seed).generate_state(num_envs, np.uint32).astype(np.int64) >> 1


def episode_seed(env_seed: int, number: int) -> int:
    """The seed in [0, 2**31) of an environment's episode; that of its first is ``env_seed``."""
    if number == 0:
        return env_seed
    return int(np.random.SeedSequence([env_seed, number]).generate_state(1, np.uint32)[0]) >> 1
