"""Helpers for tests of other processes. Workers import this module, so it imports little."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pwm_core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Account:
    """The object that the workers of ``test_workers.py`` hold."""

    def __init__(self) -> None:
        self.balance = 0

    def add(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def wait(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def process(self) -> tuple[int, list[str], dict[str, str]]:
        """Process id, the modules it has imported, its environment variables."""
        return os.getpid(), list(sys.modules), dict(os.environ)

    def refuse(self, reason: str) -> None:
        raise UserError(reason)

    def leave(self, status: int) -> None:
        sys.exit(status)

    def close(self) -> None:
        os.write(1, f"closed {self.balance}\n".encode())  # one write: lines of two never mix


def broken_account() -> Account:
    raise ValueError("out of money")


def clean_environment(**variables: str) -> dict[str, str]:
    """Environment variables that find this project and choose no renderer."""
    rendering = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {k: v for k, v in os.environ.items() if k not in rendering}
    return environment | {"PYTHONPATH": str(ROOT), **variables}


def run_script(body: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` in a fresh interpreter, as a user's script would run."""
    return subprocess.run(
        [sys.executable, "-O", "-c", body],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


SLEEP = """
import time
try:
    print("asleep", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pass
"""


def start_script(body: str) -> subprocess.Popen[str]:
    """Start ``body`` in a fresh interpreter that heads a process group, as a shell would."""
    return subprocess.Popen(
        [sys.executable, "-c", body],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan that nobody has collected yet


def all_leave(pids: Iterable[int], seconds: float = 10) -> bool:
    """Whether the processes leave within ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Fail if the body takes longer; nothing in the project catches the error."""

    def ring(*_: object) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
