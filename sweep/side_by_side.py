"""How many runs pay side by side on one device, measured before a sweep begins.

One run leaves a large GPU idle most of the time: it waits for its environment, and its kernels are
small. Several runs share the device, until the sum of their steps per second no longer grows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pwm_core.config import Config
from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE
from sweep.children import Slot, Work, before_exec, command, environment
from sweep.places import Places
from sweep.run import Run

COUNTS = (1, 2, 4, 6)
"""Numbers of runs that are tried."""
GAIN = 1.1
"""More runs pay if the sum of their steps per second grows at least by this factor."""
LOG_EVERY = 10
SKIPPED, STEPS = 50, 200
"""Steps of each run before the measurement (compilation, capture, caches), and in it."""
PATIENCE = 1800.0
"""Seconds after which a measurement is given up."""
END_PATIENCE = 60.0
"""Seconds that trial runs get to end by themselves."""
MPS = "nvidia-cuda-mps-control"

Course = list[tuple[int, float]]
"""Steps of a run, and the time in seconds at which each was there."""


def choose(total: Callable[[int], float], most: int, say: Callable[[str], None] = print) -> int:
    """Try growing numbers of runs until another does not pay, or does not fit.

    Args:
        total: (number of runs) -> the sum of their steps per second.
        most: largest number to try.
        say: prints a line.

    Raises:
        UserError: not even one run works.
    """
    best, reached = 1, 0.0
    for count in [count for count in COUNTS if count <= most] or [1]:
        try:
            found = total(count)
        except UserError as error:
            if count == 1:
                raise
            say(f"{count} side by side do not work: {error}")
            break
        say(f"{count} side by side: {found:.1f} steps/s together")
        if found < GAIN * reached:
            break
        best, reached = count, found
    return best


def together(courses: list[Course]) -> float:
    """The sum of the steps per second while all runs were at work.

    Raises:
        UserError: there was no such time.
    """
    begin = max(course[0][1] for course in courses)
    end = min(course[-1][1] for course in courses)
    if end <= begin:
        raise UserError("the runs were not at work at the same time: too few steps to measure")
    return sum(_reached(course, end) - _reached(course, begin) for course in courses) / (
        end - begin
    )


def _reached(course: Course, moment: float) -> float:
    """The steps of a run at a time within it, interpolated."""
    for (step, before), (later, after) in pairwise(course):
        if before <= moment <= after:
            return step + (later - step) * (moment - before) / max(after - before, 1e-9)
    return float(course[-1][0])


@dataclass(frozen=True)
class Trial:
    """What is measured: short trainings of one of the sweep's runs.

    Attributes:
        run, config: the run and its resolved config.
        work: of the sweep.
        slot: of each training.
    """

    run: Run
    config: Config
    work: Work
    slot: Slot

    def total(self, count: int) -> float:
        """The steps per second of ``count`` trainings side by side.

        Raises:
            UserError: one of them failed; the message holds the end of its output.
        """
        with tempfile.TemporaryDirectory(prefix="pamorl-") as folder:
            processes: list[subprocess.Popen[bytes]] = []
            try:
                for index in range(count):
                    processes.append(self._start(index, Path(folder)))
                return together(self._watch(processes, Path(folder)))
            finally:
                _end(processes)

    def _overrides(self) -> tuple[str, ...]:
        settings = self.config.JointTrainAgent
        warm = (settings.BatchLength + 1) * settings.NumEnvs
        length = warm + self.first * settings.NumEnvs + 100 * STEPS * settings.NumEnvs
        changes = {"SampleMaxSteps": length, "BufferWarmUp": warm, "LogEverySteps": LOG_EVERY}
        changes |= {"SaveEverySteps": 10 * length, "VideoLogStep": 10 * length}
        return tuple(f"JointTrainAgent.{key}={value}" for key, value in changes.items())

    @property
    def first(self) -> int:
        """Steps of each environment before the measurement."""
        return self.config.JointTrainAgent.BatchLength + 1 + SKIPPED

    def _start(self, index: int, folder: Path) -> subprocess.Popen[bytes]:
        overrides = (*self.run.overrides, *self._overrides())
        run = replace(self.run, name=f"measure-{index}", overrides=overrides)
        work = replace(self.work, logger="none")
        environ = environment(run, work, self.slot) | {LOGDIR_VARIABLE: str(folder)}
        with open(folder / f"{index}.log", "wb") as log:
            return subprocess.Popen(
                command(run, work, "train"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environ, cwd=self.work.root, preexec_fn=before_exec(),
                start_new_session=True,  # Ctrl-C is for the sweep, which ends them
            )  # fmt: skip

    def _watch(self, processes: list[subprocess.Popen[bytes]], folder: Path) -> list[Course]:
        """The courses of all runs, each until all have taken the steps of the measurement."""
        envs = self.config.JointTrainAgent.NumEnvs
        first, last = self.first * envs, (self.first + STEPS) * envs
        courses: list[Course] = [[] for _ in processes]
        limit = time.monotonic() + PATIENCE
        while any(not course or course[-1][0] < last for course in courses):
            time.sleep(0.02)
            for index, (process, course) in enumerate(zip(processes, courses, strict=True)):
                if process.poll() is not None:
                    text = (folder / f"{index}.log").read_text(errors="replace").strip()
                    raise UserError(f"a trial run ended early: {text.splitlines()[-1:]}")
                if time.monotonic() > limit:
                    raise UserError(f"a trial run has taken more than {PATIENCE:.0f} s")
                step = _last_step(folder / "ckpt" / f"measure-{index}" / "metrics.jsonl")
                if step >= first and (not course or step > course[-1][0]):
                    course.append((step, time.monotonic()))
        return courses


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let all processes end by themselves, and kill those that do not.

    A process that is killed while its kernels run can leave the multi-process service, which it
    shares with others, in no state that NVIDIA defines.
    """
    for process in processes:
        process.terminate()
    limit = time.monotonic() + END_PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_step(metrics: Path) -> int:
    """The step of the last whole line of training metrics, 0 where there is none."""
    try:
        lines = metrics.read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    trained = (json.loads(line) for line in reversed(lines))
    return next((int(record["step"]) for record in trained if "frames" in record), 0)


