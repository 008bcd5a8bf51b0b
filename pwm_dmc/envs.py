"""DeepMind Control suite environments behind the interface of ``pwm_core.envs``.

One process holds a *group* of environments. A single proprioceptive environment runs in the calling
process; everything else runs in worker processes, several environments in each, started with
``subprocess`` so that they import neither the training script nor torch. Rendering always
happens in a worker: the training process then never holds an OpenGL context, a context is freed
before its interpreter shuts down (dm_control's OSMesa contexts print tracebacks otherwise), and
drawing overlaps with the training between ``send`` and ``recv``.

dm_control reads ``MUJOCO_GL`` once, when it is imported, so it is imported late: in a worker that
draws with a renderer known to work, everywhere else without any.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np

from pwm_core.envs import ReturnCounter, Step, VectorEnv, env_seeds
from pwm_core.errors import UserError, closest

if TYPE_CHECKING:  # a worker needs no more than the environments
    from pwm_core.config import Config

PROTOCOL = "suite"
"""The one protocol: dm_control's own tasks and time limits."""

OBS_TYPES = ("proprio", "visual")
_DOMAIN_ALIASES = {"cup": "ball_in_cup"}
_CAMERAS = {"quadruped": 2}  # camera 0 everywhere else
_RENDERERS = ("egl", "osmesa")  # EGL first: it uses the GPU where there is one
_NO_RENDERER = "disabled"
_PACKAGES = {"egl": "libegl1 libopengl0", "osmesa": "libosmesa6"}  # of Debian and Ubuntu
_log = logging.getLogger(__name__)


class _Settings(NamedTuple):
    """What the environments of one ``DMCEnv`` have in common."""

    task: str
    obs_type: str
    frame_skip: int
    image_size: int


_Spaces = tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]  # observation, action


def working_renderer() -> str:
    """The value of ``MUJOCO_GL`` that renders on this machine without a display.

    A value already set by the user is tried alone, otherwise EGL and then OSMesa. Each is tried by
    drawing a frame in a process of its own; the answer is kept for the life of this process.

    Raises:
        UserError: none works; says which Debian packages to install.
    """
    return _working_renderer(os.environ.get("MUJOCO_GL"))


@functools.cache
def _working_renderer(requested: str | None) -> str:
    reasons = []
    for renderer in _RENDERERS if requested is None else (requested,):
        problem = _try_renderer(renderer)
        if not problem:
            return renderer
        reasons.append(f"{renderer}: {problem}")
    if requested in (None, *_RENDERERS):
        names = _RENDERERS if requested is None else (requested,)
        advice = "try " + " or ".join(f"'apt-get install {_PACKAGES[name]}'" for name in names)
    else:
        advice = "unset it, or set it to egl or osmesa"
    culprit = "no headless renderer works" if requested is None else "MUJOCO_GL cannot render"
    raise UserError(f"{culprit} ({'; '.join(reasons)}): {advice}, or use -obs_type proprio")


_DRAW_A_BALL = """
from dm_control import mujoco
ball = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
physics = mujoco.Physics.from_xml_string(ball)
frame = physics.render(64, 64)
physics.free()
if frame.min() == frame.max():
    raise SystemExit("the frame is blank")
"""


def _try_renderer(renderer: str) -> str:
    """Draw a frame in a process of its own; returns what went wrong, or an empty string."""
    command = [sys.executable, "-c", _DRAW_A_BALL]
    environment = _process_environment(renderer)
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "hangs"
    if run.returncode == 0:
        return ""
    return run.stderr.strip().rpartition("\n")[2] or _exit_reason(run.returncode)


def _process_environment(renderer: str) -> dict[str, str]:
    # dm_control sets PYOPENGL_PLATFORM itself, and refuses a renderer that contradicts it.
    inherited = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    return inherited | {"MUJOCO_GL": renderer}


