"""The runs of a sweep on one machine, N at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from pwm_core.errors import UserError
from pwm_core.signals import StoppedError
from sweep.children import Slot, Work
from sweep.places import Places, read_json, write_json
from sweep.plan import Plan
from sweep.records import take_lock
from sweep.run import Run
from sweep.schema import Resources
from sweep.side_by_side import (
    Trial,
    choose,
    multi_process_service,
    service_folder,
    shared_caches,
)
from sweep.states import RunState, counts, local_lock, local_process, to_start
from sweep.supervisor import Supervisor

Environ = dict[str, str]
"""Environment variables."""


def _gpu_names() -> list[str]:
    """Return the names of this machine's GPUs, as NVIDIA's driver tells them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def find_gpus() -> list[str]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` may name on this machine."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = [name.strip() for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))  # as CUDA does
    return [str(index) for index in range(len(_gpu_names()))]


def make_slots(resources: Resources, jobs: int | None = None) -> list[Slot]:
    """Return one slot per parallel run.

    Each slot gets an equal share of this process's cores, and one of the GPUs in turn.

    Args:
        jobs: runs per GPU, or on the CPU, with one thread each. On several GPUs they are at most
            as many as there are cores, because the number is measured on one.
    """
    gpus = [] if resources.device == "cpu" else find_gpus()
    cores = len(os.sched_getaffinity(0))
    count = resources.side_by_side or len(gpus) or max(1, cores // 2)
    threads = max(1, cores // count)
    if jobs is not None:
        count, threads = min(jobs * max(1, len(gpus)), max(jobs, len(gpus), cores)), 1
    return [
        Slot(
            threads=threads,
            environ={"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {},
        )
        for index in range(count)
    ]


def measured_jobs(plan: Plan, runs: Sequence[Run], work: Work, most: int, caches: Environ) -> int:
    """How many of ``runs`` pay side by side on one device: measured, or as measured before.

    Args:
        most: largest number to try.
        caches: environment variables of all runs.
    """
    if most == 1:
        return 1
    file = work.places.sweep(plan.sweep.name) / "jobs.json"
    slot = make_slots(plan.sweep.resources, 1)[0]
    about = {
        "host": socket.gethostname(), "gpus": _gpu_names(), "most": most,
        "config": runs[0].config, "overrides": list(runs[0].overrides),
    }  # fmt: skip
    known = read_json(file)
    if {key: known.get(key) for key in about} == about and isinstance(known.get("jobs"), int):
        print(f"{known['jobs']} runs side by side pay, as was measured here before ({file})")
        return known["jobs"]
    shared = Slot(slot.threads, slot.environ | caches)
    jobs = choose(Trial(runs[0], plan.config(runs[0]), work, shared).total, most)
    write_json(file, about | {"jobs": jobs})
    return jobs


@contextlib.contextmanager
def _slots(plan: Plan, runs: Sequence[Run], work: Work, most: int | None) -> Iterator[list[Slot]]:
    """The slots of a sweep; with ``most``, as many as pay, with all that runs on a device share."""
    resources = plan.sweep.resources
    if most is None:
        yield make_slots(resources)
        return
    shared = shared_caches(work.places)
    with contextlib.ExitStack() as stack:
        if resources.device != "cpu" and find_gpus():
            folder = work.places.sweep(plan.sweep.name)
            shared |= stack.enter_context(multi_process_service(service_folder(folder)))
        jobs = measured_jobs(plan, runs, work, most, shared)
        slots = make_slots(resources, jobs)
        yield [Slot(slot.threads, slot.environ | shared) for slot in slots]


def _stop_measuring(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal before the runs begin: leave by way of the clean-up, the second time at once.

    Raises:
        StoppedError: always.
    """
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)
    raise StoppedError("stopped before the runs began; the same command goes on")


def run_here(
    plan: Plan, look: Callable[[], Sequence[RunState]], work: Work, most: int | None = None
) -> None:
    """Work on what is missing or failed until all have ended.

    Args:
        look: returns the states of the runs. It is called when no other process runs this sweep.
        most: try up to this many runs side by side on a device; None: as the resources say.

    Raises:
        StoppedError: a signal ended it, or other processes work on some runs; the same command
            continues it.
        UserError: another process runs this sweep here already, or runs failed.
    """
    places, sweep = work.places, plan.sweep
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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop_measuring)
        with _slots(plan, runs, work, most) as slots:
            gpu = " on a GPU" if "CUDA_VISIBLE_DEVICES" in slots[0].environ else ""
            share = f"{slots[0].threads} threads{gpu}"
            print(f"{len(slots)} at a time with {share} each", flush=True)
            supervisor = Supervisor(runs, work, slots, where=f"{host}, process {process}")
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.stop(tell=True))
            outcome = supervisor.run()
    if supervisor.stopping and outcome.left:
        raise StoppedError(f"stopped: {len(outcome.left)} runs are left; the same command goes on")
    if outcome.failed:
        raise UserError(f"failed: {', '.join(outcome.failed)}; see {places.runs / 'logs'}")
    if outcome.elsewhere:
        names = ", ".join(outcome.elsewhere)
        raise StoppedError(f"left to other processes: {names}; the same command looks again")


def cancel(places: Places, sweep: str) -> int | None:
    """Ask the process that runs the sweep on this machine to stop, and return its id or None.

    Raises:
        UserError: it runs on another machine, or for another user.
    """
    about = local_process(places, sweep)
    if not about:
        return None
    process, host = int(about["process"]), about["host"]
    if host != socket.gethostname():
        raise UserError(f"sweep {sweep} is run on {host}: stop process {process} there")
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:  # it has just ended
        return None
    except PermissionError:
        raise UserError(f"process {process} runs sweep {sweep} for another user") from None
    return process
