"""The standard aggregate metrics of rliable (Agarwal et al., 2021)."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from rliable import library, metrics

METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "IQM": metrics.aggregate_iqm,
    "optimality gap": metrics.aggregate_optimality_gap,
}


class Matrix(NamedTuple):
    """Normalised scores of one setting.

    Attributes:
        values: (runs, tasks); row r holds the r-th seed of every task.
        tasks: the names of the columns.
    """

    values: np.ndarray
    tasks: list[str]

    def on(self, tasks: list[str]) -> np.ndarray:
        """The columns of ``tasks``, in that order: (runs, len(tasks))."""
        return self.values[:, [self.tasks.index(task) for task in tasks]]


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed NumPy's global generator inside the context, since rliable uses it whatever
    ``random_state`` it is given. The previous state is restored at the end."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def make_matrix(scores: dict[str, dict[int, float]], label: str, problems: list[str]) -> Matrix:
    """Arrange normalised scores, as :func:`results.settings.Result.values` returns them, by seed.

    The bootstrap needs the same number of runs of every task. If seeds are missing, the seeds that
    all tasks have are kept. If there are none, every task keeps its first seeds, as many as all
    tasks have. What is left out is named in ``problems``.
    """
    tasks = sorted(scores)
    common = sorted(set.intersection(*(set(scores[task]) for task in tasks)))
    fewest = min(len(scores[task]) for task in tasks)
    seeds = {task: common or sorted(scores[task])[:fewest] for task in tasks}
    left: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        if unused := sorted(set(scores[task]) - set(seeds[task])):
            left[", ".join(map(str, unused))].append(task)
    problems += [
        f"the aggregates leave out seed {unused} of {', '.join(those)}, since not every task has "
        f"as many runs ({label})"
        for unused, those in left.items()
    ]
    values = [[scores[task][seed] for seed in seeds[task]] for task in tasks]
    return Matrix(np.array(values).T, tasks)


def _all_metrics(values: np.ndarray) -> np.ndarray:
    return np.array([metric(values) for metric in METRICS.values()])


def intervals(matrices: dict[str, Matrix], reps: int) -> pd.DataFrame:
    """Aggregates, one row per label and metric: setting, metric, value, low, high, tasks, runs.

    The columns low and high bound the 95 % stratified-bootstrap interval. They are NaN for a single
    run.
    """
    rows = []
    for label, matrix in matrices.items():
        runs = len(matrix.values)
        point, bounds = _all_metrics(matrix.values), np.full((2, len(METRICS)), np.nan)
        if runs > 1:
            with seeded():
                found = library.get_interval_estimates(
                    {label: matrix.values}, _all_metrics, reps=reps
                )
            bounds = found[1][label]
        for name, value, low, high in zip(METRICS, point, *bounds, strict=True):
            rows.append((label, name, value, low, high, len(matrix.tasks), runs))
    columns = ["setting", "metric", "value", "low", "high", "tasks", "runs"]
    return pd.DataFrame(rows, columns=columns)


def mean_intervals(values: np.ndarray, reps: int) -> np.ndarray:
    """The 95 % bootstrap intervals of the means over runs.

    Args:
        values: (runs, tasks).

    Returns:
        (2, tasks): low and high.
    """
    with seeded():
        found = library.get_interval_estimates({"": values}, lambda x: x.mean(axis=0), reps=reps)
    return found[1][""]


def profiles(matrices: dict[str, Matrix], reps: int) -> pd.DataFrame:
    """Performance profiles: setting, score, fraction of runs above it, low, high."""
    largest = max(matrix.values.max() for matrix in matrices.values())
    smallest = min(0.0, *(matrix.values.min() for matrix in matrices.values()))
    thresholds = np.linspace(smallest, max(1.0, 1.05 * largest), 101)
    parts = []
    for label, matrix in matrices.items():
        bounds = np.full((2, len(thresholds)), np.nan)
        if len(matrix.values) > 1:
            with seeded():
                found = library.create_performance_profile(
                    {label: matrix.values}, thresholds, reps=reps
                )
            bounds = found[1][label]
        above = library.score_distributions(matrix.values, thresholds)
        columns = {"score": thresholds, "fraction": above, "low": bounds[0], "high": bounds[1]}
        parts.append(pd.DataFrame({"setting": label, **columns}))
    return pd.concat(parts, ignore_index=True)


Pairs = dict[tuple[str, str], tuple[Matrix, Matrix]]
"""The scores of X and of Y by their two names."""


def improvement(pairs: Pairs, reps: int) -> pd.DataFrame:
    """P(X > Y) on the tasks that both have; see :func:`_compare`.

    The probability is averaged over tasks, and a tie counts half.
    """
    return _compare(pairs, metrics.probability_of_improvement, reps)


def difference(pairs: Pairs, reps: int) -> pd.DataFrame:
    """The mean of X minus the mean of Y on the tasks that both have; see :func:`_compare`."""
    return _compare(pairs, lambda ours, theirs: ours.mean() - theirs.mean(), reps)


def _compare(
    pairs: Pairs, metric: Callable[[np.ndarray, np.ndarray], float], reps: int
) -> pd.DataFrame:
    """A metric of two settings on the tasks that both have: x, y, value, low, high, tasks.

    The columns low and high bound the 95 % stratified-bootstrap interval. They are NaN if X or Y is
    a single run.
    """
    rows = []
    for (x, y), (ours, theirs) in pairs.items():
        tasks = [task for task in ours.tasks if task in theirs.tasks]
        both = [ours.on(tasks), theirs.on(tasks)]
        value, low, high = metric(*both), np.nan, np.nan
        if min(len(ours.values), len(theirs.values)) > 1:
            with seeded():
                _, found = library.get_interval_estimates({"pair": both}, metric, reps=reps)
            low, high = found["pair"].ravel()
        rows.append((x, y, value, low, high, len(tasks)))
    return pd.DataFrame(rows, columns=["x", "y", "value", "low", "high", "tasks"])
