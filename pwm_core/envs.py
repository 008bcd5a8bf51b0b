"""The interface of a domain's environments.

The flags of a step mean:

===================================  ======  ===============================  ============
what happened at this step           done    is_first of the next step        finished
===================================  ======  ===============================  ============
nothing special                      0       0                                empty
a life was lost, the game continues  1       1                                empty
the episode ended in a final state   1       1                                one entry
the episode was cut off at its limit 0       1                                one entry
===================================  ======  ===============================  ============
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # models and benchmarks must run without gymnasium
    import gymnasium


class Finished(NamedTuple):
    """A whole episode that has ended.

    Attributes:
        env: index of its environment.
        episode_return: the undiscounted sum of its rewards.
        length: its agent steps.
    """

    env: int
    episode_return: float
    length: int


class Step(NamedTuple):
    """The results of one action in each of N environments.

    Attributes:
        obs: (N, *observation_shape) the observation to act on next. Where an episode ended, it is
            the first observation of the next episode.
        reward: (N,) float32, the reward of the action, also of an episode's last action.
        done: (N,) bool, whether the action led to an end that the world model learns to predict.
        is_first: (N,) bool, whether ``obs`` begins an episode (or a new life).
        finished: the whole episodes that ended at this step.
    """

    obs: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    is_first: np.ndarray
    finished: list[Finished]


class VectorEnv(ABC):
    """N environments that are stepped together.

    ``send`` and ``recv`` split a step, so that other work can run while the environments run.

    Attributes:
        num_envs: N.
        observation_space, action_space: the spaces of a single environment.
        frame_skip: emulator frames or simulator steps per agent step.
        episodes: the running episodes.
        restarts: how many processes that ran environments died and were replaced.
    """

    num_envs: int
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.Space
    frame_skip: int
    episodes: Episodes
    restarts: int = 0

    @abstractmethod
    def reset(self) -> np.ndarray:
        """Begin the next episode in every environment.

        Returns:
            the first observations (N, *observation_shape).
        """

    @abstractmethod
    def send(self, actions: np.ndarray) -> None:
        """Start a step with ``actions``: (N,) int64 if discrete, (N, A) float32 if continuous."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step started by ``send``."""

    def step(self, actions: np.ndarray) -> Step:
        """``send`` and then ``recv``."""
        self.send(actions)
        return self.recv()

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        """The actions of the warm-up, uniform over the action space unless a domain overrides it.

        Returns:
            (N,) int64, or (N, A) float32.
        """
        if np.issubdtype(self.action_space.dtype, np.integer):
            return rng.integers(self.action_space.n, size=self.num_envs)
        low, high = self.action_space.low, self.action_space.high
        return rng.uniform(low, high, size=(self.num_envs, *low.shape)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """The state from which the running episodes can be replayed.

        Do not call it between ``send`` and ``recv``.
        """
        return {"episodes": self.episodes.state_dict(), "restarts": self.restarts}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Restore ``state`` by replaying the running episode of every environment.

        Returns:
            (N, *observation_shape) the agent's observations in that state.
        """
        self.episodes.load_state_dict(state["episodes"])
        self.restarts = state["restarts"]
        return self._play_again()

    @abstractmethod
    def _play_again(self) -> np.ndarray:
        """Replay the running episodes from their seeds and actions; returns the observations."""

    @abstractmethod
    def close(self) -> None:
        """Release the environments' resources."""


class Episodes:
    """The running episodes of N environments: their numbers, their actions and returns so far.

    The seed of an episode follows from its environment and its number. Number and actions are
    therefore enough to replay an episode. This is how a run resumes exactly where it stopped,
    although the simulators cannot save their state.

    Attributes:
        numbers: (N,) int64, the index of the running episode within its environment; -1 before the
            first.
    """

    def __init__(self, seed: int, num_envs: int) -> None:
        self._env_seeds = env_seeds(seed, num_envs)
        self.numbers = np.full(num_envs, -1, np.int64)
        self._returns = np.zeros(num_envs, np.float64)
        self._actions: list[list[np.ndarray]] = [[] for _ in range(num_envs)]

    def begin(self, where: np.ndarray | None = None) -> None:
        """Begin the next episode in every environment, or where the mask ``where`` (N,) is set."""
        for env in range(len(self.numbers)) if where is None else np.flatnonzero(where):
            self.numbers[env] += 1
            self._returns[env] = 0.0
            self._actions[env] = []

    @property
    def seeds(self) -> np.ndarray:
        """(N,) int64, the seeds of the running episodes."""
        pairs = zip(self._env_seeds, self.numbers, strict=True)
        return np.array([episode_seed(int(seed), int(number)) for seed, number in pairs])

    @property
    def actions(self) -> list[np.ndarray]:
        """For each environment, the actions (steps, ...) of its running episode."""
        return [np.array(actions) for actions in self._actions]

    def act(self, actions: np.ndarray) -> None:
        """Record the actions (N, ...) of one step."""
        for taken, action in zip(self._actions, actions, strict=True):
            taken.append(np.array(action))

    def add(self, reward: np.ndarray, ended: np.ndarray) -> list[Finished]:
        """Add the rewards of one step to the returns, and begin the next episode where one ended.

        Args:
            reward: (N,).
            ended: (N,) bool, whether the episode ended at this step.

        Returns:
            the episodes that ended.
        """
        self._returns += reward
        finished = [
            Finished(int(i), float(self._returns[i]), len(self._actions[i]))
            for i in np.flatnonzero(ended)
        ]
        self.begin(ended)
        return finished

    def state_dict(self) -> dict[str, Any]:
        """Numbers, returns and actions as lists and arrays."""
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
    """A different seed for every environment from the seed of a run: (N,) int64 in [0, 2**31)."""
    return np.random.SeedSequence(seed).generate_state(num_envs, np.uint32).astype(np.int64) >> 1


def episode_seed(env_seed: int, number: int) -> int:
    """The seed of an environment's episode, in [0, 2**31); the first episode has ``env_seed``."""
    if number == 0:
        return env_seed
    return int(np.random.SeedSequence([env_seed, number]).generate_state(1, np.uint32)[0]) >> 1