def shared_caches(places: Places) -> dict[str, str]:
    """Environment variables with which all runs share what torch and Triton have compiled."""
    folder = places.records.parent / "compiled"
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


def service_folder(sweep: Path) -> Path:
    """The folder of the multi-process service of one sweep.

    Its name is short, because sockets allow 108 characters, and it is on this machine's own disk.

    Args:
        sweep: the sweep's folder. A lock sees to it that one process at a time runs the sweep.
    """
    name = hashlib.sha256(os.fsencode(sweep.resolve())).hexdigest()[:12]
    return Path("/tmp") / f"pamorl-mps-{os.getuid()}-{name}"


# A service keeps the pipes open that it inherits, so its output is not read.
_QUIETLY: dict[str, Any] = {
    "check": True, "timeout": 30, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL
}  # fmt: skip


def _order(text: str, environ: dict[str, str]) -> bool:
    """Give the running service an order; whether it answers."""
    try:
        subprocess.run([MPS], input=f"{text}\n".encode(), env=environ, **_QUIETLY)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@contextlib.contextmanager
def multi_process_service(
    folder: Path, say: Callable[[str], None] = print
) -> Iterator[dict[str, str]]:
    """NVIDIA's multi-process service, with which kernels of several processes run at once.

    One that a killed sweep has left in the folder is used, and ended like any other.

    Args:
        folder: for its pipe and its logs; see :func:`service_folder`.
        say: prints a line.

    Yields:
        the environment variables of its clients; none where the driver does not have it, or where
        one is running already.
    """
    if shutil.which(MPS) is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield {}
        return
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    # The service would count only the visible devices, and from 0; its clients choose theirs.
    environ = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | own
    try:
        yield own if _start_service(folder, environ, say) else {}
    finally:
        _order("quit", environ)


def _start_service(folder: Path, environ: dict[str, str], say: Callable[[str], None]) -> bool:
    """Start the service, or find that it runs already; whether it can be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run([MPS, "-d"], env=environ, stdin=subprocess.DEVNULL, **_QUIETLY)
    except (OSError, subprocess.SubprocessError) as error:
        if not _order("get_server_list", environ):
            say(f"note: the multi-process service does not start ({error}); runs take turns")
            return False
    return True
