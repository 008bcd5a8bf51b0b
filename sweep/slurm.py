"""Slurm: what is in its queue, submitting the runs of a sweep as one job array, cancelling them."""

from __future__ import annotations

import contextlib
import getpass
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm_core.errors import UserError, closest
from sweep.children import Work
from sweep.places import Places
from sweep.records import ENDED, Records, Ticket
from sweep.run import Run
from sweep.schema import Resources, Sweep

MOST_REQUEUES = 10**6
"""submitit's own limit, 3 by default, is less than a long run needs. A run that cannot continue is
given up after its failures instead."""

NAMED = ("partition", "account", "qos", "constraint")
SBATCH = (*NAMED, "gpus_per_node", "time", "cpus_per_task", "mem")
"""Slurm may refuse a job because of these options of sbatch."""


@dataclass(frozen=True)
class Queued:
    """A job that Slurm has: its name, its state as ``PENDING``, and why it waits."""

    name: str
    state: str
    reason: str


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command to its end.

    Raises:
        UserError: it cannot be started, or does not end.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"Slurm does not answer: {error}") from None


def _ask(*command: str) -> str:
    """Run a Slurm command and return its output.

    Raises:
        UserError: it fails.
    """
    done = _run(*command)
    if done.returncode:
        raise UserError(
            f"Slurm does not answer: {_reason(done.stderr)}; with --local the sweep runs on this "
            "machine"
        )
    return done.stdout


def _reason(text: str) -> str:
    """The last line of an error of Slurm, without the names of its parts."""
    telling = ("error: ", "fatal: ", "failure: ")
    said = [line.strip() for line in text.splitlines() if not line.startswith("Try ")]
    lines = [line for line in said if any(word in line for word in telling)]
    last = ["no reason given", *(line for line in said if line), *lines][-1]
    return re.sub(r"^.*?(error|fatal|failure): ", "", last)


def queue() -> dict[str, Queued]:
    """This user's jobs by id, ``123_4`` for an entry of an array."""
    text = _ask(
        "squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i|%j|%T|%r"
    )
    rows = (line.split("|", 3) for line in text.splitlines() if line.count("|") >= 3)
    return {job.strip(): Queued(name, state, reason) for job, name, state, reason in rows}


def in_queue(ticket: Ticket | None, jobs: dict[str, Queued]) -> Queued | None:
    """The job of ``ticket``, if Slurm still has it. The name is compared, since ids begin anew when
    a cluster is set up anew."""
    job = jobs.get(ticket.job) if ticket else None
    return job if job and ticket and job.name.endswith(ticket.token) else None


# ------------------------------------------------------------------------------- checking


def _partitions() -> dict[str, dict[str, str]]:
    """Return the output of ``scontrol show partition``, by partition name."""
    text = _ask("scontrol", "--oneliner", "show", "partition")
    rows = [dict(part.split("=", 1) for part in line.split() if "=" in part)
            for line in text.splitlines()]  # fmt: skip
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def _minutes(text: str) -> int | None:
    """``1-00:00:00`` or ``30:00`` as minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def check_partition(resources: Resources) -> None:
    """Refuse a partition that does not exist, and a time limit above the partition's, for which
    Slurm would let jobs wait for ever.

    Raises:
        UserError: says what would be valid.
    """
    known = _partitions()
    default = next((name for name, row in known.items() if row.get("Default") == "YES"), None)
    for name in (resources.partition or default or "").split(","):
        if name and name not in known:
            hint = closest(name, list(known)) or f"; there are {', '.join(known)}"
            raise UserError(f"resources.partition: Slurm has no partition {name!r}{hint}")
        most = _minutes(known.get(name, {}).get("MaxTime", ""))
        if most is not None and resources.time > most:
            raise UserError(
                f"resources.time is {resources.time} minutes, but a job of the partition {name} "
                f"may take {most}"
            )


def check_resources(options: dict[str, Any]) -> None:
    """Refuse what no node of the partition has, for which Slurm would let jobs wait for ever.

    Raises:
        UserError: gives Slurm's own message, or Slurm does not answer.
    """
    asked = {key: value for key, value in options.items() if key in SBATCH} | options[
        "additional_parameters"
    ]
    flags = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
             for key, value in asked.items()]  # fmt: skip
    done = _run("sbatch", "--test-only", *flags, "--wrap=true")
    if done.returncode:
        raise UserError(f"Slurm refuses the jobs: {_reason(done.stderr)} ({' '.join(flags)})")


# ------------------------------------------------------------------------------- submitting


def _memory(mem: str, runs: int) -> str:
    return f"{int(mem[:-1]) * runs}{mem[-1]}"


def sbatch_options(sweep: Sweep, token: str) -> dict[str, Any]:
    """Return the options of submitit's executor."""
    wanted, runs = sweep.resources, sweep.resources.runs_per_job
    options: dict[str, Any] = {key: getattr(wanted, key) for key in NAMED if getattr(wanted, key)}
    if wanted.gpus:
        options["gpus_per_node"] = wanted.gpus
    return options | {
        "job_name": f"{sweep.name}-{token}",
        "time": wanted.time,
        "cpus_per_task": wanted.cpus * runs,
        # since Slurm 22.05 srun does not take this over from sbatch
        "srun_args": [f"--cpus-per-task={wanted.cpus * runs}"],
        "mem": _memory(wanted.mem, runs),
        "signal_delay_s": wanted.warning,
        "array_parallelism": wanted.most_jobs,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **wanted.sbatch},
    }


