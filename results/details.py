"""The report's other tables: aggregates, settings, runs and published work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from pwm_core.domain import find_domain
from results.aggregates import METRICS, Matrix, intervals, make_matrix, mean_intervals
from results.headline import budget_groups, in_order, random_scores
from results.panels import SAME, Findings, Panel, same_protocol
from results.published import Table
from results.scores import Conditions, Score
from results.settings import Result
from results.shown import Shown, count, counts, score, share, simple, spread

RULE = (
    "Of several evaluations of a task that of finished runs with sampled actions under the runs' "
    "own setting counts, nearest to the published budget, of most seeds and most episodes."
)
PART = ": "
"""Separates a setting's name from the tasks that a row is about."""
Pairs = dict[tuple[str, str], tuple[Matrix, Matrix]]


def matrices(panel: Panel, findings: Findings) -> dict[str, Matrix]:
    """Normalised scores of each setting with at least two tasks, by the setting's name. Tasks
    without references are named in the problems."""
    found = {}
    for conditions, results in panel.results.items():
        usable = {}
        for task, result in results.items():
            values = {
                seed: float(findings.normalise(panel.benchmark, task, value))
                for seed, value in result.values.items()
            }
            if np.isnan(list(values.values())).any():
                findings.problems.append(
                    f"{task}: not in the aggregates: its random and human scores are not known"
                )
            else:
                usable[task] = values
        if len(usable) > 1:
            name = findings.names[conditions]
            found[name] = make_matrix(usable, name, findings.problems)
    return found


def budget_matrices(panel: Panel, findings: Findings) -> dict[str, Matrix]:
    """The :func:`matrices` of each published budget separately, if there are several budgets. The
    tasks of one budget may have more seeds than all tasks together."""
    groups = budget_groups(panel)
    found = {}
    for title, tasks in groups if len(groups) > 1 else []:
        results = {c: {t: r for t, r in of_all.items() if t in tasks}
                   for c, of_all in panel.results.items()}  # fmt: skip
        part = replace(panel, results=results)
        # The call for all tasks has reported these problems already.
        quiet = replace(findings, problems=[])
        for name, matrix in matrices(part, quiet).items():
            found[f"{name}{PART}{title}"] = matrix
    return found


def others_on(tasks: list[str], panel: Panel, findings: Findings) -> pd.DataFrame:
    """Random play and the published methods that have a score for every one of ``tasks``,
    normalised: method, table, mean, median."""
    rows = []
    random = pd.Series(
        {t: findings.normalise(panel.benchmark, t, v)
         for t, v in random_scores(panel, findings).items()}
    ).reindex(tasks)  # fmt: skip
    if random.notna().all():
        rows.append({"method": "random", "table": "play"} | _centre(random))
    for table in panel.tables:
        scores = findings.normalise.table(table)
        for method in in_order(table):
            known = scores[method].reindex(tasks)
            if known.notna().all():
                label = {"method": table.label(method), "table": table.title}
                rows.append(label | _centre(known))
    return pd.DataFrame(rows, columns=["method", "table", "mean", "median"])


def _centre(scores: pd.Series) -> dict[str, float]:
    return {"mean": scores.mean(), "median": scores.median()}


def aggregates_table(
    found: pd.DataFrame, others: pd.DataFrame, tasks: list[str], unit: str
) -> Shown:
    """The aggregates of our settings with 95 % intervals, and the means of random play and
    published methods on the tasks of our first setting."""
    rows = []
    for (name, many, runs), part in found.groupby(["setting", "tasks", "runs"], sort=False):
        row = [name, "ours", count(many), count(runs)]
        for metric in METRICS:
            value, low, high = part.set_index("metric").loc[metric, ["value", "low", "high"]]
            between = spread(low, high, share)
            row.append(share(value) + (f"\n{between}" if between else ""))
        rows.append(row)
    ours = len(rows)
    for other in others.itertuples():
        row = [other.method, other.table, count(len(tasks)), share(None)]
        rows.append([*row, share(other.mean), share(other.median), share(None), share(None)])
    notes = [
        "Below a value of ours: its 95 % interval by stratified bootstrap over seeds, of as many "
        "seeds as every task has (so a mean may differ from the one above); none for one seed.",
        f"The other methods: on the {len(tasks)} tasks of {found.setting.iloc[0]}, from their "
        "published means, which give no IQM, no optimality gap and no interval.",
    ]
    head = ["method", "from", "tasks", "seeds", *METRICS]
    return simple(
        f"Aggregates of {unit}", head, rows, notes=notes, strong=set(range(ours)), words={0, 1}
    )