def _exit_reason(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


@contextlib.contextmanager
def _without_renderer() -> Iterator[None]:
    """Let dm_control be imported without OpenGL, and leave ``os.environ`` as it was."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = _NO_RENDERER
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if before is not None:
            os.environ["MUJOCO_GL"] = before


def find_task(task: str) -> tuple[str, str]:
    """``cup_catch`` -> ``("ball_in_cup", "catch")``, as ``suite.load`` wants it.

    Raises:
        UserError: there is no such task.
    """
    with _without_renderer():
        import dm_control.suite  # noqa: F401
    return _parse_task(task)


def _parse_task(task: str) -> tuple[str, str]:
    from dm_control import suite

    if task.startswith("lqr_"):
        raise UserError(f"{task} cannot be trained: it has no time limit and no action bounds")
    tasks = {f"{pair[0]}_{pair[1]}": pair for pair in suite.ALL_TASKS if pair[0] != "lqr"}
    for alias, domain in _DOMAIN_ALIASES.items():
        tasks |= {f"{alias}_{pair[1]}": pair for pair in tasks.values() if pair[0] == domain}
    if task not in tasks:
        hint = closest(task, list(tasks)) or "; a name is domain_task, such as walker_walk"
        raise UserError(f"unknown DeepMind Control task {task!r}{hint}")
    return tasks[task]


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """dm_control's own models make MuJoCo warn of deprecations, once per environment."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Environment:
    """One environment: ``suite.load`` plus action repeat and the choice of observation."""

    def __init__(self, settings: _Settings, seed: int) -> None:
        from dm_control import mujoco, suite

        domain, task = _parse_task(settings.task)
        self._settings = settings
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
            # Kept, since physics.render would allocate the scene anew for every frame (about 1 ms).
            size, camera = settings.image_size, _CAMERAS.get(domain, 0)
            self._camera = mujoco.Camera(self._env.physics, size, size, camera)

    @property
    def spaces(self) -> _Spaces:
        bounds = self._env.action_spec()
        low, high = bounds.minimum.astype(np.float32), bounds.maximum.astype(np.float32)
        action = gymnasium.spaces.Box(low, high, dtype=np.float32)
        if self._camera is not None:
            size = self._settings.image_size
            return gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8), action
        shape = self._env.observation_spec()["observations"].shape
        return gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32), action

    def reset(self) -> None:
        self._observations = self._env.reset().observation

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Repeat ``action`` (A,); returns the summed reward and whether the episode is over."""
        from dm_control.rl.control import PhysicsError

        reward = 0.0
        for _ in range(self._settings.frame_skip):
            try:
                timestep = self._env.step(action)
            except PhysicsError as error:
                # No reason to lose a run of many hours: begin the next episode.
                _log.warning("%s: the simulation diverged: %s", self._settings.task, error)
                return reward, True
            reward += timestep.reward
            if timestep.last():
                return reward, True
        self._observations = timestep.observation
        return reward, False

    def observe(self) -> np.ndarray:
        """What the agent sees now: (D,) float32 or (H, W, 3) uint8."""
        if self._camera is not None:
            return self._camera.render()
        return self._observations["observations"].astype(np.float32)

    def close(self) -> None:
        self._env.physics.free()


class _Group:
    """The n environments of one process."""

    def __init__(self) -> None:
        self._envs: list[_Environment] = []

    def make(self, settings: _Settings, seeds: list[int]) -> _Spaces:
        """Make one environment per seed; returns the spaces of each."""
        self._envs = [_Environment(settings, seed) for seed in seeds]
        return self._envs[0].spaces

    def reset(self) -> np.ndarray:
        """Returns the first observations (n, ...)."""
        for env in self._envs:
            env.reset()
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions (n, A) -> observations (n, ...), rewards (n,) float32, ended (n,) bool."""
        rewards = np.zeros(len(self._envs), np.float32)
        ended = np.zeros(len(self._envs), bool)
        for i, env in enumerate(self._envs):
            rewards[i], ended[i] = env.step(actions[i])
            if ended[i]:
                env.reset()
        return self._observe(), rewards, ended

    def _observe(self) -> np.ndarray:
        return np.stack([env.observe() for env in self._envs])

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _InProcess:
    """A group in the calling process, with the methods of ``_Worker``.

    A call runs in ``receive``, so that what was queued on a GPU after ``send`` goes on meanwhile.
    """

    def __init__(self) -> None:
        with _without_renderer():
            import dm_control.suite  # noqa: F401
        self._group = _Group()
        self._call: tuple[str, tuple[Any, ...]] | None = None

    def send(self, method: str, *arguments: Any) -> None:
        self._call = (method, arguments)

    def receive(self) -> Any:
        method, arguments = self._call
        return getattr(self._group, method)(*arguments)


