"""Aggregates agree with values computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from results import aggregates
from results.aggregates import Matrix, intervals, make_matrix, mean_intervals


def test_aggregates_by_hand() -> None:
    """There are two runs of four tasks. The middle half of the eight scores is 0.2, 0.4, 0.6,
    0.8."""
    values = np.array([[0.0, 0.2, 0.6, 2.0], [0.1, 0.4, 0.8, 4.0]])
    found = intervals({"A": Matrix(values, list("abcd"))}, reps=200).set_index("metric")
    assert found.value["mean"] == pytest.approx(8.1 / 8)
    assert found.value["median"] == pytest.approx((0.3 + 0.7) / 2)
    assert found.value["IQM"] == pytest.approx(0.5)
    assert found.value["optimality gap"] == pytest.approx(1 - (0.3 + 0.6 + 1.4 + 1 + 0.8) / 8)
    assert (found.tasks == 4).all()
    assert (found.runs == 2).all()


def test_interval_of_two_runs_by_hand() -> None:
    """One task has runs 0 and 1. The resampled means are 0, 0.5 and 1 with probabilities 1/4, 1/2
    and 1/4, so the 2.5th and the 97.5th percentile are 0 and 1."""
    matrix = Matrix(np.array([[0.0], [1.0]]), ["a"])
    found = intervals({"A": matrix}, reps=400)
    assert found.loc[0, ["low", "high"]].tolist() == [0, 1]


def test_intervals_repeat() -> None:
    """The same call gives the same interval, whatever was drawn before. It leaves the generator's
    state unchanged."""
    matrix = Matrix(np.random.default_rng(0).random((9, 5)), list("abcde"))
    first = intervals({"A": matrix}, reps=100)
    np.random.random(7)  # rliable uses this generator.
    state = np.random.get_state()[2]
    second = intervals({"A": matrix}, reps=100)
    pd.testing.assert_frame_equal(first, second)
    assert np.random.get_state()[2] == state


def test_interval_is_stratified() -> None:
    """The tasks differ widely and the runs do not. Resampled within tasks, the mean can hardly
    change."""
    values = np.array([[0.0, 10.0], [0.2, 10.2]])
    low, high = intervals({"A": Matrix(values, ["a", "b"])}, reps=200).loc[0, ["low", "high"]]
    assert low == pytest.approx(5.0)
    assert high == pytest.approx(5.2)


def test_a_single_run_has_no_interval() -> None:
    found = intervals({"A": Matrix(np.array([[0.5, 1.0]]), ["a", "b"])}, reps=100)
    assert found.value[0] == 0.75
    assert found[["low", "high"]].isna().all(axis=None)


def test_performance_profile_by_hand() -> None:
    values = np.array([[0.0, 0.5], [1.0, 2.0]])
    found = aggregates.profiles({"A": Matrix(values, ["a", "b"])}, reps=100)
    for score, fraction in ((-0.0, 0.75), (0.49, 0.75), (0.6, 0.5), (1.5, 0.25), (2.05, 0)):
        nearest = (found.score - score).abs().idxmin()
        assert found.fraction[nearest] == fraction


def test_probability_of_improvement_by_hand() -> None:
    """In task a 3 of 4 pairs are won. In task b 2 are won and 2 are tied, and a tie counts half.
    Task c is not shared, and the tasks are in another order."""
    ours = Matrix(np.array([[1.0, 5.0, 0.0], [3.0, 6.0, 0.0]]), ["a", "b", "c"])
    theirs = Matrix(np.array([[5.0, 0.0], [5.0, 2.0]]), ["b", "a"])
    found = aggregates.improvement({("A", "B"): (ours, theirs)}, reps=100).iloc[0]
    assert found.value == pytest.approx((3 / 4 + (2 + 2 / 2) / 4) / 2)
    assert found.tasks == 2
    assert found.low <= found.value <= found.high


def test_matrix_keeps_the_seeds_that_all_tasks_have() -> None:
    problems: list[str] = []
    scores = {"b": {1: 0.1, 2: 0.2, 3: 0.3}, "a": {1: 1.1, 3: 1.3}}
    matrix = make_matrix(scores, "here", problems)
    assert matrix.tasks == ["a", "b"]
    assert matrix.values.tolist() == [[1.1, 0.1], [1.3, 0.3]]
    (line,) = problems
    assert "leave out seed 2 of b" in line
    assert "here" in line


def test_the_interval_of_a_mean_is_that_of_resampled_runs() -> None:
    """Of two runs, a quarter of the samples holds the lower one twice."""
    values = np.array([[0.0, 5.0], [1.0, 5.0]])
    low, high = mean_intervals(values, 4000)
    assert (low[0], high[0]) == (0.0, 1.0)
    assert (low[1], high[1]) == (5.0, 5.0)
    many = np.random.default_rng(1).normal(3, 2, (400, 1))
    low, high = mean_intervals(many, 2000)
    error = many.std() / 20
    np.testing.assert_allclose([low[0], high[0]], many.mean() + 1.96 * error * np.array([-1, 1]),
                               atol=0.05)  # fmt: skip
