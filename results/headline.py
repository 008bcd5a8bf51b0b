"""The table of the main scores: our runs and other methods, with the number of seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pwm_core.domain import find_domain
from results.panels import SAME, Findings, Panel
from results.published import Table
from results.scores import Conditions
from results.shown import Shown, count, counts, score, spread

MOST_SETTINGS = 2
"""How many of our settings the headline shows; the details show all of them."""
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿ"


@dataclass
class Column:
    """One method: its heading, its scores by task and a letter for its protocol."""

    group: str
    label: str
    scores: pd.Series
    protocol: str = ""
    ours: Conditions | None = None


def main_settings(panel: Panel) -> list[Conditions]:
    """Our settings in the headline: the one with the most tasks, and a second one if it has at
    least half as many."""
    found = list(panel.results)
    if not found:
        return []
    most = len(panel.results[found[0]])
    return [c for c in found if 2 * len(panel.results[c]) >= most][:MOST_SETTINGS]


def random_scores(panel: Panel, findings: Findings) -> pd.Series:
    """The scores of random play by task, at the action repeat of our runs."""
    values = {}
    for task in panel.tasks:
        repeats = [r[task].evaluation.frame_skip for r in panel.results.values() if task in r]
        values[task] = findings.random(panel.benchmark, task, repeats[0])
    return pd.Series(values, dtype=float)


def columns_of(panel: Panel, findings: Findings) -> list[Column]:
    """The columns for the tasks of the panel: our settings, the references, then the methods of
    every published table."""
    found = []
    for conditions in main_settings(panel):
        results = panel.results[conditions]
        values = pd.Series({task: r.mean for task, r in results.items()}, dtype=float)
        label = findings.names[conditions]
        found.append(Column("ours", label, values.reindex(panel.tasks), ours=conditions))
    found.append(Column("play", "random", random_scores(panel, findings)))
    for table in panel.tables:
        if "Human" in table.references:
            found.append(Column("play", "human", table.references["Human"].reindex(panel.tasks)))
        for method in in_order(table):
            values = table.scores[method].reindex(panel.tasks)
            about = table.columns[method]
            found.append(Column(table.title, table.label(method), values, about.protocol))
    return [column for column in found if column.ours or column.scores.notna().any()]


def in_order(table: Table) -> list[str]:
    """The methods of a table; those that the figures show come first."""
    return [*table.headline, *(method for method in table.scores if method not in table.headline)]


def headline_frame(panel: Panel, findings: Findings) -> pd.DataFrame:
    """Tasks x methods with all digits. Our columns have the lowest seed, the highest seed and the
    number of seeds."""
    parts = {"task": pd.Series(panel.tasks, panel.tasks)}
    for column in columns_of(panel, findings):
        name = f"{column.group}: {column.label}"
        parts[name] = column.scores
        if column.ours:
            results = panel.results[column.ours]
            for what in ("low", "high"):
                parts[f"{name}, {what}"] = pd.Series(
                    {task: getattr(result, what) for task, result in results.items()}
                )
            parts[f"{name}, seeds"] = pd.Series({t: len(r.values) for t, r in results.items()})
    return pd.DataFrame(parts, index=panel.tasks)


def headline_table(panel: Panel, findings: Findings) -> Shown:
    """The table with tasks in rows and methods in columns. Footnotes give the protocols, and the
    means are below each budget."""
    columns = columns_of(panel, findings)
    protocols = list(dict.fromkeys(c.protocol for c in columns if c.protocol))
    mark = {p: LETTERS[i % len(LETTERS)] for i, p in enumerate(protocols)}
    groups, methods = [("", 1)], [("task", 1)]
    marked = set()
    for column in columns:
        width = 2 if column.ours else 1
        if groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + width)
        else:
            groups.append((column.group, width))
        note = mark[column.protocol] if column.protocol in mark and len(mark) > 1 else ""
        methods.append((column.label + note, 1))
        if column.ours:
            marked |= {len(methods) - 1, len(methods)}
            methods.append(("seeds", 1))
    rows, strong = [], set()
    parts = budget_groups(panel)
    for title, tasks in parts:
        rows += [_row(task, columns, panel) for task in tasks]
        strong |= _add_means(rows, title, tasks, columns)
    if len(parts) > 1:
        title = f"all {len(panel.tasks)} tasks"
        strong |= _add_means(rows, title, panel.tasks, columns)
    notes = [*_notes(panel, findings)]
    notes += [f"{mark[p] + ' ' if len(mark) > 1 else ''}{_sentence(p)}" for p in protocols]
    caption = (
        f"{find_domain(panel.benchmark).benchmark.score_name.capitalize()} of the last checkpoint"
    )
    return Shown(caption, [groups, methods], rows, notes, strong, marked)


def budget_groups(panel: Panel) -> list[tuple[str, list[str]]]:
    """The tasks of each published budget, with a name for each group. There is one group if there
    is one budget."""
    frames = panel.frames.reindex(panel.tasks)
    groups: dict[str, list[str]] = {}
    several = frames.dropna().nunique() > 1
    for task in sorted(panel.tasks, key=lambda task: frames[task]):
        budget = f" at {count(frames[task])}" if several and frames[task] == frames[task] else ""
        groups.setdefault(budget, []).append(task)
    return [
        (f"{len(tasks)} task{'s' * (len(tasks) > 1)}{budget}", tasks)
        for budget, tasks in groups.items()
    ]


def _add_means(
    rows: list[list[str]], title: str, tasks: list[str], columns: list[Column]
) -> set[int]:
    """Append the mean and the median of ``tasks`` if there are at least two. Returns the indices of
    the appended rows."""
    if len(tasks) < 2:
        return set()
    rows.append(_means(f"mean, {title}", pd.Series.mean, tasks, columns))
    rows.append(_means(f"median, {title}", pd.Series.median, tasks, columns))
    return {len(rows) - 2, len(rows) - 1}


def _row(task: str, columns: list[Column], panel: Panel) -> list[str]:
    cells = [task]
    for column in columns:
        if not column.ours:
            cells.append(score(column.scores[task]))
            continue
        result = panel.results[column.ours].get(task)
        seeds = len(result.values) if result else 0
        between = f"\n{spread(result.low, result.high)}" if seeds > 1 else ""
        cells += [score(column.scores[task]) + between, count(seeds) if seeds else score(None)]
    return cells


def _means(
    title: str, how: Callable[[pd.Series], float], tasks: list[str], columns: list[Column]
) -> list[str]:
    """One row: the statistic ``how`` of every column that has all of ``tasks``. The others are left
    empty, because their means are not comparable."""
    cells = [title]
    for column in columns:
        values = column.scores.reindex(tasks)
        cells.append(score(how(values) if values.notna().all() else np.nan))
        cells += [""] if column.ours else []
    return cells


def _notes(panel: Panel, findings: Findings) -> Iterator[str]:
    """Notes on our runs (seeds, budget, evaluation, action repeat) and on random play."""
    domain = find_domain(panel.benchmark).benchmark
    for conditions in main_settings(panel):
        results = panel.results[conditions].values()
        seeds = counts({len(r.values) for r in results}, "seed")
        frames = counts({r.evaluation.frames for r in results})
        repeat = counts({r.evaluation.frame_skip for r in results})
        how = " or ".join(sorted({r.evaluation.text for r in results}))
        size = " or ".join(sorted({s.size for r in results for s in r.scores}))
        yield (
            f"{findings.names[conditions]}: ours; {seeds} per task, mean with the lowest and the "
            f"highest seed below it; {how} actions; {frames} {domain.frame_name}, action repeat "
            f"{repeat}; {size}; protocol {conditions.protocol_label}."
        )
    if source := findings.random.source(panel.benchmark):
        yield f"Random: {source}."
    if odd := [task for task in panel.tasks if _of_two_budgets(task, panel, findings)]:
        yield f"Scores that were published at another budget are left out: {', '.join(odd)}."
    yield "A mean or median stands only where a method has every task of its row."


def _of_two_budgets(task: str, panel: Panel, findings: Findings) -> bool:
    """Whether a table that the panel is compared with has another budget for ``task``."""
    names = {table.name for table in panel.tables}
    tables = [table for table in findings.tables if table.name in names]
    frames = [table.frames[task] for table in tables if task in table.frames]
    return any(abs(one / panel.frames[task] - 1) > SAME for one in frames)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def summary(panel: Panel, findings: Findings) -> str:
    """A few sentences that give our scores, the methods compared with and the number of seeds."""
    if not panel.results:
        return "There are learning curves but no scores yet."
    (conditions, *_), domain = main_settings(panel), find_domain(panel.benchmark).benchmark
    results = panel.results[conditions]
    seeds = counts({len(r.values) for r in results.values()}, "seed")
    known = sum(len(table.frames) for table in panel.tables[:1])
    of = f" of {known} tasks" if known else f" task{'s' * (len(results) > 1)}"
    text = f"Ours, {findings.names[conditions]}: {len(results)}{of}, {seeds} each. "
    tasks = list(results)
    parts = []
    for column in columns_of(panel, findings):
        values = column.scores.reindex(tasks)
        wanted = column.ours == conditions or column.label in ("random", "human") or any(
            column.group == t.title and column.label in map(t.label, t.headline[:3])
            for t in panel.tables
        )  # fmt: skip
        if wanted and values.notna().all():
            name = "ours" if column.ours else column.label
            parts.append(f"{name} {score(values.mean())}")
    many = f"Mean {domain.score_name} on these {len(tasks)} tasks: "
    text += (many if len(tasks) > 1 else f"{tasks[0]}, {domain.score_name}: ") + ", ".join(parts)
    text += ". " + _budget_sentence(panel, conditions, domain.frame_name)
    left = len(panel.results) - len(main_settings(panel))
    if left:
        text += f" {left} more setting{'s are' if left > 1 else ' is'} in the details."
    return text


def _budget_sentence(panel: Panel, conditions: Conditions, frame_name: str) -> str:
    """A sentence that says whether the published budgets are those of our runs."""
    ours = {task: r.evaluation.frames for task, r in panel.results[conditions].items()}
    published = panel.frames.reindex(list(ours)).dropna()
    if published.empty:
        return ""
    off = [abs(ours[task] / budget - 1) for task, budget in published.items()]
    if max(off) <= SAME:
        return f"Ours and the published methods had the same number of {frame_name}."
    return (
        f"Ours had {counts(set(ours.values()))} {frame_name}, the published methods "
        f"{counts({int(budget) for budget in published})}: at different budgets scores do not "
        "compare one to one."
    )