def pairs(panel: Panel, ours: dict[str, Matrix], findings: Findings) -> Pairs:
    """The pairs that may be compared run by run, over two tasks or more. Two of our settings are
    compared if they share the protocol and the frames. A published column without single runs
    counts as one run, made of its means. It is compared if it shares the protocol and, within 5 %,
    the frames."""
    found: Pairs = {}
    settings = {findings.names[c]: c for c in panel.results if findings.names[c] in ours}
    for x, conditions in settings.items():
        results = panel.results[conditions]
        frames = pd.Series({task: r.evaluation.frames for task, r in results.items()})
        for y, other in settings.items():
            if x < y and _alike(panel.results[other], results) and conditions.protocol == (
                other.protocol
            ):  # fmt: skip
                found[x, y] = ours[x], ours[y]
        names = {table.name for table in panel.tables}
        for table in (table for table in findings.tables if table.name in names):
            budgets = frames.reindex(table.frames.index)
            near = (table.frames - budgets).abs() <= SAME * table.frames
            for method, scores in findings.normalise.table(table).items():
                if same_protocol(conditions, table.columns[method].same):
                    known = scores[near].dropna()
                    theirs = Matrix(known.to_numpy()[None], list(known.index))
                    if method in table.seeds:
                        theirs = published_runs(table, method, findings, theirs.tasks)
                    found[x, f"{table.label(method)} ({table.title})"] = ours[x], theirs
    return {
        k: pair for k, pair in found.items() if len(set(pair[0].tasks) & set(pair[1].tasks)) > 1
    }


def published_runs(
    table: Table, method: str, findings: Findings, tasks: list[str] | None = None
) -> Matrix:
    """The normalised scores of a method's published runs, on ``tasks`` or on all that it has."""
    seeds = findings.normalise.seeds(table, method)
    chosen = list(seeds.index) if tasks is None else [t for t in tasks if t in seeds.index]
    return Matrix(seeds.loc[chosen].to_numpy().T, chosen)


def seeds_frame(panel: Panel, findings: Findings, reps: int) -> pd.DataFrame:
    """Published methods whose single runs are known, with 95 % bootstrap intervals over them.

    Returns:
        method, task, runs, value, low and high: the mean score of every task, then the normalised
        aggregates over all tasks, where ``task`` is the name of the aggregate.
    """
    rows = []
    for table in panel.tables:
        for method, seeds in table.seeds.items():
            name, values = table.label(method), seeds.to_numpy().T
            low, high = mean_intervals(values, reps)
            for task, *row in zip(seeds.index, values.mean(0), low, high, strict=True):
                rows.append((name, task, len(values), *row))
            whole = intervals({name: published_runs(table, method, findings)}, reps)
            for row in whole.itertuples():
                rows.append((name, row.metric, row.runs, row.value, row.low, row.high))
    return pd.DataFrame(rows, columns=["method", "task", "runs", "value", "low", "high"])


