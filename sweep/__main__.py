"""Many runs, on a Slurm cluster or on one machine::

    python -m sweep config_files/sweeps/atari100k.yaml --dry-run   # what it would start
    python -m sweep config_files/sweeps/atari100k.yaml             # start what is left to do
    python -m sweep config_files/sweeps/atari100k.yaml --status    # a live table
    python -m sweep config_files/sweeps/atari100k.yaml --cancel

Where Slurm's ``sbatch`` is found the runs become one job array, elsewhere they run here, some at a
time. The same command may be given again at any time. Exit status: 0 submitted, or all done; 2 bad
input, or runs failed; 75 stopped, and the same command continues. See docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence

from pwm_core.commands.cli import Parser, count, run_command
from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY
from sweep import local, schema, slurm
from sweep.children import Work
from sweep.places import Places, project_places
from sweep.plan import Plan, check_settings, make_plan
from sweep.records import waiting_for
from sweep.states import Observer, RunState, counts, local_process, to_start
from sweep.status import show_plan, show_status


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds of up to a day")
    return value


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sweep", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", help="such as config_files/sweeps/atari100k.yaml")
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--status", action="store_true", help="a live table of the runs")
    doing.add_argument("--cancel", action="store_true", help="stop what runs and what waits")
    doing.add_argument("--dry-run", action="store_true", help="plan, count, hours and disk")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run here, though there is Slurm")
    where.add_argument("--slurm", action="store_true", help="submit, or say why that is impossible")
    parser.add_argument(
        "-jobs", "--jobs", type=count, default=None, metavar="N",
        help="up to N runs side by side on each device, as many as pay: measured at the start",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="runs with such names, as 'Pong-*'"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value",
        help="override a key of the sweep file, as seeds=[1,2] or resources.gpus=0; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--every",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="between two looks of --status",
    )
    return parser.parse_args(argv)


def _uses_slurm(arguments: argparse.Namespace) -> bool:
    """Whether the runs go to Slurm. What only looks goes on where Slurm has commands here but does
    not answer, as where they are installed and nothing is configured."""
    if arguments.slurm and not slurm.available():
        raise UserError("--slurm: there is no sbatch on this machine")
    if arguments.local or not slurm.available():
        return False
    if (arguments.dry_run or arguments.status) and not arguments.slurm:
        try:
            slurm.queue()
        except UserError as error:
            print(f"note: {error}", file=sys.stderr)
            return False
    return True


def _check_writable(places: Places) -> None:
    """Refuse folders that cannot be written before anything begins.

    Raises:
        UserError: names the folder.
    """
    for folder in (places.records, places.results):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written: no permission")


def _observer(places: Places, plan: Plan, on_slurm: bool) -> Observer:
    """Make an observer of the current state. A local sweep asks Slurm only for queued jobs."""
    jobs: dict[str, slurm.Queued] = {}
    with contextlib.suppress(*(() if on_slurm else (UserError,))):
        jobs = slurm.queue() if slurm.available() else {}
    return Observer(places, jobs, plan.sweep.name)


def _start(plan: Plan, places: Places, on_slurm: bool, jobs: int | None) -> None:
    """Start what is missing or failed.

    Raises:
        UserError: ``jobs`` are asked for on Slurm.
    """
    if on_slurm and jobs is not None:
        raise UserError("-jobs is for one machine: use resources.runs_per_job on Slurm, or --local")
    check_settings(plan, places)
    _check_writable(places)
    sweep = plan.sweep
    device = "cpu" if on_slurm and not sweep.resources.gpus else sweep.resources.device
    work = Work(
        sweep=sweep.name, token=secrets.token_hex(4), places=places, root=REPOSITORY,
        device=device, logger=sweep.logger, keep=sweep.keep, most_failures=sweep.most_failures,
    )  # fmt: skip
    if not on_slurm:
        local.run_here(plan, lambda: _observer(places, plan, False).states(plan.runs), work, jobs)
        return
    with waiting_for(places.records.parent / "submit.lock"):
        states = _observer(places, plan, True).states(plan.runs)
        runs = to_start(states)
        jobs = slurm.submit(sweep, runs, work) if runs else []
    print(f"{len(states)} runs: {counts(states)}; submitted {len(jobs)} jobs {' '.join(jobs)}")


def _cancel(plan: Plan, places: Places, on_slurm: bool, whole: bool) -> None:
    """Stop the sweep, or the jobs of some of its runs.

    Raises:
        UserError: some of the runs of a local sweep are to be stopped.
    """
    if not whole and local_process(places, plan.sweep.name):
        raise UserError("a sweep on one machine is cancelled as a whole: leave out --only")
    process = local.cancel(places, plan.sweep.name) if whole else None
    if process is not None:
        print(f"process {process} was asked to stop; its runs write their checkpoints first")
    jobs = slurm.cancel(plan.sweep, plan.runs, places) if on_slurm else []
    if jobs:
        print(f"cancelled {len(jobs)} Slurm jobs: {', '.join(jobs)}")
    if process is None and not jobs:
        print("nothing of this sweep runs or waits")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and do what they say."""
    arguments = _arguments(argv)
    sweep = schema.load(schema.find(arguments.file), arguments.set)
    plan, places = make_plan(sweep, arguments.only), project_places()
    on_slurm = _uses_slurm(arguments)

    def look() -> list[RunState]:
        return _observer(places, plan, on_slurm).states(plan.runs)

    if arguments.status:
        show_status(f"sweep {sweep.name}", look, arguments.every)
    elif arguments.cancel:
        _cancel(plan, places, on_slurm, whole=arguments.only is None)
    elif arguments.dry_run:
        slots = None if on_slurm else len(local.make_slots(sweep.resources))
        show_plan(plan, look(), places, "on Slurm" if on_slurm else "on this machine", slots)
    else:
        _start(plan, places, on_slurm, arguments.jobs)


if __name__ == "__main__":
    run_command(main)