def _setup(work: Work, resources: Resources) -> list[str]:
    """Shell commands before the job: it finds this project wherever it was submitted from."""
    root = shlex.quote(str(work.root))
    return [
        *resources.setup,
        f"cd {root}",
        f'export PYTHONPATH={root}"${{PYTHONPATH:+:}}$PYTHONPATH"',
    ]


def _most_entries() -> int:
    """Return the number of entries that an array may have on this cluster."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return max(1, int(found[1]) - 1) if found else 1000


def _shares(values: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    for first in range(0, len(values), size):
        yield tuple(values[first : first + size])


def submit(sweep: Sweep, runs: Sequence[Run], work: Work) -> list[str]:
    """Submit ``runs`` as one job array (more where the cluster allows no array of that length);
    returns the jobs' ids. All are submitted, or none.

    Raises:
        UserError: Slurm refuses them.
    """
    import submitit

    from sweep.slurm_job import SlurmJob

    options = sbatch_options(sweep, work.token)
    check_partition(sweep.resources)
    check_resources(options)
    packs = list(_shares(runs, sweep.resources.runs_per_job))
    folder = work.places.sweep(sweep.name) / work.token
    submitted, records = list[tuple[str, tuple[Run, ...]]](), Records(work.places)
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MOST_REQUEUES)
        executor.update_parameters(**options, setup=_setup(work, sweep.resources))
        for share in _shares(packs, _most_entries()):
            # submitit prints what sbatch says, beside raising it
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [
                    executor.submit(SlurmJob(pack, work, sweep.resources.cpus)) for pack in share
                ]
            submitted += [(job.job_id, pack) for job, pack in zip(jobs, share, strict=True)]
        for job, pack in submitted:
            for run in pack:
                records.give_ticket(run.name, Ticket(sweep.name, job, work.token))
    except Exception as error:
        _take_back([job for job, _ in submitted], folder)
        if isinstance(error, OSError | UserError):
            raise
        raise UserError(f"Slurm refuses the jobs: {_reason(str(error))}") from None
    return [job for job, _ in submitted]


def _take_back(jobs: list[str], folder: Path) -> None:
    """Remove everything of a submission that failed half-way."""
    with contextlib.suppress(UserError):  # the error that is told is the first one
        if jobs:
            _run("scancel", *jobs)
    shutil.rmtree(folder, ignore_errors=True)


def cancel(sweep: Sweep, runs: Sequence[Run], places: Places) -> list[str]:
    """Cancel the jobs that this sweep submitted for ``runs``; returns their ids.

    Raises:
        UserError: one of the jobs also holds another run that is not at its end.
    """
    records, jobs = Records(places), queue()
    waiting = {
        name: ticket.job for name, ticket in records.tickets().items()
        if ticket.sweep == sweep.name and in_queue(ticket, jobs)
    }  # fmt: skip
    chosen = {run.name for run in runs}
    ids = list(dict.fromkeys(job for name, job in waiting.items() if name in chosen))
    others = [
        name for name, job in waiting.items()
        if job in ids and name not in chosen and records.read(name).state not in ENDED
    ]  # fmt: skip
    if others:
        raise UserError(f"the same jobs hold {', '.join(others)}: name these too, or cancel all")
    if ids:
        _ask("scancel", *ids)
    return ids
