"""Decides which scores are averaged and which are reported separately, and names the settings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from results.curves import Curve
from results.scores import Conditions, Evaluation, Score

COLOURS = ("#2a78d6", "#e0730d", "#179c72", "#b04fc4", "#c9a106", "#d64550", "#4aa7c9", "#8a6d3b")
"""The colours of our settings in every figure, readable on white and on black."""


@dataclass(frozen=True)
class Result:
    """One task under one way of training and one way of evaluation.

    Attributes:
        scores: one per seed, sorted by seed.
    """

    task: str
    evaluation: Evaluation
    scores: tuple[Score, ...]

    @property
    def values(self) -> dict[int, float]:
        """Final scores by seed."""
        return {score.seed: score.final.mean for score in self.scores}

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def low(self) -> float:
        """The score of the lowest seed."""
        return min(self.values.values())

    @property
    def high(self) -> float:
        """The score of the highest seed."""
        return max(self.values.values())


Results = dict[Conditions, dict[str, Result]]
"""Way of training -> task -> the result that counts."""


def merge_repeats(scores: list[Score], curves: list[Curve]) -> tuple[list[Score], list[Curve]]:
    """Drop the action repeat from the conditions of settings that use one repeat for each task. The
    tasks of one setting may differ in the repeat, but the runs of one task may not."""
    repeats: dict[Conditions, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    plain = [score for score in scores if not score.evaluation.label]
    for item in [*plain, *curves]:
        repeats[replace(item.conditions, repeat=0)][item.task].add(item.conditions.repeat)

    def merged(conditions: Conditions) -> Conditions:
        whole = replace(conditions, repeat=0)
        alone = all(len(found) == 1 for found in repeats[whole].values())
        return whole if alone else conditions

    return (
        [replace(score, conditions=merged(score.conditions)) for score in scores],
        [replace(curve, conditions=merged(curve.conditions)) for curve in curves],
    )


Budget = Callable[[Conditions, str], int | None]
"""The published number of frames for a task under some conditions; None if nothing is published."""


def settle(
    scores: list[Score], budget_of: Budget, problems: list[str]
) -> tuple[Results, list[Score]]:
    """Choose the scores that count, one evaluation per setting and task. Returns them and all other
    scores.

    Finished runs are preferred to unfinished ones. The next criterion is the run's own setting with
    sampled actions, with any number of episodes. Then the length nearest to the published budget
    is preferred, then more seeds, then more episodes.
    """
    groups: dict[Conditions, dict[str, dict[Group, list[Score]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for score in scores:
        group = Group(score.evaluation, score.finished)
        groups[score.conditions][score.task][group].append(score)
    found: Results = {}
    others: list[Score] = []
    for conditions, tasks in sorted(groups.items()):
        found[conditions] = {}
        for task, own in sorted(tasks.items()):
            budget = budget_of(conditions, task)
            best, *rest = sorted(own, key=lambda group: _rank(group, own[group], budget))
            counted = _one_per_seed(task, own[best], problems)
            found[conditions][task] = Result(task, best.evaluation, counted)
            others += [score for score in own[best] if score not in counted]
            others += [score for group in rest for score in own[group]]
            if not best.evaluation.plain:
                problems.append(
                    f"{task}, {conditions.config}: there are no scores of sampled actions under "
                    "the runs' own setting; shown are "
                    f"{best.evaluation.label or best.evaluation.text}"
                )
    return found, others


class Group(NamedTuple):
    """What the scores of one mean have in common."""

    evaluation: Evaluation
    finished: bool


def _rank(group: Group, scores: list[Score], budget: int | None) -> tuple[object, ...]:
    evaluation = group.evaluation
    off = abs(math.log(evaluation.frames / budget)) if budget and evaluation.frames else 0.0
    return (
        not group.finished,
        not evaluation.plain,
        round(off, 1),
        -len({score.seed for score in scores}),
        -evaluation.episodes,
        evaluation,
    )


def _one_per_seed(task: str, scores: list[Score], problems: list[str]) -> tuple[Score, ...]:
    """The first run of every seed. The others are named in ``problems``."""
    runs: dict[int, list[Score]] = defaultdict(list)
    for score in sorted(scores, key=lambda s: (s.seed, s.run)):
        runs[score.seed].append(score)
    for seed, found in runs.items():
        if len(found) > 1:
            names = ", ".join(score.run for score in found)
            problems.append(
                f"{task}: {len(found)} runs of seed {seed} ({names}); all are listed, "
                f"only {found[0].run} counts in means and aggregates"
            )
    return tuple(found[0] for found in runs.values())


def check_seeds(results: Results, names: dict[Conditions, str], problems: list[str]) -> None:
    """Report tasks that have fewer seeds than other tasks of their setting."""
    for conditions, tasks in results.items():
        by_seeds: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for task, result in tasks.items():
            by_seeds[tuple(sorted(result.values))].append(task)
        lines = [
            f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} on {', '.join(those)}"
            for seeds, those in sorted(by_seeds.items(), key=lambda item: -len(item[0]))
        ]
        if len(lines) > 1:
            problems.append(f"{names[conditions]}: tasks differ in their seeds: {'; '.join(lines)}")
        elif len(next(iter(by_seeds))) == 1:
            problems.append(f"{names[conditions]}: {lines[0]}: one seed, so no spread over seeds")


def name_all(every: Iterable[Conditions]) -> dict[Conditions, str]:
    """A short name for each setting: the name of its config, and whatever else distinguishes the
    settings of a benchmark."""
    every = list(every)
    names = {}
    for conditions in every:
        protocols = {c.protocol for c in every if c.benchmark == conditions.benchmark}
        differing = {
            key for protocol in protocols for key, value in protocol
            if len({dict(other).get(key) for other in protocols}) > 1
        }  # fmt: skip
        shown = dict(conditions.protocol)
        keys = ["name"] if "name" in differing else sorted(differing)
        parts = [conditions.config, *(shown[key] for key in keys if key in shown)]
        if conditions.repeat:
            parts.append(f"action repeat {conditions.repeat}")
        names[conditions] = ", ".join(parts)
    return names


def colour_all(every: Iterable[Conditions]) -> dict[Conditions, str]:
    """A colour for each setting, in the given order, within its benchmark."""
    colours: dict[Conditions, str] = {}
    seen: dict[str, int] = defaultdict(int)
    for conditions in every:
        colours[conditions] = COLOURS[seen[conditions.benchmark] % len(COLOURS)]
        seen[conditions.benchmark] += 1
    return colours
