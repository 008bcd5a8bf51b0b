"""Evaluation: every environment plays a fixed quota of whole episodes."""

from __future__ import annotations

import numpy as np

from pwm_core.envs import VectorEnv
from pwm_core.runs.tracking import progress_bar
from pwm_core.training.agent import Agent
from pwm_core.training.episode_videos import Episode


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """How many episodes each environment plays, (N,). The quotas are fixed beforehand, so that
    short episodes are not overrepresented."""
    share, rest = divmod(episodes, num_envs)
    return np.array([share + (i < rest) for i in range(num_envs)])


def play(
    agent: Agent | RandomAgent,
    env: VectorEnv,
    episodes: int,
    *,
    greedy: bool = False,
    phase: str = "",
) -> list[Episode]:
    """Play whole episodes.

    Args:
        env: its environments share the episodes. One that has played its quota continues
            unrecorded.
        episodes: how many are played in total.
        greedy: whether to take the policy's mode instead of a sample.
        phase: what the progress bar shows in front.

    Returns:
        the episodes, environment by environment.
    """
    wanted = quotas(episodes, env.num_envs)
    played: list[list[Episode]] = [[] for _ in wanted]
    taken: list[list[np.ndarray]] = [[] for _ in wanted]  # actions of the running episodes
    state = agent.initial_state(env.num_envs)
    obs, is_first = env.reset(), np.ones(env.num_envs, bool)
    with progress_bar(episodes, "episode", phase=phase) as bar:
        while any(len(p) < n for p, n in zip(played, wanted, strict=True)):
            actions = agent.act(obs, is_first, state, greedy=greedy)
            for actions_of_env, action in zip(taken, actions, strict=True):
                actions_of_env.append(action)
            numbers = env.episodes.numbers.copy()
            step = env.step(actions)
            obs, is_first = step.obs, step.is_first
            for i, value, _ in step.finished:
                if len(played[i]) < wanted[i]:
                    played[i].append(Episode(i, int(numbers[i]), np.array(taken[i]), value))
                    bar.update()
            for i in np.flatnonzero(env.episodes.numbers != numbers):
                taken[i] = []
    return [episode for of_env in played for episode in of_env]


class RandomAgent:
    """Uniformly random actions, with the part of an agent's interface that :func:`play` needs.

    Args:
        env: the environments to act in.
        seed: the seed of the actions.
    """

    def __init__(self, env: VectorEnv, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng(seed)

    def initial_state(self, num_envs: int) -> None:
        """Do nothing, because there is no state."""

    def act(
        self, obs: np.ndarray, is_first: np.ndarray, state: None, *, greedy: bool = False
    ) -> np.ndarray:
        """Draw uniform actions for all environments: (N,) int64 or (N, A) float32."""
        # self._env.random_actions is not used, because it is a domain's warm-up: in Freeway it
        # presses up.
        return VectorEnv.random_actions(self._env, self._rng)


def evaluate(
    agent: Agent | RandomAgent, env: VectorEnv, episodes: int, *, greedy: bool = False
) -> list[float]:
    """Play the episodes with :func:`play`, and return their undiscounted returns."""
    return [episode.episode_return for episode in play(agent, env, episodes, greedy=greedy)]


def standard_error(returns: list[float]) -> float:
    """The standard error of the mean return; 0 for a single episode."""
    if len(returns) < 2:
        return 0.0
    return float(np.std(returns, ddof=1) / np.sqrt(len(returns)))
