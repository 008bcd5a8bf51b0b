"""DeepMind Control suite environments behind the interface of ``pwm_core.envs``.

One process holds a *group* of environments. A single proprioceptive environment runs in the calling
process; everything else runs in worker processes, several environments in each. Rendering always
happens in a worker: the training process then never holds an OpenGL context, a context is freed
before its interpreter shuts down (dm_control's OSMesa contexts print tracebacks otherwise), and
drawing overlaps with the training between ``send`` and ``recv``.
"""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

import numpy as np

from pwm_core.config import Config
from pwm_core.envs import ReturnCounter, Step, VectorEnv, env_seeds
from pwm_core.errors import UserError, closest
from pwm_core.workers import InProcess, Worker, available_cpus, stop
from pwm_dmc.rendering import process_environment, without_renderer, working_renderer

PROTOCOL = "suite"
"""The one protocol: dm_control's own tasks and time limits."""

OBS_TYPES = ("proprio", "visual")
_DOMAIN_ALIASES = {"cup": "ball_in_cup"}


def _simulation() -> ModuleType:
    """``pwm_dmc.simulation``, imported late, and without OpenGL: only workers draw."""
    with without_renderer():
        from pwm_dmc import simulation
    return simulation


def find_task(task: str) -> tuple[str, str]:
    """``cup_catch`` -> ``("ball_in_cup", "catch")``, as ``suite.load`` wants it.

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
    """N environments of one task, in this process or spread over others.

    An episode ends at the task's time limit or, should the simulation diverge, there; it is cut
    off, never in a final state, so ``done`` stays False.

    Args:
        task: ``domain_task``, such as ``walker_walk``; ``cup`` stands for ``ball_in_cup``.
        num_envs: N.
        seed: every environment gets a seed of its own from it.
        obs_type: ``proprio``, (D,) float32: dm_control's observations, flattened in its order;
            or ``visual``, (image_size, image_size, 3) uint8.
        frame_skip: how often an action is repeated; the rewards of the repeats are summed.
        image_size: height and width of a frame.
        workers: processes to spread the environments over. By default one per CPU, at most N, and
            none at all for a single proprioceptive environment.

    Raises:
        UserError: the task or ``obs_type`` does not exist, or nothing can render on this machine.
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        *,
        obs_type: str,
        frame_skip: int,
        image_size: int = 64,
        workers: int | None = None,
    ) -> None:
        check_obs_type(str(obs_type))  # None is for the command line alone
        if min(num_envs, frame_skip, image_size, 1 if workers is None else workers) < 1:
            raise ValueError("num_envs, frame_skip, image_size and workers must be positive")
        self.num_envs, self.frame_skip = num_envs, frame_skip
        self._counter = ReturnCounter(num_envs)
        suite_task, simulation = find_task(task), _simulation()
        settings = simulation.Settings(task, suite_task, obs_type, frame_skip, image_size)
        started: list[Worker] = []
        # Runs in close, at exit, or when this object is dropped: whichever comes first.
        self._finalizer = weakref.finalize(self, stop, started)
        self._groups: list[InProcess | Worker] = started
        if workers is None and num_envs == 1 and obs_type == "proprio":
            self._groups = [InProcess(simulation.Group())]
        else:
            environ = process_environment(working_renderer() if obs_type == "visual" else None)
            for _ in range(min(num_envs, workers or available_cpus())):
                started.append(Worker("pwm_dmc.simulation:Group", environ))
        shares = np.array_split(env_seeds(seed, num_envs), len(self._groups))
        self._splits = np.cumsum([len(share) for share in shares])[:-1]
        try:
            for group, share in zip(self._groups, shares, strict=True):
                group.send("make", settings, share.tolist())
            spaces = [group.receive() for group in self._groups]
        except BaseException:
            self.close()
            raise
        self.observation_space, self.action_space = spaces[0]

    def reset(self) -> np.ndarray:
        """See ``VectorEnv``. Every call begins another episode."""
        self._counter = ReturnCounter(self.num_envs)
        for group in self._groups:
            group.send("reset")
        return np.concatenate([group.receive() for group in self._groups])

    def send(self, actions: np.ndarray) -> None:
        """See ``VectorEnv``; actions beyond the bounds are clipped to them.

        Raises:
            ValueError: the shape is not (N, A), or an action is not a finite number.
            UserError: a worker process has died.
        """
        actions = np.asarray(actions, np.float32)
        expected = (self.num_envs, *self.action_space.shape)
        if actions.shape != expected:
            raise ValueError(f"actions have the shape {actions.shape}, not {expected}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinity: has the training diverged?")
        actions = np.clip(actions, self.action_space.low, self.action_space.high)
        for group, share in zip(self._groups, np.split(actions, self._splits), strict=True):
            group.send("step", share)

    def recv(self) -> Step:
        """See ``VectorEnv``.

        Raises:
            UserError: a worker process has died.
            RuntimeError: there was no ``send``, or a worker failed.
        """
        results = [group.receive() for group in self._groups]
        obs, reward, ended = (np.concatenate(parts) for parts in zip(*results, strict=True))
        done = np.zeros(self.num_envs, bool)  # cut off, never in a final state
        return Step(obs, reward, done, ended, self._counter.add(reward, ended))

    def close(self) -> None:
        """Stop the workers; harmless when repeated."""
        self._finalizer()


def check_obs_type(obs_type: str | None) -> None:
    """Refuse what is neither None nor an observation type.

    Raises:
        UserError: names what would be valid.
    """
    if obs_type is not None and obs_type not in OBS_TYPES:
        hint = closest(obs_type, list(OBS_TYPES))
        raise UserError(f"obs_type {obs_type!r}: it must be {' or '.join(OBS_TYPES)}{hint}")


def check_task(config: Config, task: str) -> None:
    """Refuse what the suite does not have.

    Raises:
        UserError: unknown task, unknown protocol, or frames that are not square and in colour.
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
    """``num_envs`` environments of ``task`` as ``config`` says."""
    basic = config.BasicSettings
    return DMCEnv(
        task,
        num_envs,
        seed,
        obs_type=basic.ObsType,
        frame_skip=basic.FrameSkip,
        image_size=basic.ObsShape[0],
    )
