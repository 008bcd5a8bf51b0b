"""The tables of ``--status`` and ``--dry-run``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sweep.estimate import Disk, Speed, measured_speed, parallel, try_disk
from sweep.places import Places
from sweep.plan import Plan, relative
from sweep.run import Run
from sweep.states import STATES, TO_START, RunState, counts

STYLES = {"running": "green", "queued": "cyan", "failed": "bold red", "stopped": "yellow",
          "done": "dim", "not started": ""}  # fmt: skip
WIDE = 200
"""Width in characters of a table that is written to a file or a pipe."""
AROUND = 8
"""Number of terminal lines that are not rows of the table."""


def console() -> Console:
    """Return a console for stdout. It is wide where stdout is no terminal, so that all fits."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def duration(seconds: float | None) -> str:
    """Format seconds as ``1 d 02:30`` or ``02:30:10``, and None as ``-``."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours:02}:{minutes:02}:{rest:02}"


def size(count: float) -> str:
    """Format a number of bytes, such as ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def status_table(title: str, states: Sequence[RunState], rows: int | None = None) -> Table:
    """Return the table of runs, those at work first. At most ``rows`` runs are shown."""
    table = Table(title=f"{escape(title)}: {counts(states)}", title_justify="left")
    table.add_column("run", overflow="fold")
    for column in ("state", "step", "steps/s", "last return", "time left"):
        justify = "left" if column == "state" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    table.add_column("where, or why", overflow="fold")
    ordered = sorted(states, key=lambda state: STATES.index(state.state))
    for state in ordered[:rows]:
        style = STYLES[state.state]
        step = f"{state.step}/{state.run.steps}"
        table.add_row(
            state.run.name, f"[{style}]{state.state}[/]" if style else state.state, step,
            _number(state.rate), _number(state.last_return), duration(state.seconds_left),
            escape(state.note),
        )  # fmt: skip
    if rows is not None and len(ordered) > rows:
        table.caption = f"and {len(ordered) - rows} more"
    return table


def show_status(title: str, look: Callable[[], list[RunState]], every: float) -> None:
    """Print the table once, or keep updating it on a terminal.

    The updates end when nothing runs or waits any more, or at Ctrl-C.
    """
    screen = console()
    states = look()
    if not screen.is_terminal:
        screen.print(status_table(title, states))
        return

    def table() -> Table:
        return status_table(title, states, max(1, screen.height - AROUND))

    with Live(table(), console=screen, auto_refresh=False) as live:
        try:
            while any(state.state in ("running", "queued") for state in states):
                time.sleep(every)
                states = look()
                live.update(table(), refresh=True)
        except KeyboardInterrupt:
            return


# ------------------------------------------------------------------------------- the plan


def _kinds(plan: Plan) -> dict[tuple[str, str], list[Run]]:
    """The runs of each variant and task."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in plan.runs:
        found.setdefault((run.variant, run.task), []).append(run)
    return found


def show_plan(
    plan: Plan, states: Sequence[RunState], places: Places, how: str, slots: int | None
) -> None:
    """Print the plan, the number of runs, and the estimated hours and disk space."""
    screen = console()
    state_of = {state.run.name: state.state for state in states}
    speeds = {kind: measured_speed(plan, runs[0], places) for kind, runs in _kinds(plan).items()}
    screen.print(_plan_table(plan, state_of, speeds))
    starting = [run for run in plan.runs if state_of[run.name] in TO_START]
    screen.print(f"{len(plan.runs)} runs: {counts(states)}; {len(starting)} would be started {how}")
    _say_time(screen, plan, starting, speeds, parallel(plan, slots))
    _say_disk(screen, plan, starting)


def _plan_table(
    plan: Plan, state_of: dict[str, str], speeds: dict[tuple[str, str], Speed | None]
) -> Table:
    table = Table(title=f"plan of {escape(plan.sweep.name)}", title_justify="left")
    columns = ["task", "variant", "config", "seeds to start", "agent steps", "environment steps"]
    for column in [*columns, "hours each"]:
        table.add_column(column, justify="right" if "steps" in column else "left")
    for (variant, task), runs in _kinds(plan).items():
        seeds = [str(run.seed) for run in runs if state_of[run.name] in TO_START]
        speed, first = speeds[variant, task], runs[0]
        hours = f"{first.steps / speed.rate / 3600:.3g}" if speed else "?"
        table.add_row(
            task, variant, relative(first.config), f"{', '.join(seeds) or 'none'} of {len(runs)}",
            str(first.steps), str(first.steps * first.frame_skip), hours,
        )  # fmt: skip
    return table


def _say_time(
    screen: Console,
    plan: Plan,
    starting: Sequence[Run],
    speeds: dict[tuple[str, str], Speed | None],
    at_once: int,
) -> None:
    known = [(run, speeds[run.variant, run.task]) for run in starting]
    hours = [run.steps / speed.rate / 3600 for run, speed in known if speed]
    unknown = len(starting) - len(hours)
    if hours:
        runs = f"for {len(hours)} of {len(starting)} runs" if unknown else "in all"
        wall = max(max(hours), sum(hours) / at_once)
        screen.print(
            f"time: {sum(hours):.3g} hours of training {runs}, {wall:.3g} hours with "
            f"{min(at_once, len(hours))} at a time; evaluation comes on top"
        )
    for source in sorted({f"{s.rate:.3g} steps/s measured: {s.source}" for _, s in known if s}):
        screen.print(f"  {escape(source)}")
    if unknown:
        screen.print(
            f"time: unknown for {unknown}, since no run of their task and config was timed yet; "
            "python -m benchmarks.end_to_end --config FILE --save NAME measures it"
        )


def _say_disk(screen: Console, plan: Plan, starting: Sequence[Run]) -> None:
    disks: dict[tuple[str, int], Disk | str] = {}
    for run in starting:
        if (run.variant, run.steps) not in disks:
            disks[run.variant, run.steps] = try_disk(plan, run)
    found = [disks[run.variant, run.steps] for run in starting]
    known = [disk for disk in found if isinstance(disk, Disk)]
    if known:
        screen.print(
            f"disk: at most {size(max(d.training for d in known))} for a run while it trains, "
            f"{size(sum(d.kept for d in known))} for all when they are done"
        )
    for reason in {found for found in disks.values() if isinstance(found, str)}:
        screen.print(f"disk: not known on this machine: {escape(reason)}")
