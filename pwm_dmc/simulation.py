"""The simulated environments of one process.

A worker imports this module and no other module of the domain. Importing dm_control decides how the
process draws; see ``pwm_dmc.rendering``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
from dm_control import mujoco, suite
from dm_control.rl.control import PhysicsError

from pwm_core.envs import episode_seed

_CAMERAS = {"quadruped": 2}  # camera 0 everywhere else
_log = logging.getLogger(__name__)

Spaces = tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]
"""The spaces of an observation and of an action."""


class Settings(NamedTuple):
    """The settings that all environments of a ``DMCEnv`` share.

    Attributes:
        task: the name that the user gave.
        suite_task: domain and task, the arguments of ``suite.load``.
        obs_type, frame_skip, image_size: see ``DMCEnv``.
    """

    task: str
    suite_task: tuple[str, str]
    obs_type: Literal["visual", "proprio"]
    frame_skip: int
    image_size: int


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silence MuJoCo's deprecation warnings about dm_control's own models."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Environment:
    """One environment of the suite, with action repeat and the chosen type of observation."""

    def __init__(self, settings: Settings, seed: int) -> None:
        domain, task = settings.suite_task
        self._settings, self._seed = settings, seed
        self._number = 0
        with _quiet_absl():
            self._env = suite.load(
                domain,
                task,
                task_kwargs={"random": seed},
                environment_kwargs={"flat_observation": True},
            )
        self._observations: dict[str, np.ndarray] = {}
        self._camera = None
        if settings.obs_type == "visual":
            # One camera for all frames: physics.render allocates a scene for each (about 1 ms).
            size, camera = settings.image_size, _CAMERAS.get(domain, 0)
            self._camera = mujoco.Camera(self._env.physics, size, size, camera)

    @property
    def spaces(self) -> Spaces:
        """The spaces of an observation and of an action, with the task's own bounds."""
        bounds = self._env.action_spec()
        low, high = bounds.minimum.astype(np.float32), bounds.maximum.astype(np.float32)
        action = gymnasium.spaces.Box(low, high, dtype=np.float32)
        if self._camera is not None:
            size = self._settings.image_size
            return gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8), action
        shape = self._env.observation_spec()["observations"].shape
        return gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32), action

    def begin(self, number: int) -> None:
        """Begin the episode ``number`` from its own seed."""
        self._number = number
        self._env.task.random.seed(episode_seed(self._seed, number))
        self._observations = self._env.reset().observation

    def begin_next(self) -> None:
        """Begin the episode that follows the running one."""
        self.begin(self._number + 1)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Repeat ``action`` (A,); returns the summed reward and whether the episode has ended."""
        reward = 0.0
        for _ in range(self._settings.frame_skip):
            try:
                timestep = self._env.step(action)
            except PhysicsError as error:
                # The next episode begins, because a run of many hours must not end here.
                _log.warning("%s: the simulation diverged: %s", self._settings.task, error)
                return reward, True
            reward += timestep.reward
            if timestep.last():
                return reward, True
        self._observations = timestep.observation
        return reward, False

    def observe(self) -> np.ndarray:
        """The agent's observation: (O,) float32 or (height, width, 3) uint8."""
        if self._camera is not None:
            return self._camera.render()
        return self._observations["observations"].astype(np.float32)

    def close(self) -> None:
        """Free the simulation and its OpenGL context."""
        self._env.physics.free()


class Group:
    """The n environments of one process."""

    def __init__(self) -> None:
        self._envs: list[Environment] = []

    def make(self, settings: Settings, seeds: list[int]) -> Spaces:
        """Make one environment per seed; returns the spaces of a single environment."""
        self._envs = [Environment(settings, seed) for seed in seeds]
        return self._envs[0].spaces

    def begin(self, numbers: list[int]) -> np.ndarray:
        """Begin the episodes ``numbers``; returns the first observations (n, ...)."""
        return self.play(numbers, [np.empty((0,))] * len(numbers))

    def play(self, numbers: list[int], actions: list[np.ndarray]) -> np.ndarray:
        """Begin the episodes ``numbers`` and take the actions (steps, A) of each.

        Returns:
            the observations (n, ...) after the last action.
        """
        for env, number, taken in zip(self._envs, numbers, actions, strict=True):
            env.begin(number)
            for action in taken:
                env.step(action)
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions (n, A) -> observations (n, ...), rewards (n,) float32, ended (n,) bool."""
        rewards = np.zeros(len(self._envs), np.float32)
        ended = np.zeros(len(self._envs), bool)
        for i, env in enumerate(self._envs):
            rewards[i], ended[i] = env.step(actions[i])
            if ended[i]:
                env.begin_next()
        return self._observe(), rewards, ended

    def _observe(self) -> np.ndarray:
        return np.stack([env.observe() for env in self._envs])

    def close(self) -> None:
        """Free all environments."""
        for env in self._envs:
            env.close()
