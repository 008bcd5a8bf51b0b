"""The runs of a sweep on one machine, N at a time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence

from pwm_core.errors import UserError
from pwm_core.signals import StoppedError
from sweep.children import Slot, Work
from sweep.places import Places, write_json
from sweep.records import take_lock
from sweep.schema import Resources, Sweep
from sweep.states import RunState, counts, local_lock, local_process, to_start
from sweep.supervisor import Supervisor


def find_gpus() -> list[str]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` may name on this machine."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(index) for index in range(count)] if done.returncode == 0 else []


def make_slots(resources: Resources) -> list[Slot]:
    """Return one slot per parallel run.

    Each slot gets an equal share of this process's cores, and one of the GPUs in turn.
    """
    gpus = [] if resources.device == "cpu" else find_gpus()
    cores = len(os.sched_getaffinity(0))
    count = resources.side_by_side or len(gpus) or max(1, cores // 2)
    return [
        Slot(
            threads=max(1, cores // count),
            environ={"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {},
        )
        for index in range(count)
    ]


def run_here(sweep: Sweep, look: Callable[[], Sequence[RunState]], work: Work) -> None:
    """Work on what is missing or failed until all have ended.

    Args:
        look: returns the states of the runs. It is called when no other process runs this sweep.

    Raises:
        StoppedError: a signal ended it; the same command continues it.
        UserError: another process runs this sweep here already, or runs failed.
    """
    places = work.places
    lock = take_lock(local_lock(places, sweep.name))
    if lock is None:
        about = local_process(places, sweep.name)
        raise UserError(
            f"sweep {sweep.name} is being run already, by process {about.get('process', '?')} on "
            f"{about.get('host', '?')}; --status shows how far it is"
        )
    with lock:
        host, process = socket.gethostname(), os.getpid()
        about = {"host": host, "process": process, "token": work.token}
        file = places.sweep(sweep.name) / "local.json"
        write_json(file, about | {"runs": []})  # not those of the process before
        states = look()
        runs = to_start(states)
        print(f"{len(states)} runs: {counts(states)}; starting {len(runs)}", flush=True)
        if not runs:
            return
        write_json(file, about | {"runs": [run.name for run in runs]})
        slots = make_slots(sweep.resources)
        share = f"{slots[0].threads} threads" + (" on a GPU" if slots[0].environ else "")
        print(f"{len(slots)} at a time with {share} each", flush=True)
        supervisor = Supervisor(runs, work, slots, where=f"{host}, process {process}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop(tell=True))
        outcome = supervisor.run()
    if supervisor.stopping and outcome.left:
        raise StoppedError(f"stopped: {len(outcome.left)} runs are left; the same command goes on")
    if outcome.failed:
        raise UserError(f"failed: {', '.join(outcome.failed)}; see {places.runs / 'logs'}")


def cancel(places: Places, sweep: str) -> int | None:
    """Ask the process that runs the sweep on this machine to stop, and return its id or None.

    Raises:
        UserError: it runs on another machine.
    """
    about = local_process(places, sweep)
    if not about:
        return None
    process, host = int(about["process"]), about["host"]
    if host != socket.gethostname():
        raise UserError(f"sweep {sweep} is run on {host}: stop process {process} there")
    os.kill(process, signal.SIGTERM)
    return process
