"""What runs inside a Slurm job: a supervisor of one or several runs, and the way back into the
queue.

Slurm warns with SIGUSR2 some time before the limit (and before a preemption, where the cluster sets
``preempt_send_user_signal``): the runs write checkpoints, and the job is queued again through
submitit. SIGTERM comes with ``scancel``, ``scontrol requeue`` and a preemption without warning;
Slurm sends it to every process of the job, so the runs have it already.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import Checkpointable

from sweep.children import Slot, Work
from sweep.run import Run
from sweep.supervisor import Outcome, Supervisor

BUSY_WAIT = 300.0
"""Seconds that a job waits for the process that it stands in for, as after a node's failure."""


def make_slots(count: int, cpus: int) -> list[Slot]:
    """Return one slot per run. Slots share the job's GPUs evenly and have ``cpus`` threads each."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    slots = []
    for index in range(count):
        gpu = {"CUDA_VISIBLE_DEVICES": visible[index % len(visible)]} if visible else {}
        slots.append(Slot(threads=cpus, environ=gpu))
    return slots


class SlurmJob(Checkpointable):
    """Several runs side by side in one Slurm job; submitit's callable.

    Args:
        runs: the runs, which all start at the same time.
        cpus: number of threads of each run.
    """

    def __init__(self, runs: tuple[Run, ...], work: Work, cpus: int) -> None:
        self.runs, self.work, self.cpus = runs, work, cpus

    def __call__(self) -> dict[str, list[str]]:
        """Work until all runs have ended, or the job is queued again."""
        environment = JobEnvironment()
        supervisor = Supervisor(
            self.runs,
            self.work,
            make_slots(len(self.runs), self.cpus),
            where=f"{socket.gethostname()}, Slurm job {environment.job_id}",
            busy_wait=BUSY_WAIT,
        )
        warning = environment._usr_sig()
        queue_again = signal.getsignal(warning)  # submitit's: it never returns
        signal.signal(warning, lambda *_: supervisor.stop(tell=True))
        signal.signal(signal.SIGTERM, lambda *_: supervisor.stop(tell=False))
        outcome = supervisor.run()
        if outcome.left and self._still_ours(environment.job_id):
            self._queue_again(queue_again, warning)
        return _summary(outcome)

    def _still_ours(self, job: str) -> bool:
        """Whether Slurm takes this job for a running one: neither cancelled nor queued again."""
        command = ["squeue", "--noheader", "--format=%T", "--jobs", job]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return True
        return answer.returncode != 0 or answer.stdout.strip() == "RUNNING"

    def _queue_again(self, handler: Callable[[int, Any], Any], number: int) -> None:
        print("the runs are saved; the job is queued again", flush=True)
        handler(number, None)


def _summary(outcome: Outcome) -> dict[str, list[str]]:
    for kind in ("failed", "elsewhere", "left"):
        if names := getattr(outcome, kind):
            print(f"{kind}: {', '.join(names)}", flush=True)
    return vars(outcome)