def seeds_tables(method: str, part: pd.DataFrame, title: str, unit: str) -> tuple[Shown, Shown]:
    """The rows of :func:`seeds_frame` of one method: its aggregates, and its scores by task.

    Args:
        title: of the benchmark.
        unit: of normalised scores.
    """
    is_aggregate = part.task.isin(METRICS)
    note = (
        f"{part.runs.iloc[0]} published seeds, {int((~is_aggregate).sum())} tasks; intervals are "
        "95 % percentile intervals of a bootstrap over seeds, stratified by task."
    )

    def shown(caption: str, first: str, which: pd.Series, written: Callable[[float], str]) -> Shown:
        cells = [
            [row.task, written(row.value), spread(row.low, row.high, written)]
            for row in part[which].itertuples()
        ]
        head = [first, "value", "95 % interval"]
        return simple(f"{method}, published seeds: {caption}", head, cells, notes=[note], words={0})

    return (
        shown(unit, "aggregate", is_aggregate, share),
        shown(f"{title} by task", "task", ~is_aggregate, score),
    )


def _alike(x: dict[str, Result], y: dict[str, Result]) -> bool:
    """Whether the tasks that both have were trained for the same length and evaluated in the same
    way."""
    return all(x[task].evaluation == y[task].evaluation for task in x.keys() & y.keys())


def improvement_table(found: pd.DataFrame) -> Shown:
    """The table of the probability that a run of X scores above a run of Y."""
    rows = [
        [
            row.x,
            row.y,
            count(row.tasks),
            share(row.value),
            spread(row.low, row.high, share) or share(None),
        ]
        for row in found.itertuples()
    ]
    note = (
        "Mean over the tasks that both have, a tie counting half; a method of which only means are "
        "published counts as one run. Only where the protocol and, within 5 %, the budget are the "
        "same."
    )
    head = ["X", "over Y", "tasks", "P(X > Y)", "95 % interval"]
    return simple("Probability of improvement", head, rows, notes=[note], words={0, 1})


def settings_table(findings: Findings) -> Shown:
    """The table that explains the name of each setting."""
    rows = []
    for panel in findings.panels:
        for conditions in dict.fromkeys([*panel.results, *_curved(panel)]):
            results = panel.results.get(conditions, {})
            runs = {s.run for s in findings.scores if s.conditions == conditions}
            changes = sorted({c for s in findings.scores if s.conditions == conditions
                              for c in s.changes})  # fmt: skip
            rows.append([
                findings.names[conditions], panel.title, "\n".join(changes) or "none",
                conditions.protocol_label, count(len(results)), count(len(runs)),
            ])  # fmt: skip
    head = ["setting", "benchmark", "changes of the config file", "protocol", "tasks", "runs"]
    return simple("What the names stand for", head, rows, words={0, 1, 2, 3})


def _curved(panel: Panel) -> list[Conditions]:
    return [conditions for groups in panel.curves.values() for conditions in groups]


def made_table(panel: Panel, findings: Findings) -> Shown:
    """The table of how each task was trained: model size, action repeat, budget, seeds, episodes,
    minutes and cores."""
    rows = []
    for conditions, results in panel.results.items():
        for task, result in results.items():
            minutes = [s.seconds / 60 for s in result.scores if s.seconds]
            cores = {s.cores for s in result.scores if s.cores}
            rows.append([
                task, findings.names[conditions],
                " or ".join(sorted({s.size for s in result.scores})),
                count(result.evaluation.frame_skip), count(result.evaluation.frames),
                count(len(result.scores)), result.evaluation.text,
                count(float(np.mean(minutes))) if minutes else count(None),
                counts(cores) if cores else count(None),
            ])  # fmt: skip
    frames = find_domain(panel.benchmark).benchmark.frame_name
    head = ["task", "setting", "model", "action repeat", frames, "seeds", "evaluation",
            "minutes a run", "threads"]  # fmt: skip
    return simple(f"{panel.title}: how our numbers were made", head, rows, words={0, 1, 2, 6})


