"""The current state of each run of a sweep."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.places import Places, last_metrics, read_json
from sweep.records import Record, Records, lock_is_held
from sweep.run import Run
from sweep.slurm import Queued, in_queue

STATES = ("running", "queued", "failed", "stopped", "not started", "done")
TO_START = ("failed", "stopped", "not started")
"""Repeating the sweep command starts runs in these states."""


@dataclass(frozen=True)
class RunState:
    """One row of the status.

    Attributes:
        state: one of :data:`STATES`.
        step: agent steps done.
        rate: agent steps a second, while training.
        last_return: return of the newest episode.
        seconds_left: estimated seconds until training ends.
        note: where the run works, why it waits, or why it failed.
    """

    run: Run
    state: str
    step: int = 0
    rate: float | None = None
    last_return: float | None = None
    seconds_left: float | None = None
    note: str = ""


def counts(states: Sequence[RunState]) -> str:
    """Return the number of runs in each state, such as ``3 running, 1 failed, 28 done``."""
    found = Counter(state.state for state in states)
    return ", ".join(f"{found[name]} {name}" for name in STATES if found[name])


def to_start(states: Sequence[RunState]) -> list[Run]:
    """Return the runs that repeating the sweep command starts."""
    return [state.run for state in states if state.state in TO_START]


def local_lock(places: Places, sweep: str) -> Path:
    """Return the path of the lock that the process of a local sweep holds."""
    return places.sweep(sweep) / "local.lock"


def local_process(places: Places, sweep: str) -> dict[str, Any]:
    """The process that runs the sweep on one machine: its runs, token, host and process id; empty
    where there is none."""
    if not lock_is_held(local_lock(places, sweep)):
        return {}
    return read_json(places.sweep(sweep) / "local.json")


class Observer:
    """Looks at runs; made anew for every look.

    Args:
        jobs: the jobs in Slurm's queue.
        sweep: name of the sweep, whose local process may have runs that wait.
    """

    def __init__(self, places: Places, jobs: dict[str, Queued], sweep: str) -> None:
        self.places, self.jobs = places, jobs
        self.records = Records(places)
        self._local = local_process(places, sweep)

    def states(self, runs: Sequence[Run]) -> list[RunState]:
        """Return the states of all ``runs``, in their order."""
        return [self.state(run) for run in runs]

    def state(self, run: Run) -> RunState:
        """Return the state of ``run``."""
        if self.places.done(run.name, run.steps):
            return self._seen(run, "done")
        record = self.records.read(run.name)
        if self.records.claimed(run.name):
            return self._running(run, record)
        ticket = self.records.ticket(run.name)
        job = in_queue(ticket, self.jobs)
        over = record.state == "failed" and ticket and record.token == ticket.token
        if job and not over:
            note = f"Slurm job {ticket.job} {job.state.lower()}" if ticket else ""
            waits = f": {job.reason}" if job.reason not in ("None", "") else ""
            return self._seen(run, "queued", note + waits)
        over = record.state == "failed" and record.token == self._local.get("token")
        if run.name in self._local.get("runs", []) and not over:
            return self._seen(run, "queued", "waits for its turn")
        if record.state == "failed":
            log = self.places.log(run.name)
            return self._seen(run, "failed", f"{record.stage}: {record.error} (log: {log})")
        began = record.state in ("running", "stopped")
        return self._seen(run, "stopped" if began else "not started", record.error)

    def _seen(self, run: Run, state: str, note: str = "") -> RunState:
        step, last_return = self._progress(run)
        if state == "done":
            step = max(step, run.steps)
        return RunState(run, state, step, last_return=last_return, note=note)

    def _progress(self, run: Run) -> tuple[int, float | None]:
        """The newest step in the metrics, and the newest episode's return."""
        step, value = 0, None
        for record in last_metrics(self.places.run(run.name) / "metrics.jsonl"):
            step = max(step, int(record["step"]))
            rewards = [record[key] for key in record
                       if key.startswith("Rollout/") and key.endswith("_reward")]  # fmt: skip
            if rewards:
                value = rewards[0]
                break
        return step, value

    def _running(self, run: Run, record: Record) -> RunState:
        step, last_return = self._progress(run)
        where = f"{record.stage} on {record.where}"
        rate = left = None
        if record.stage == "train":
            rate = self._rate(run, record, step)
            left = (run.steps - step) / rate if rate else None
        return RunState(run, "running", step, rate, last_return, left, where)

    def _rate(self, run: Run, record: Record, step: int) -> float | None:
        """Steps a second since the training process began, up to its newest line of metrics."""
        try:
            seconds = os.stat(self.places.run(run.name) / "metrics.jsonl").st_mtime - record.began
        except OSError:
            return None
        done = step - record.began_step
        return done / seconds if done > 0 and seconds > 0 else None
