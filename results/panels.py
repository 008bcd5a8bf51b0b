"""Panels: our runs of one benchmark beside the published tables that they are compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from results.curves import Curve, by_task, read_curves
from results.published import Normaliser, RandomPlay, Table, read_published
from results.scores import Conditions, Score, read_scores
from results.settings import (
    Results,
    check_seeds,
    colour_all,
    merge_repeats,
    name_all,
    settle,
)
from results.videos import Video, find_videos

SAME = 0.05
"""The relative difference up to which our frames count as equal to a published budget."""


@dataclass
class Panel:
    """Our settings that are compared with the same published tables.

    Attributes:
        key: the prefix of the names of its files.
        results: the setting with the most tasks comes first.
        curves: task -> setting -> one curve per seed.
    """

    key: str
    title: str
    benchmark: str
    results: Results
    curves: dict[str, dict[Conditions, list[Curve]]]
    tables: list[Table]

    @property
    def tasks(self) -> list[str]:
        """The tasks with scores: first those of the published table, in its order, then the
        others."""
        ours = {task for tasks in self.results.values() for task in tasks}
        known = [task for table in self.tables for task in table.frames.index]
        order = list(dict.fromkeys([*known, *sorted(ours)]))
        return [task for task in order if task in ours]

    @property
    def frames(self) -> pd.Series:
        """The published budget of each task; empty if there is none."""
        if not self.tables:
            return pd.Series(dtype=float)
        whole = pd.concat([table.frames for table in self.tables])
        return whole[~whole.index.duplicated()]


@dataclass
class Findings:
    """Everything that the report is about.

    Attributes:
        scores: all scores that were read.
        others: the scores that do not count and are reported separately.
        names, colours: the name and the colour of every setting, in all figures and tables.
        problems: one line for everything that was left out, is missing or cannot be compared.
    """

    panels: list[Panel]
    scores: list[Score]
    others: list[Score]
    names: dict[Conditions, str]
    colours: dict[Conditions, str]
    videos: list[Video]
    tables: list[Table]
    normalise: Normaliser
    random: RandomPlay
    problems: list[str]


def gather(folder: Path, runs: Path) -> Findings:
    """Read score files (``eval_result/``) and run folders (``ckpt/``).

    Raises:
        UserError: there is nothing to report on.
    """
    problems: list[str] = []
    scores, curves = merge_repeats(
        read_scores(folder, problems), read_curves(folder, runs, problems)
    )
    if not scores and not curves:
        why = f": {'; '.join(problems)}" if problems else ""
        raise UserError(f"no scores in {folder} and no metrics in {runs} to report on{why}")
    tables = read_published()
    results, others = settle(scores, lambda c, task: _budget(c, task, tables), problems)
    every = {c: len(results.get(c, {})) for c in [*results, *(c.conditions for c in curves)]}
    order = sorted(every, key=lambda c: (c.benchmark, -every[c], c))
    results = {conditions: results[conditions] for conditions in order if conditions in results}
    names = name_all(order)
    check_seeds(results, names, problems)
    return Findings(
        panels=_panels(results, curves, order, tables, problems),
        scores=scores,
        others=others,
        names=names,
        colours=colour_all(order),
        videos=find_videos(folder, runs),
        tables=tables,
        normalise=Normaliser(tables),
        random=RandomPlay(folder, tables, problems),
        problems=problems,
    )


def _budget(conditions: Conditions, task: str, tables: list[Table]) -> int | None:
    """The budget of the first table that ``conditions`` is compared with and that has the task."""
    fitting = (table for table in tables if _stands_beside(conditions, table))
    return next((int(table.frames[task]) for table in fitting if task in table.frames), None)


def _panels(
    results: Results,
    curves: list[Curve],
    order: list[Conditions],
    tables: list[Table],
    problems: list[str],
) -> list[Panel]:
    """One panel for every benchmark and set of published tables. The one with the most tasks comes
    first."""
    groups: dict[tuple[str, ...], list[Conditions]] = {}
    for conditions in order:
        fitting = (table.name for table in tables if _stands_beside(conditions, table))
        groups.setdefault((conditions.benchmark, *fitting), []).append(conditions)
    found = []
    for (benchmark, *fitting), members in groups.items():
        beside = _of_one_budget([table for table in tables if table.name in fitting])
        only = next((table for table in beside if table.panel), None)
        ours = {c: results[c] for c in members if c in results}
        title, key = find_domain(benchmark).benchmark.title or benchmark, benchmark
        if only:
            title += f", {only.panel}"
            key = "_".join([benchmark, *map(str, only.only.values())])
        of_panel = by_task([c for c in curves if c.conditions in members], problems)
        found.append(Panel(key, title, benchmark, ours, of_panel, beside))
    return sorted(found, key=lambda panel: -len(panel.tasks))


def _of_one_budget(tables: list[Table]) -> list[Table]:
    """``tables`` without the scores that were reached with another budget than the first table
    gives for their task."""
    budgets: dict[str, float] = {}
    for table in tables:
        budgets = {**table.frames, **budgets}

    def comparable(table: Table) -> Table:
        wanted = pd.Series(budgets).reindex(table.frames.index)
        same = (table.frames - wanted).abs() <= SAME * wanted
        found = copy.copy(table)
        found.scores = table.scores.where(same)
        return found

    return [comparable(table) for table in tables]


def _stands_beside(conditions: Conditions, table: Table) -> bool:
    """Whether ``conditions`` has the settings that the whole table requires."""
    ours = dict(conditions.protocol)
    same = all(ours.get(key) == f"{value}" for key, value in table.only.items())
    return conditions.benchmark == table.benchmark and same


def same_protocol(conditions: Conditions, same: dict[str, object]) -> bool:
    """Whether ``conditions`` has every setting that a published column is known to share."""
    ours = dict(conditions.protocol)
    return bool(same) and all(ours.get(key) == f"{value}" for key, value in same.items())
