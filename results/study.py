"""The variants of a sweep against its default: curves, final scores, probability of improvement::

    PAMORL_LOGDIR=studies/ablations python -m results.study ablations

It reads the score files of the runs ``<task>-<variant>-<suffix>-seed<N>`` and their metrics, as a
sweep with variants leaves them, and writes tables (CSV, Markdown) and figures. Scores are
normalised to [0, 1] by the least and the largest return that a task allows. Intervals are 95 %
stratified-bootstrap intervals of rliable over all tasks and seeds of a variant.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pwm_core.commands import cli
from pwm_core.commands.plot import read_metrics
from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from results.flags import ResultsParser

BOUNDS = {"Catch": (-1.0, 1.0)}
"""The least and the largest return of tasks whose benchmark has no ``full_score``."""


@dataclass(frozen=True)
class Outcome:
    """The final score of one run.

    Attributes:
        score: mean return of the last checkpoint's evaluation.
        normalised: the same, 0 at the least and 1 at the largest return of the task.
        frames: environment steps of training.
    """

    run: str
    task: str
    variant: str
    seed: int
    frames: int
    score: float
    normalised: float


def variant_of(run: str, task: str, suffix: str) -> str | None:
    """The variant in a run's name, or None if the run is not one of the study's."""
    found = re.fullmatch(rf"{re.escape(task)}-(.+)-{re.escape(suffix)}-seed\d+", run)
    return found[1] if found else None


def normalise(domain: str, task: str, score: float) -> float:
    """``score`` as a share of the returns that the task allows.

    Raises:
        UserError: its returns have no known bounds.
    """
    full = find_domain(domain).benchmark.full_score
    if task not in BOUNDS and full is None:
        raise UserError(f"the returns of {task} have no known bounds, so they cannot be compared")
    low, high = BOUNDS.get(task, (0.0, full))
    return (score - low) / (high - low)


def read_outcomes(folder: Path, runs: Path, suffix: str, problems: list[str]) -> list[Outcome]:
    """The final scores of the study's runs, sorted by variant, task and seed.

    Left out, and named in ``problems``, are runs that have no scores or have not finished, and
    evaluations with another setting than the run's own.

    Args:
        folder: of score files.
        runs: of run folders.
    """
    from results.scores import read_scores

    found, scored = [], set()
    for score in read_scores(folder, problems):
        variant = variant_of(score.run, score.task, suffix)
        if variant is None:
            continue
        if label := score.evaluation.label:
            problems.append(f"{score.run}: the evaluation {label} is left out")
            continue
        scored.add(score.run)
        if not score.finished:
            problems.append(f"{score.run}: left out: it has not finished")
            continue
        value, domain = score.final.mean, score.conditions.benchmark
        found.append(
            Outcome(
                *(score.run, score.task, variant, score.seed, score.final.frames, value),
                normalise(domain, score.task, value),
            )
        )
    begun = {path.parent.name for path in runs.glob(f"*-{suffix}-seed*/run.json")}
    problems += [f"{run}: left out: it has no scores" for run in sorted(begun - scored)]
    return sorted(found, key=lambda one: (one.variant, one.task, one.seed))


def only_tasks(outcomes: list[Outcome], tasks: list[str] | None) -> list[Outcome]:
    """The outcomes on ``tasks``; None stands for all.

    Raises:
        UserError: one of the tasks has no run.
    """
    if tasks is None:
        return outcomes
    known = sorted({one.task for one in outcomes})
    for task in tasks:
        if task not in known:
            raise UserError(f"--tasks: no run of {task} has finished; there are {', '.join(known)}")
    return [one for one in outcomes if one.task in tasks]


def check_equal_lengths(outcomes: list[Outcome]) -> None:
    """Refuse runs of one task that were not all trained for the same number of steps.

    Raises:
        UserError: there are such runs.
    """
    lengths: dict[str, dict[int, str]] = defaultdict(dict)
    for one in outcomes:
        lengths[one.task][one.frames] = one.run
    for task, found in lengths.items():
        if len(found) > 1:
            told = ", ".join(f"{steps} steps ({found[steps]})" for steps in sorted(found))
            raise UserError(
                f"the runs of {task} differ in length: {told}; run the sweep again with the "
                "largest number of steps, which extends the shorter ones"
            )


def order(outcomes: list[Outcome], default: str) -> list[str]:
    """The variants: the default first, the others by name.

    Raises:
        UserError: there is no run of the default.
    """
    names = sorted({one.variant for one in outcomes})
    if default not in names:
        raise UserError(f"there is no run of the variant {default}; there are {', '.join(names)}")
    return [default, *(name for name in names if name != default)]


def tables(
    outcomes: list[Outcome], variants: list[str], reps: int, problems: list[str]
) -> dict[str, pd.DataFrame]:
    """The study's tables by name.

    ``scores`` has a row per run, ``tasks`` and ``summary`` the aggregates of each variant on a
    task and on all its tasks. ``difference`` is its mean minus that of the default, which is the
    first of ``variants``, and ``improvement`` the probability that it is better, both on the tasks
    that the two have.
    """
    from results.aggregates import Matrix, difference, improvement, intervals, make_matrix

    normalised: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for one in outcomes:
        normalised[one.variant][one.task][one.seed] = one.normalised

    def matrix(variant: str, tasks: list[str]) -> Matrix:
        chosen = {task: normalised[variant][task] for task in tasks}
        return make_matrix(chosen, variant, problems)

    every = sorted({one.task for one in outcomes})
    summary = intervals({name: matrix(name, sorted(normalised[name])) for name in variants}, reps)
    single = []
    for task in every:
        own = {name: matrix(name, [task]) for name in variants if task in normalised[name]}
        single.append(intervals(own, reps).drop(columns="tasks").assign(task=task))
    pairs = {}
    for name in variants[1:]:
        common = sorted(normalised[name].keys() & normalised[variants[0]].keys())
        if common:
            pairs[name, variants[0]] = matrix(name, common), matrix(variants[0], common)
    frames = {
        "scores": pd.DataFrame(outcomes), "tasks": pd.concat(single, ignore_index=True),
        "summary": summary, "difference": difference(pairs, reps),
        "improvement": improvement(pairs, reps),
    }  # fmt: skip
    renamed = {"setting": "variant", "x": "variant", "y": "than"}
    return {name: frame.rename(columns=renamed) for name, frame in frames.items()}


def read_curves(
    scores: Path, runs: Path, outcomes: list[Outcome], problems: list[str]
) -> dict[str, dict[str, list]]:
    """Task -> variant -> the curves of the seeds (:class:`results.curves.Curve`)."""
    from results import curves

    variants = {one.run: one.variant for one in outcomes}
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for curve in curves.read_curves(scores, runs, problems):
        if curve.run in variants:
            found[curve.task][variants[curve.run]].append(curve)
    return {task: dict(variants) for task, variants in sorted(found.items())}


LAST = 0.2
"""The share of a run, at its end, over which :func:`last_metrics` averages."""


def last_metrics(
    scores: Path, runs: Path, outcomes: list[Outcome], problems: list[str]
) -> pd.DataFrame:
    """How losses and the policy stand at the end of training.

    Returns:
        a row per task, variant and metric: the mean over the seeds of each run's mean over its last
        fifth, the standard deviation over the seeds (divisor n), and the number of seeds.
    """
    rows = []
    for one in outcomes:
        path = runs / one.run / "metrics.jsonl"
        if not path.exists():
            path = scores / f"{one.run}.metrics.jsonl"
        records = read_metrics(path, problems) if path.exists() else []
        first = (1 - LAST) * max((record["step"] for record in records), default=0)
        for record in records:
            values = {
                k: v for k, v in record.items() if k.startswith(("WorldModel/", "ActorCritic/"))
            }
            if record["step"] > first and values:
                rows.append({"task": one.task, "variant": one.variant, "seed": one.seed, **values})
    if not rows:
        return pd.DataFrame()
    keys = ["task", "variant"]
    seeds = pd.DataFrame(rows).groupby([*keys, "seed"]).mean().stack().rename("value")
    seeds.index.names = [*keys, "seed", "metric"]
    groups = seeds.groupby(level=[*keys, "metric"])
    found = pd.DataFrame(
        {"mean": groups.mean(), "std": groups.std(ddof=0), "seeds": groups.count()}
    )
    return found.reset_index().sort_values(["task", "metric", "variant"])


NOTE = """\
Final scores, normalised to [0, 1] by the returns that a task allows; in brackets the 95 %
stratified-bootstrap interval. The last columns compare a variant with the default on the tasks
that it was trained on: its mean minus the default's, and the probability that one of its runs is
better. If an interval holds no difference, or a probability of 0.5, the two cannot be told apart.
The reverse is weaker than it sounds: with so few runs an interval is too narrow, and among many
variants one or two differ by chance.
"""


def write_markdown(made: dict[str, pd.DataFrame], variants: list[str], path: Path) -> None:
    """Write a page with one line per variant: scores by task, the difference from the default, and
    how probably the variant is better."""

    def between(row: pd.Series, sign: str) -> str:
        bounds = (
            "" if pd.isna(row["low"]) else f" [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]"
        )
        return f"{row['value']:{sign}.2f}{bounds}"

    def cell(table: str, variant: str, sign: str = "", **where: str) -> str:
        frame = made[table]
        for column, value in {"variant": variant, **where}.items():
            frame = frame[frame[column] == value]
        return between(frame.iloc[0], sign) if len(frame) else ""

    tasks, default = list(dict.fromkeys(made["tasks"]["task"])), variants[0]
    header = ["variant", *tasks, f"minus {default}", f"P(better than {default})", "runs"]
    lines = [header, ["---"] * len(header)]
    for name in variants:
        row = [cell("tasks", name, task=task, metric="mean") for task in tasks]
        row += [cell("difference", name, "+"), cell("improvement", name)]
        runs = (made["scores"]["variant"] == name).sum()
        lines.append([name, *row, str(runs)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    path.write_text(f"{NOTE}\n{text}\n", encoding="utf-8")


def _arguments() -> cli.argparse.Namespace:
    parser = ResultsParser("results.study", __doc__, "study_<suffix>")
    parser.add_argument("suffix", help="suffix of the sweep, which ends the names of its runs")
    parser.add_argument("--default", default="default", help="variant to compare with (default)")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="A,B: of these only")
    return parser.checked()


def main() -> None:
    """Parse the flags, write tables and figures, and print where they are and what they lack."""
    arguments = _arguments()
    try:
        from results.study_figures import curve_table, draw_curves, draw_scores
        from results.style import save
    except ImportError as error:
        needed = "requirements-results.txt"
        raise UserError(f"{error.name} is not installed: pip install -r {needed}") from None
    problems: list[str] = []
    outcomes = read_outcomes(arguments.scores, arguments.runs, arguments.suffix, problems)
    if not outcomes:
        ends = f"-{arguments.suffix}-seed<N>"
        raise UserError(
            f"{arguments.scores} holds no scores of a finished run whose name ends in {ends}"
        )
    outcomes = only_tasks(outcomes, arguments.tasks)
    variants = order(outcomes, arguments.default)
    check_equal_lengths(outcomes)
    made = tables(outcomes, variants, arguments.reps, problems)
    curves = read_curves(arguments.scores, arguments.runs, outcomes, problems)
    output = arguments.output or arguments.scores / f"study_{arguments.suffix}"
    output.mkdir(parents=True, exist_ok=True)
    metrics = last_metrics(arguments.scores, arguments.runs, outcomes, problems)
    for name, frame in {**made, "curves": curve_table(curves), "metrics": metrics}.items():
        frame.to_csv(output / f"{name}.csv", index=False, float_format="%.6g")
    write_markdown(made, variants, output / "study.md")
    save(draw_scores(made, variants), output / "scores")
    if curves:
        save(draw_curves(curves, variants), output / "curves")
    for line in dict.fromkeys(problems):
        print(f"note: {line}", file=sys.stderr)
    print(f"tables and figures: {output.resolve()}")


if __name__ == "__main__":
    cli.run_command(main)
