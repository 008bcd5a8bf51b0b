"""Trains, evaluates and collects runs, a number of them side by side, in child processes.

The same supervisor works on one machine and inside a Slurm job. It calls the project's own
commands. It finds out what is left to do for a run from the files of the run alone.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from pwm_core.errors import UserError
from pwm_core.signals import STOPPED
from sweep import times
from sweep.children import (
    Slot,
    Work,
    last_error,
    looks_like,
    start,
    trained_elsewhere,
)
from sweep.collect import collect
from sweep.records import Record, Records
from sweep.run import Run

PAUSE = 0.1
"""Seconds between two looks at the children."""
RETRY_PAUSE = 2.0
"""Seconds to wait per failure so far before a run is tried again."""
MOST_STALLS = 10
"""Times in a row that a run may be stopped without a new checkpoint, as by a time limit that is
shorter than its start."""
STRAY_PAUSE = 2.0
"""When a signal ends a child, the same signal may reach the supervisor up to this many seconds
later."""


@dataclass
class Waiting:
    """A run that waits to be started, at ``not_before`` or later."""

    run: Run
    not_before: float = 0.0
    busy_since: float | None = None


@dataclass
class Active:
    """A run at work in a slot."""

    run: Run
    slot: Slot
    claim: BinaryIO
    record: Record
    stage: str = ""
    process: subprocess.Popen[bytes] | None = None
    offset: int = 0
    told: int = 0
    ended: float | None = None
    busy_since: float | None = None


@dataclass
class Outcome:
    """The names of the runs, by how they ended."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Supervisor:
    """Works on runs until all are done or given up, or :meth:`stop` is called.

    Args:
        runs: the runs in the order of their start.
        work: settings that all runs share.
        slots: one slot per parallel run.
        where: host and process, or Slurm job, for the records.
        busy_wait: seconds to wait for a run that another process works on.
        say: prints a line.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        work: Work,
        slots: Sequence[Slot],
        *,
        where: str,
        busy_wait: float = 20.0,
        say: Callable[[str], None] = lambda text: print(text, flush=True),
    ) -> None:
        self.work, self.where, self.busy_wait, self.say = work, where, busy_wait, say
        self.records = Records(work.places)
        self.outcome = Outcome()
        self._waiting = [Waiting(run) for run in runs]
        self._free = list(slots)
        self._active: list[Active] = []
        self._stopping, self._tells = False, 0

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping

    def stop(self, *, tell: bool) -> None:
        """Start nothing more, and wait for what runs. May be called by a signal handler.

        Args:
            tell: send SIGTERM to the children. A second call sends another, which ends them at
                once. False: the batch system signals them itself.
        """
        self._stopping = True
        self._tells += tell

    def run(self) -> Outcome:
        """Work until nothing is left, or until stopped."""
        while self._active or (self._waiting and not self.stopping):
            if self.stopping:
                self._tell_children()
            else:
                self._start_waiting()
            for active in list(self._active):
                self._look(active)
            time.sleep(PAUSE)
        self.outcome.left += [waiting.run.name for waiting in self._waiting]
        return self.outcome

    def _tell_children(self) -> None:
        for active in self._active:
            if active.told < self._tells and active.process is not None:
                active.told = self._tells
                with contextlib.suppress(ProcessLookupError):
                    active.process.send_signal(signal.SIGTERM)

    # ---------------------------------------------------------------------------- starting

    def _start_waiting(self) -> None:
        now = time.monotonic()
        for waiting in list(self._waiting):
            if not self._free:
                return
            if waiting.not_before <= now:
                self._waiting.remove(waiting)
                self._begin(waiting)

    def _begin(self, waiting: Waiting) -> None:
        """Claim the run and begin with what is left to do of it."""
        name = waiting.run.name
        try:
            claim = self.records.claim(name)
        except OSError as error:
            self.outcome.failed.append(name)
            self.say(f"{name}: {error.filename}: {error.strerror}")
            return
        if claim is None:
            self._busy(waiting)
            return
        record = self.records.read(name)
        if record.state == "running" and record.stage == "train":  # its supervisor has died
            times.note_lost(self.work.places, name, record.began_step, record.began)
        if record.token != self.work.token:
            record = Record(token=self.work.token)
        elif record.state == "failed":  # it failed before this job was queued again
            claim.close()
            self.outcome.failed.append(name)
            return
        record.sweep, record.where = self.work.sweep, self.where
        active = Active(waiting.run, self._free.pop(0), claim, record)
        active.busy_since = waiting.busy_since
        self._active.append(active)
        self._next(active)

    def _busy(self, waiting: Waiting) -> None:
        """Another process works on the run: look again in a while, or leave it to that one."""
        now = time.monotonic()
        since = now if waiting.busy_since is None else waiting.busy_since
        if now - since >= self.busy_wait:
            self.outcome.elsewhere.append(waiting.run.name)
            self.say(f"{waiting.run.name}: another process works on it, which is left to go on")
        else:
            self._waiting.append(Waiting(waiting.run, now + RETRY_PAUSE, since))

    def _next(self, active: Active) -> None:
        """Begin the first stage of the run that is not done."""
        stage = next_stage(active.run, self.work)
        if stage == active.stage:
            self._failed(active, 0, f"{stage} ended well, but what it makes is not there")
        elif stage == "done":
            self._done(active)
        elif self.stopping:
            self._leave(active)
        elif stage == "collect":
            self._collect(active)
        else:
            self._start(active, stage)

    def _start(self, active: Active, stage: str) -> None:
        log = self.work.places.log(active.run.name)
        active.offset = log.stat().st_size if log.exists() else 0
        active.stage, active.ended = stage, None
        steps = self.work.places.points(active.run.name)
        active.record.state, active.record.stage = "running", stage
        active.record.began, active.record.began_step = time.time(), steps[-1] if steps else 0
        self.records.write(active.run.name, active.record)
        try:
            active.process = start(active.run, self.work, active.slot, stage)
        except (OSError, subprocess.SubprocessError) as error:
            self._failed(active, 1, f"{stage} cannot be started: {error}")
            return
        verb = f"goes on from step {steps[-1]}" if stage == "train" and steps else stage
        self.say(f"{active.run.name}: {verb} (log: {log})")

    def _collect(self, active: Active) -> None:
        active.stage = "collect"
        try:
            collect(active.run.name, self.work.places)
        except (UserError, OSError) as error:
            self._failed(active, 2, f"error: {error}")
            return
        self._next(active)

    # ---------------------------------------------------------------------------- ending

    def _look(self, active: Active) -> None:
        """See whether the child has ended, and how."""
        status = active.process.poll() if active.process else None
        if status is None:
            return
        stray = status in (STOPPED, -signal.SIGTERM)
        if stray and not self.stopping:  # the signal that ended it may be on its way here too
            active.ended = active.ended or time.monotonic()
            if time.monotonic() - active.ended < STRAY_PAUSE:
                return
        active.process = None
        name, places, record = active.run.name, self.work.places, active.record
        line = last_error(places.log(name), active.offset, status) if status else ""
        if active.stage == "train" and not trained_elsewhere(line):
            times.note(places, name, record.began_step, time.time() - record.began)
        if status == 0:
            self._next(active)
        elif self.stopping:
            self._leave(active)
        else:
            self._failed(active, status, line)

    def _release(self, active: Active) -> None:
        self.records.write(active.run.name, active.record)
        active.claim.close()
        self._active.remove(active)
        self._free.append(active.slot)

    def _done(self, active: Active) -> None:
        began = bool(active.stage)
        active.record.state, active.record.error = "done", ""
        self.outcome.done.append(active.run.name)
        self._release(active)
        self.say(f"{active.run.name}: done{'' if began else ' already'}")

    def _leave(self, active: Active) -> None:
        """Record that the run was stopped. It continues in another process."""
        record, points = active.record, self.work.places.points(active.run.name)
        reached = points[-1] if points else 0
        record.stalls = record.stalls + 1 if reached == record.stalled_at else 0
        record.stalled_at, record.state = reached, "stopped"
        left = self.outcome.left
        if record.stalls >= MOST_STALLS:
            record.state, left = "failed", self.outcome.failed
            record.error = f"stopped {MOST_STALLS} times without a checkpoint after step {reached}"
            self.say(f"{active.run.name}: given up: {record.error}; a longer time limit may help")
        left.append(active.run.name)
        self._release(active)

    def _failed(self, active: Active, status: int, line: str) -> None:
        """Try again, unless it has failed too often or twice in the same way."""
        if trained_elsewhere(line):  # by a train.py outside any sweep
            active.record.state = "stopped"
            self._release(active)
            self._busy(Waiting(active.run, busy_since=active.busy_since))
            return
        record, places = active.record, self.work.places
        reached = max([0, *places.checkpoints(active.run.name)])
        failure = {"stage": active.stage, "step": reached, "looks": looks_like(status, line)}
        new = record.failures[-1:] != [failure]
        record.failures.append(failure)
        again = new and len(record.failures) < self.work.most_failures and not self.stopping
        record.state, record.error = ("stopped" if again else "failed"), line
        self._release(active)
        name = active.run.name
        self.say(f"{name}: {active.stage} failed: {line} (log: {places.log(name)})")
        if again:
            pause = RETRY_PAUSE * len(record.failures)
            self._waiting.append(Waiting(active.run, time.monotonic() + pause))
        else:
            self.outcome.failed.append(name)
            self.say(f"{name}: given up after {len(record.failures)} failures")


def next_stage(run: Run, work: Work) -> str:
    """Return the first of ``train``, ``eval`` and ``collect`` that is not done, else ``done``."""
    places = work.places
    if not places.scored(run.name, run.steps):
        return "eval" if places.trained(run.name, run.steps) else "train"
    return "done" if places.collected(run.name) else "collect"
