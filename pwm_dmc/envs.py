"""DeepMind Control suite environments behind the interface of ``pwm_core.envs``.

One process holds a *group* of environments. A single proprioceptive environment runs in the calling
process. All others run in worker processes with several environments each. Rendering always happens
in a worker, for three reasons. The training process never holds an OpenGL context. A context is
freed before its interpreter shuts down; otherwise dm_control's OSMesa contexts print tracebacks.
Drawing overlaps with the training between ``send`` and ``recv``.
"""

from __future__ import annotations

import logging
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pwm_core.config import Config
from pwm_core.envs import Episodes, Step, VectorEnv, env_seeds
from pwm_core.errors import UserError, closest
from pwm_dmc.rendering import process_environment, without_renderer, working_renderer
from pwm_dmc.workers import InProcess, Worker, WorkerDiedError, stop

if TYPE_CHECKING:
    import gymnasium

PROTOCOL = "suite"
"""The only protocol: dm_control's own tasks and time limits."""

MOST_DEATHS = 3
"""Largest number of consecutive deaths of one place's worker processes before the run ends."""

_log = logging.getLogger(__name__)
OBS_TYPES = ("proprio", "visual")
_DOMAIN_ALIASES = {"cup": "ball_in_cup"}


def _simulation() -> ModuleType:
    """``pwm_dmc.simulation``, imported late and without OpenGL, because only workers draw."""
    with without_renderer():
        from pwm_dmc import simulation
    return simulation


def find_task(task: str) -> tuple[str, str]:
    """The arguments of ``suite.load``: ``cup_catch`` -> ``("ball_in_cup", "catch")``.

    Raises:
        UserError: there is no such task.
    """
    if task.startswith("lqr_"):
        raise UserError(f"{task} cannot be trained: it has no time limit and no action bounds")
    suite = _simulation().suite
    tasks = {f"{pair[0]}_{pair[1]}": pair for pair in suite.ALL_TASKS if pair[0] != "lqr"}
    for alias, domain in _DOMAIN_ALIASES.items():
        tasks |= {f"{alias}_{pair[1]}": pair for pair in tasks.values() if pair[0] == domain}
    if task not in tasks:
        hint = closest(task, list(tasks)) or "; a name is domain_task, such as walker_walk"
        raise UserError(f"unknown DeepMind Control task {task!r}{hint}")
    return tasks[task]