def runs_frame(findings: Findings) -> pd.DataFrame:
    """Every score file, with all digits."""
    rows = []
    apart = set(map(id, findings.others))
    for item in sorted(findings.scores, key=lambda s: (s.conditions, s.task, s.seed, s.run)):
        best = max(item.rows, key=lambda row: row.mean)
        normalised = findings.normalise(item.conditions.benchmark, item.task, item.final.mean)
        rows.append({
            "benchmark": item.conditions.benchmark, "task": item.task,
            "setting": findings.names[item.conditions], "seed": item.seed, "run": item.run,
            "evaluation": item.evaluation.label or "default", "policy": item.evaluation.text,
            "counts": "no" if id(item) in apart else "yes",
            "step": item.final.step, "frames": item.final.frames, "mean": item.final.mean,
            "std": item.final.std, "normalised": normalised,
            "best": best.mean, "best_step": best.step,
        })  # fmt: skip
    return pd.DataFrame(rows)


def runs_table(findings: Findings) -> Shown:
    """The table of every score file: the score of the last checkpoint and the score of the best
    one."""
    rows = [
        [row.task, row.setting, count(row.seed), row.run,
         row.policy + (f" ({row.evaluation})" if row.evaluation != "default" else ""),
         row.counts, count(row.frames), score(row.mean), score(row.std), score(row.best)]
        for row in runs_frame(findings).itertuples()
    ]  # fmt: skip
    head = ["task", "setting", "seed", "run", "evaluation", "counts", "frames", "last checkpoint",
            "std of episodes", "best checkpoint"]  # fmt: skip
    note = (
        "A run's score is that of its last checkpoint; the best one's is listed to see how much "
        "was lost again. Scores that do not count are of another evaluation or budget."
    )
    return simple("Every score file", head, rows, notes=[note], words={0, 1, 3, 4, 5})


def published_frame(findings: Findings) -> pd.DataFrame:
    """Mean and median over all tasks of every published column, from its means per task."""
    rows = []
    for table in findings.tables:
        for method, scores in findings.normalise.table(table).items():
            about, known = table.columns[method], scores.dropna()
            rows.append(
                {"benchmark": table.benchmark, "method": table.label(method), "tasks": len(known)}
                | _centre(known)
                | {"protocol": about.protocol, "source": about.source, "table": table.name}
            )
    return pd.DataFrame(rows)


def published_tables(findings: Findings) -> list[Shown]:
    """:func:`published_frame` as one table per benchmark that has runs of ours."""
    found, frame = [], published_frame(findings)
    for benchmark in dict.fromkeys(panel.benchmark for panel in findings.panels):
        rows = [
            [row.method, count(row.tasks), share(row.mean), share(row.median), row.protocol,
             row.source]
            for row in frame[frame.benchmark == benchmark].itertuples()
        ]  # fmt: skip
        title = find_domain(benchmark).benchmark.title or benchmark
        title += f": published {findings.normalise.unit(benchmark)}"
        head = ["method", "tasks", "mean", "median", "protocol", "source"]
        found.append(simple(title + " over all tasks of each table", head, rows, words={0, 4, 5}))
    return found


def times_tables(findings: Findings, times: pd.DataFrame) -> list[Shown]:
    """The published training times of the benchmarks that have runs of ours."""
    found = []
    for benchmark, part in times.groupby("benchmark", sort=False):
        if benchmark in {panel.benchmark for panel in findings.panels}:
            columns = [column for column in part if column != "benchmark"]
            rows = [[str(v) for v in row] for row in part[columns].itertuples(index=False)]
            title = f"{find_domain(benchmark).benchmark.title}: published training times"
            found.append(simple(title, columns, rows, words=set(range(len(columns)))))
    return found


def other_evaluations(others: list[Score]) -> str:
    """One sentence that counts the score files that are reported separately, by setting."""
    if not others:
        return ""
    kinds = sorted({s.evaluation.label or s.evaluation.text for s in others})
    many = "1 score file stands" if len(others) == 1 else f"{len(others)} score files stand"
    return f"{RULE} {many} apart: {', '.join(kinds)}."
