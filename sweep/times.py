"""How long a run was trained: one line per training process in the run's folder.

A line holds the step that the process continued from, the newest step that the run could continue
from when the process ended, and the seconds between.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from sweep.places import Places

FILE = "times"


@dataclass(frozen=True)
class Trained:
    """Seconds of training, and the step that was reached in them."""

    seconds: int
    step: int


def note(places: Places, run: str, first: int, seconds: float) -> None:
    """Add the line of a process that continued from the step ``first`` and has ended."""
    folder = places.run(run)
    if folder.is_dir():
        last = max([0, *places.checkpoints(run)])
        with contextlib.suppress(OSError), open(folder / FILE, "a", encoding="utf-8") as file:
            file.write(f"{first} {last} {max(1, round(seconds))}\n")


def note_lost(places: Places, run: str, first: int, began: float) -> None:
    """Add the line of a process whose supervisor died, up to the last line of its metrics.

    Args:
        began: when the process began, in seconds since 1970.
    """
    with contextlib.suppress(OSError):
        ended = (places.run(run) / "metrics.jsonl").stat().st_mtime
        if ended > began:
            note(places, run, first, ended - began)


def trained(places: Places, run: str) -> Trained | None:
    """How long the run was trained.

    Returns:
        None where it is not known: a line is missing or damaged, or a ``train.py`` that no sweep
        started made some of the steps.
    """
    reached = seconds = 0
    try:
        for line in (places.run(run) / FILE).read_text(encoding="utf-8").splitlines():
            first, last, took = map(int, line.split())
            if first > reached:
                return None
            reached, seconds = max(reached, last), seconds + took
    except (OSError, ValueError):
        return None
    return Trained(seconds, reached) if reached else None