class DMCEnv(VectorEnv):
    """N environments of one task, in this process or in worker processes.

    An episode ends at the task's time limit, or earlier if the simulation diverges. Both cut it off
    and neither is a final state, so ``done`` is always False.

    Args:
        task: ``domain_task``, such as ``walker_walk``; ``cup`` stands for ``ball_in_cup``.
        num_envs: N.
        seed: seed of the run; every environment derives its own seed from it.
        obs_type: ``proprio``: (O,) float32, dm_control's observations, flattened in its order.
            ``visual``: (image_size, image_size, 3) uint8.
        frame_skip: simulator steps per action; their rewards are summed.
        image_size: height and width of a frame.
        workers: number of worker processes. The default is one per CPU and at most N, but none for
            a single proprioceptive environment.

    Raises:
        UserError: the task or ``obs_type`` does not exist, or no renderer works on this machine.
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        *,
        obs_type: Literal["visual", "proprio"],
        frame_skip: int,
        image_size: int = 64,
        workers: int | None = None,
    ) -> None:
        check_obs_type(str(obs_type))  # only the command line may pass None
        in_process = workers is None and num_envs == 1 and obs_type == "proprio"
        if min(num_envs, frame_skip, image_size, 1 if workers is None else workers) < 1:
            raise ValueError("num_envs, frame_skip, image_size and workers must be positive")
        self.num_envs, self.frame_skip = num_envs, frame_skip
        self.episodes = Episodes(seed, num_envs)
        suite_task, simulation = find_task(task), _simulation()
        self._settings = simulation.Settings(task, suite_task, obs_type, frame_skip, image_size)
        started: list[Worker] = []
        # It runs in close, at exit, or when this object is dropped, whichever comes first.
        self._finalizer = weakref.finalize(self, stop, started)
        self._groups: list[InProcess | Worker] = started
        if in_process:
            self._groups = [InProcess(simulation.Group())]
        else:
            from pwm_core.runtime import available_cores  # it imports torch

            renderer = working_renderer() if obs_type == "visual" else None
            self._environ = process_environment(renderer)
            for _ in range(min(num_envs, workers or available_cores())):
                started.append(self._start_worker())
        self._seeds = np.array_split(env_seeds(seed, num_envs), len(self._groups))
        self._splits = np.cumsum([len(share) for share in self._seeds])[:-1]
        self._deaths = [0] * len(self._groups)  # consecutive deaths of each group's workers
        self._unsent: dict[int, WorkerDiedError] = {}  # groups whose worker died before its actions
        self.observation_space, self.action_space = self._make_environments()

    def _start_worker(self) -> Worker:
        return Worker("pwm_dmc.simulation:Group", self._environ)

    def _make_environments(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
        """Make every group's environments; returns the spaces of an observation and an action."""
        try:
            for group, share in zip(self._groups, self._seeds, strict=True):
                group.send("make", self._settings, share.tolist())
            spaces = [group.receive() for group in self._groups]
        except BaseException:
            self.close()
            raise
        return spaces[0]

    def _shares(self, values: np.ndarray) -> list[np.ndarray]:
        """Split ``values`` (N, ...) of all environments into those of each group."""
        return np.split(values, self._splits)

    def reset(self) -> np.ndarray:
        """See ``VectorEnv``."""
        self.episodes.begin()
        for group, numbers in zip(self._groups, self._shares(self.episodes.numbers), strict=True):
            group.send("begin", numbers.tolist())
        return np.concatenate([group.receive() for group in self._groups])

    def _play_again(self) -> np.ndarray:
        """See ``VectorEnv``."""
        actions = iter(self.episodes.actions)
        for group, numbers in zip(self._groups, self._shares(self.episodes.numbers), strict=True):
            group.send("play", numbers.tolist(), [next(actions) for _ in numbers])
        return np.concatenate([group.receive() for group in self._groups])

    def send(self, actions: np.ndarray) -> None:
        """See ``VectorEnv``. Actions are clipped to their bounds.

        Raises:
            ValueError: the shape is not (N, A), or an action is not a finite number.
        """
        actions = np.asarray(actions, np.float32)
        expected = (self.num_envs, *self.action_space.shape)
        if actions.shape != expected:
            raise ValueError(f"actions have the shape {actions.shape}, not {expected}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinity: has the training diverged?")
        actions = np.clip(actions, self.action_space.low, self.action_space.high)
        self.episodes.act(actions)
        for index, (group, share) in enumerate(
            zip(self._groups, self._shares(actions), strict=True)
        ):
            try:
                group.send("step", share)
            except WorkerDiedError as death:
                self._unsent[index] = death

    def recv(self) -> Step:
        """See ``VectorEnv``. A worker process that has died is replaced.

        Its environments then begin their next episodes, and the lost ones are not in ``finished``.

        Raises:
            UserError: more than :data:`MOST_DEATHS` workers of the same environments have died in
                a row.
            RuntimeError: there was no ``send``, or a worker failed.
        """
        lost = np.zeros(self.num_envs, bool)
        results = [self._receive(index, lost) for index in range(len(self._groups))]
        obs, reward, ended = (np.concatenate(parts) for parts in zip(*results, strict=True))
        self.episodes.begin(lost)
        finished = self.episodes.add(reward, ended & ~lost)
        done = np.zeros(self.num_envs, bool)  # cut off, never in a final state
        return Step(obs, reward, done, ended, finished)

    def _receive(self, index: int, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards and ends of a group.

        If its worker had to be replaced, ``lost`` (N,) bool is set for its environments.
        """
        try:
            if index in self._unsent:
                raise self._unsent.pop(index)
            received = self._groups[index].receive()
        except WorkerDiedError as death:
            return self._replace(index, lost, death)
        self._deaths[index] = 0
        return received

    def _replace(
        self, index: int, lost: np.ndarray, death: WorkerDiedError
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Replace a dead worker; the results are those of its environments' next episodes.

        Raises:
            UserError: more than :data:`MOST_DEATHS` of them have died in a row.
        """
        share = self._shares(np.arange(self.num_envs))[index]
        lost[share] = True
        while True:
            self._deaths[index] += 1
            if self._deaths[index] > MOST_DEATHS:
                raise UserError(
                    f"{death}, and so did the {MOST_DEATHS} that took its place; if memory is "
                    "short, lower JointTrainAgent.NumEnvs or EvalEnvs"
                )
            self.restarts += 1
            _log.warning("%s; another takes its place, the episodes it ran are closed", death)
            try:
                worker = self._groups[index] = self._start_worker()
                worker.send("make", self._settings, self._seeds[index].tolist())
                worker.receive()
                worker.send("begin", (self.episodes.numbers[share] + 1).tolist())
                obs = worker.receive()
            except WorkerDiedError as another:
                death = another
                continue
            return obs, np.zeros(len(share), np.float32), np.ones(len(share), bool)

    def close(self) -> None:
        """Stop the workers; it may be called again."""
        self._finalizer()


def check_obs_type(obs_type: str | None) -> None:
    """Check that ``obs_type`` is None or an observation type.

    Raises:
        UserError: it is neither; the message names the valid types.
    """
    if obs_type is not None and obs_type not in OBS_TYPES:
        hint = closest(obs_type, list(OBS_TYPES))
        raise UserError(f"obs_type {obs_type!r}: it must be {' or '.join(OBS_TYPES)}{hint}")


def check_task(config: Config, task: str) -> None:
    """Check that the suite supports the task and the config.

    Raises:
        UserError: the task or the protocol is unknown, or frames are not square and in colour.
    """
    basic = config.BasicSettings
    find_task(task)
    if basic.Protocol != PROTOCOL:
        raise UserError(
            f"BasicSettings.Protocol = {basic.Protocol!r} is not valid: it must be {PROTOCOL}"
        )
    height, width, channels = basic.ObsShape
    if basic.ObsType == "visual" and (height != width or channels != 3):
        raise UserError(
            f"BasicSettings.ObsShape = {basic.ObsShape} is not valid: frames are square and have "
            "3 channels, such as (64, 64, 3)"
        )


def describe_protocol(config: Config) -> dict[str, Any]:
    """The protocol's name and settings, for the score files."""
    basic = config.BasicSettings
    return {"name": basic.Protocol, "obs_type": basic.ObsType}


def make_env(config: Config, task: str, num_envs: int, seed: int) -> DMCEnv:
    """``num_envs`` environments of ``task`` with the settings of ``config``."""
    basic = config.BasicSettings
    size, repeat = basic.ObsShape[0], basic.FrameSkip
    return DMCEnv(task, num_envs, seed, obs_type=basic.ObsType, frame_skip=repeat, image_size=size)
