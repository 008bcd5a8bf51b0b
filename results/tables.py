"""The report's tables, as data frames."""

from __future__ import annotations

import numpy as np
import pandas as pd

from results.aggregates import METRICS, Matrix, make_matrix
from results.published import Normaliser, Table
from results.scores import Score, Setting, counted

SCORE = {"atari": "game score", "dmc": "return (at most 1000)"}
NORMALISED = {"atari": "human-normalised", "dmc": "of 1000"}


def letters(settings: list[Setting]) -> dict[Setting, str]:
    """A short name for each: A, B, ..., Z, A1, ..."""
    return {s: chr(65 + i % 26) + (str(i // 26) if i > 25 else "") for i, s in enumerate(settings)}


def settings_table(groups: dict[Setting, list[Score]], names: dict[Setting, str]) -> pd.DataFrame:
    """What each letter stands for."""
    return pd.DataFrame(
        [
            {
                "setting": names[setting],
                "config": setting.conditions.config,
                "protocol": setting.conditions.protocol_label,
                "frames": setting.frames,
                "episodes per run": setting.episodes,
                "policy": "greedy" if setting.greedy else "sampled",
                "tasks": len({score.task for score in scores}),
                "runs": len(scores),
            }
            for setting, scores in groups.items()
        ]
    )


def runs_table(
    groups: dict[Setting, list[Score]], names: dict[Setting, str], normalise: Normaliser
) -> pd.DataFrame:
    """Every run: setting, task, seed, run, step, frames, mean, std over episodes, normalised."""
    rows = [
        {
            "setting": names[setting],
            "task": score.task,
            "seed": score.seed,
            "run": score.run,
            "step": score.final.step,
            "frames": score.final.frames,
            "mean": score.final.mean,
            "std": score.final.std,
            "normalised": normalise(setting.conditions.benchmark, score.task, score.final.mean),
        }
        for setting, scores in groups.items()
        for score in sorted(scores, key=lambda s: (s.task, s.seed, s.run))
    ]
    return pd.DataFrame(rows)


def seeds_table(setting: Setting, scores: list[Score], normalise: Normaliser) -> pd.DataFrame:
    """Task x seed: mean returns, their mean and standard deviation, the mean normalised."""
    benchmark, rows = setting.conditions.benchmark, []
    by_task = counted(scores)
    seeds = sorted({seed for values in by_task.values() for seed in values})
    for task, values in by_task.items():
        mean = float(np.mean(list(values.values())))
        spread = float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else np.nan
        row = {"task": task} | {f"seed {seed}": values.get(seed, np.nan) for seed in seeds}
        row |= {"mean": mean, "std of seeds": spread}
        rows.append(row | {NORMALISED[benchmark]: normalise(benchmark, task, mean)})
    return pd.DataFrame(rows)


def comparison_table(
    groups: dict[Setting, list[Score]], names: dict[Setting, str], tables: list[Table]
) -> pd.DataFrame:
    """Tasks of a benchmark that were run x our settings (means over seeds) and published columns.

    The first rows tell each column's protocol, frames and runs.
    """
    tasks = sorted({score.task for scores in groups.values() for score in scores})
    columns: dict[str, list[object]] = {}
    for setting, scores in groups.items():
        values = {task: float(np.mean(list(v.values()))) for task, v in counted(scores).items()}
        label = setting.conditions.protocol_label
        head = [label, setting.frames, len({score.seed for score in scores})]
        columns[f"ours: {names[setting]}"] = head + [values.get(task, np.nan) for task in tasks]
    for table in tables:
        scores_of_all = table.references.join(table.scores)
        for method in scores_of_all:
            about = table.columns[method]
            budgets = sorted({int(table.frames[t]) for t in tasks if t in table.frames.index})
            frames = budgets[0] if len(budgets) == 1 else " or ".join(f"{b:,}" for b in budgets)
            head = [about.protocol, frames if about.same else None, about.runs]
            values = scores_of_all[method].reindex(tasks)
            if values.notna().any():
                columns[f"{method} ({table.name})"] = [*head, *values]
    return pd.DataFrame(columns, index=["protocol", "frames", "runs per task", *tasks]).T


def matrices(
    groups: dict[Setting, list[Score]],
    names: dict[Setting, str],
    normalise: Normaliser,
    problems: list[str],
) -> dict[str, Matrix]:
    """Normalised scores of each setting, by its letter; games without references are named."""
    found = {}
    for setting, scores in groups.items():
        benchmark, usable = setting.conditions.benchmark, {}
        for task, values in counted(scores).items():
            normalised = {s: float(normalise(benchmark, task, v)) for s, v in values.items()}
            if np.isnan(list(normalised.values())).any():
                problems.append(f"{task}: not in the aggregates: no human score is known for it")
            else:
                usable[task] = normalised
        if usable:
            found[names[setting]] = make_matrix(usable, setting.label, problems)
    return found


def published_aggregates(tables: list[Table], normalise: Normaliser) -> pd.DataFrame:
    """Mean and median over all tasks of each published column, from its per-task means.

    IQM and optimality gap need the scores of single runs, which the tables do not hold.
    """
    rows = []
    for table in tables:
        for method, scores in normalise.table(table).items():
            known = scores.dropna()
            about = table.columns[method]
            rows.append(
                {
                    "method": method,
                    "tasks": len(known),
                    "mean": known.mean(),
                    "median": known.median(),
                    "protocol": about.protocol,
                    "source": about.source,
                    "table": table.name,
                }
            )
    return pd.DataFrame(rows)


def on_our_tasks(
    ours: dict[str, Matrix], tables: list[Table], normalise: Normaliser
) -> pd.DataFrame:
    """Mean and median of the published columns on the very tasks of each of our settings."""
    rows = []
    for letter, matrix in ours.items():
        rows.append(_on_tasks(letter, f"ours: {letter}", pd.Series(matrix.values.mean(0))))
        for table in tables:
            for method, scores in normalise.table(table).items():
                known = scores.reindex(matrix.tasks)
                if known.notna().all():
                    rows.append(_on_tasks(letter, f"{method} ({table.name})", known))
    return pd.DataFrame(rows)


def _on_tasks(letter: str, method: str, scores: pd.Series) -> dict[str, object]:
    return {
        "tasks of": letter,
        "method": method,
        "tasks": len(scores),
        "mean": scores.mean(),
        "median": scores.median(),
    }


def aggregates_table(found: pd.DataFrame) -> pd.DataFrame:
    """:func:`results.aggregates.intervals` to read: a row per setting, value [low, high]."""
    rows = []
    for (setting, tasks, runs), part in found.groupby(["setting", "tasks", "runs"], sort=False):
        row: dict[str, object] = {"setting": setting, "tasks": tasks, "runs per task": runs}
        for metric in METRICS:
            value, low, high = part.set_index("metric").loc[metric, ["value", "low", "high"]]
            bounds = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
            row[metric] = f"{value:.3f}{bounds}"
        rows.append(row)
    return pd.DataFrame(rows)


def pairs(
    groups: dict[Setting, list[Score]],
    names: dict[Setting, str],
    ours: dict[str, Matrix],
    tables: list[Table],
    normalise: Normaliser,
) -> dict[tuple[str, str], tuple[Matrix, Matrix]]:
    """What may be compared run by run: our settings that differ in the config alone, and published
    columns (their means as one run) that share the protocol and, within 5 %, the frames."""
    found: dict[tuple[str, str], tuple[Matrix, Matrix]] = {}
    for x in groups:
        if names[x] not in ours:
            continue
        for y in groups:
            if names[y] in ours and names[x] < names[y] and _alike(x, y):
                found[names[x], names[y]] = ours[names[x]], ours[names[y]]
        for table in tables:
            for method, scores in normalise.table(table).items():
                if not _shares(x, table.columns[method].same):
                    continue
                near = (table.frames - x.frames).abs() <= 0.05 * table.frames
                known = scores[near].dropna()
                theirs = Matrix(known.to_numpy()[None], list(known.index))
                found[names[x], f"{method} ({table.name})"] = ours[names[x]], theirs
    return {key: pair for key, pair in found.items() if set(pair[0].tasks) & set(pair[1].tasks)}


def _alike(x: Setting, y: Setting) -> bool:
    return (x.conditions.protocol, x.frames, x.episodes, x.greedy) == (
        y.conditions.protocol,
        y.frames,
        y.episodes,
        y.greedy,
    )


def _shares(setting: Setting, same: dict[str, object]) -> bool:
    """Whether all that a published column is known to share is so in ``setting``."""
    ours = dict(setting.conditions.protocol)
    return bool(same) and all(ours.get(key) == f"{value}" for key, value in same.items())
