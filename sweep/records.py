"""The records of a sweep's runs, and the locks that show which process works on a run.

A run's *claim* is a file lock that the process at work holds; the kernel releases it when that
process ends, however it ends. Its *record* says what that process did last. Its *ticket* says in
which Slurm job it waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from sweep.places import Places, read_json, write_json

PROBES, PROBE_PAUSE = 5, 0.02
"""A claim is tried this many times, because checking a lock holds it for a moment."""


ENDED = ("done", "failed")
"""States of runs that nothing is left to do of."""


@dataclass
class Record:
    """The last known state of a run.

    Attributes:
        state: ``running``, ``stopped``, ``failed``, ``elsewhere`` or ``done``.
        stage: ``train``, ``eval`` or ``collect``.
        token: id of the submission or the local sweep that wrote the record.
        began: when the stage began, seconds since 1970.
        began_step: the step that training continued from.
        error: the last error line.
        failures: every failure of this token: what it looked like, and the step it got to.
        stalls: times in a row that the run was stopped at ``stalled_at``, its newest checkpoint.
    """

    state: str = ""
    stage: str = ""
    sweep: str = ""
    token: str = ""
    where: str = ""
    began: float = 0.0
    began_step: int = 0
    error: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list)
    stalls: int = 0
    stalled_at: int = -1


@dataclass(frozen=True)
class Ticket:
    """A run's place in Slurm's queue; ``token`` is part of the job's name."""

    sweep: str
    job: str
    token: str


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {key: value for key, value in content.items() if key in names}


class Records:
    """The records of all runs of all sweeps, in one folder."""

    def __init__(self, places: Places) -> None:
        self.folder = places.records

    def read(self, run: str) -> Record:
        """The record of ``run``; an empty one where there is none."""
        return Record(**_known(Record, read_json(self.folder / f"{run}.json")))

    def write(self, run: str, record: Record) -> None:
        """Replace the record of ``run``. A disk that is full does not end a training."""
        with contextlib.suppress(OSError):
            write_json(self.folder / f"{run}.json", asdict(record))

    def ticket(self, run: str) -> Ticket | None:
        """The ticket of ``run``, if it has had one."""
        content = read_json(self.folder / f"{run}.ticket.json")
        return Ticket(**_known(Ticket, content)) if content else None

    def tickets(self) -> dict[str, Ticket]:
        """The tickets of all runs that have had one."""
        end = ".ticket.json"
        names = (path.name.removesuffix(end) for path in sorted(self.folder.glob(f"*{end}")))
        found = {name: self.ticket(name) for name in names}
        return {name: ticket for name, ticket in found.items() if ticket}

    def give_ticket(self, run: str, ticket: Ticket) -> None:
        """Replace the ticket of ``run``."""
        write_json(self.folder / f"{run}.ticket.json", asdict(ticket))

    def claim(self, run: str) -> BinaryIO | None:
        """The claim of ``run``, to be closed when its work is done; None: another holds it."""
        return take_lock(self.folder / f"{run}.lock")

    def claimed(self, run: str) -> bool:
        """Whether some process works on ``run`` at this moment."""
        return lock_is_held(self.folder / f"{run}.lock")


def take_lock(path: Path) -> BinaryIO | None:
    """The open file, locked until it is closed; None where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by who asked for it
    for _ in range(PROBES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PROBE_PAUSE)
        else:
            return file
    file.close()
    return None


def lock_is_held(path: Path) -> bool:
    """Whether a process holds the lock; makes no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait until the lock at ``path`` is free, and hold it in the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
