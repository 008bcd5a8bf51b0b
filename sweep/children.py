"""The commands that a sweep runs: how they are called, where they run, what they said last."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sweep.places import Places, child_environment
from sweep.run import Run

PR_SET_PDEATHSIG = 1  # prctl(2)
LOG_BYTES = 20_000
"""The last error is searched for in this many bytes at the end of a log."""
PROGRESS = re.compile(r"(step|episode)/s|s/(step|episode)|\?(step|episode)")
"""This pattern matches the line of a progress bar."""


@dataclass(frozen=True)
class Work:
    """What all runs of a sweep share.

    Attributes:
        token: random id that identifies this submission or this local sweep.
        root: folder of the repository.
    """

    sweep: str
    token: str
    places: Places
    root: Path
    device: str = "auto"
    logger: str = "none"
    keep: int | None = 1
    most_failures: int = 5


@dataclass(frozen=True)
class Slot:
    """The share of a machine that one run gets.

    Attributes:
        threads: number of threads of torch (where the config says 0) and of other libraries.
            0 means one per core.
        environ: environment variables of this slot, such as ``CUDA_VISIBLE_DEVICES``.
    """

    threads: int = 0
    environ: dict[str, str] = field(default_factory=dict)


def command(run: Run, work: Work, stage: str) -> list[str]:
    """Return the command line of ``train.py`` or ``eval.py`` of the run's domain."""
    script = work.root / f"pwm_{run.domain}" / f"{stage}.py"
    flags = ["-n", run.name, "-env_name", run.env_name, "-device", work.device]
    if stage == "train":  # eval.py takes the run's own config
        flags += ["-seed", str(run.seed), "-config_path", run.config]
        flags += [part for override in run.overrides for part in ("-set", override)]
        flags += ["-resume", "-logger", work.logger]
        flags += ["-keep", str(work.keep)] if work.keep else []
    return [sys.executable, "-u", "-O", str(script), *flags]


def environment(run: Run, work: Work, slot: Slot) -> dict[str, str]:
    """Return the child's environment. wandb groups the seeds of one task and variant.

    The slot comes before what is exported, so that runs side by side keep to their shares.
    """
    group = "-".join(part for part in (work.sweep, run.task, run.variant) if part)
    wandb = {"WANDB_RUN_GROUP": group, "WANDB_TAGS": work.sweep}
    threads = {"OMP_NUM_THREADS": str(slot.threads)} if slot.threads else {}
    return {**wandb, **os.environ, **threads, **slot.environ, **child_environment(work.places)}


def before_exec() -> Callable[[], None]:
    """Return the function that the child calls before it becomes the command.

    Slurm sends its warning (SIGUSR2) to every process of a job, and its default is to end the
    process: the child ignores it, and gets SIGTERM from the supervisor instead. Where the
    supervisor is killed, the kernel sends the child SIGTERM.
    """
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def start(run: Run, work: Work, slot: Slot, stage: str) -> subprocess.Popen[bytes]:
    """Start a stage of ``run``; what it prints is appended to the run's log."""
    path = work.places.log(run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        return subprocess.Popen(
            command(run, work, stage),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(run, work, slot),
            cwd=work.root,
            start_new_session=True,  # the supervisor handles Ctrl-C
            preexec_fn=before_exec(),  # the supervisor has one thread
        )


def last_error(log: Path, offset: int, status: int) -> str:
    """Return the line that best explains why a command failed.

    It is the signal that killed it, else its last ``error:`` line, else its last line.
    """
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    try:
        with open(log, "rb") as file:
            file.seek(max(offset, os.fstat(file.fileno()).st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in re.split(r"[\r\n]", text)]
    lines = [line for line in lines if line and not PROGRESS.search(line)]
    named = [line for line in lines if line.startswith("error: ")]
    return (named or lines or [f"exit status {status}"])[-1][:300]


def trained_elsewhere(line: str) -> bool:
    """Whether ``train.py`` ended with ``line`` because another process trains the run."""
    return "is being trained by" in line


def looks_like(status: int, line: str) -> str:
    """Return a failure's text without its numbers, so that equal failures look the same."""
    return f"{status}: {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', line)}"