# A worker begins with the parent's sys.path, then serves calls. Unlike the processes that
# multiprocessing spawns it does not import the parent's main script, which would load torch in each
# of them and fail where the script has no main guard.
_WORKER = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
from {module} import _serve
_serve(pipe)
"""


class _Worker:
    """The parent's end of a process that holds a group."""

    def __init__(self, renderer: str) -> None:
        self.pipe, child = multiprocessing.Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER.format(module=__name__), str(child.fileno())],
            pass_fds=(child.fileno(),),
            env=_process_environment(renderer),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        child.close()  # the worker has the only copy left, so its death is an end of file here
        self._send(sys.path)

    def send(self, method: str, *arguments: Any) -> None:
        """Start a call of a method of the worker's ``_Group``."""
        self._send((method, arguments))

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        """Wait for the call's result.

        Raises:
            UserError: the call raised one, or the process has died.
            RuntimeError: the call raised something else; holds the traceback.
        """
        try:
            error, result = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error is not None:
            raise error(result)
        return result

    def _death(self) -> UserError:
        _stop([self])
        reason = _exit_reason(self.process.returncode)
        return UserError(f"a process that runs environments has died: {reason}")


def _stop(workers: list[_Worker]) -> None:
    """A worker leaves when its pipe is closed, once it has finished the call at hand."""
    for worker in workers:
        worker.pipe.close()
    for worker in workers:
        try:
            worker.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _serve(pipe: Connection) -> None:
    """A worker's main loop: answer calls until the parent closes the pipe, or dies."""
    group = _Group()
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            pipe.send(_answer(getattr(group, method), arguments))
    # Here and not at the interpreter's shutdown, when OSMesa's contexts can no longer be freed.
    group.close()


def _answer(
    call: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[type[Exception] | None, Any]:
    """Returns no error and the result, or the error to raise in the parent and its text."""
    try:
        return None, call(*arguments)
    except UserError as error:
        return UserError, str(error)
    except Exception:
        return RuntimeError, "in a process that runs environments:\n" + traceback.format_exc()


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
        started: list[_Worker] = []
        # Runs in close, at exit, or when this object is dropped: whichever comes first.
        self._finalizer = weakref.finalize(self, _stop, started)
        self._groups: list[_InProcess | _Worker] = []
        if workers is None and num_envs == 1 and obs_type == "proprio":
            self._groups = [_InProcess()]
        else:
            renderer = working_renderer() if obs_type == "visual" else _NO_RENDERER
            for _ in range(min(num_envs, workers or _available_cpus())):
                started.append(_Worker(renderer))
            self._groups = list(started)
        settings = _Settings(task, obs_type, frame_skip, image_size)
        try:
            spaces = self._make(settings, env_seeds(seed, num_envs))
        except BaseException:
            self.close()
            raise
        self.observation_space, self.action_space = spaces

    def _make(self, settings: _Settings, seeds: np.ndarray) -> _Spaces:
        """Share the environments out; returns the spaces of each."""
        shares = np.array_split(seeds, len(self._groups))
        self._splits = np.cumsum([len(share) for share in shares])[:-1]
        for group, share in zip(self._groups, shares, strict=True):
            group.send("make", settings, share.tolist())
        spaces = [group.receive() for group in self._groups]
        return spaces[0]

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
        """
        results = [group.receive() for group in self._groups]
        obs, reward, ended = (np.concatenate(parts) for parts in zip(*results, strict=True))
        done = np.zeros(self.num_envs, bool)  # cut off, never in a final state
        return Step(obs, reward, done, ended, self._counter.add(reward, ended))

    def close(self) -> None:
        """Stop the workers; harmless when repeated."""
        self._finalizer()


def _available_cpus() -> int:
    # Containers and batch systems often grant fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    return {"name": basic.Protocol, "frame_skip": basic.FrameSkip, "obs_type": basic.ObsType}


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
