"""The published tables reproduce what the papers print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from results.published import RandomPlay, Table
from tests.results.folders import BY_NAME, NORMALISE, PUBLISHED


@pytest.mark.parametrize(
    ("method", "mean", "median"),
    [
        ("SimPLe", 0.332, 0.134),
        ("SPR", 0.616, 0.396),
        ("IRIS", 1.046, 0.289),
        ("DIAMOND", 1.459, 0.373),
    ],
)
def test_published_atari_aggregates_come_out(method: str, mean: float, median: float) -> None:
    """The human-normalised mean and median over the 26 games are those that the papers print."""
    table = BY_NAME["atari100k"]
    scores = NORMALISE.table(table)[method]
    assert len(scores) == 26
    assert scores.mean() == pytest.approx(mean, abs=6e-4)
    assert scores.median() == pytest.approx(median, abs=6e-4)


@pytest.mark.parametrize(
    ("table", "method"),
    [(t.name, m) for t in PUBLISHED for m, about in t.columns.items() if about.printed],
)
def test_printed_aggregates_come_out(table: str, method: str) -> None:
    """The aggregates that a source prints below its columns follow from the typed numbers."""
    about, scores = BY_NAME[table].columns[method], BY_NAME[table].scores[method].dropna()
    if BY_NAME[table].benchmark == "atari":
        scores = NORMALISE.table(BY_NAME[table])[method]
    for name, printed in about.printed.items():
        digits = len(repr(printed).partition(".")[2])
        found = getattr(scores, name)()
        assert found == pytest.approx(printed, abs=0.61 * 10**-digits), name


def test_every_published_column_has_a_source_and_a_protocol() -> None:
    assert sorted(len(t.columns) for t in PUBLISHED) == [3, 4, 5, 5, 14]
    for table in PUBLISHED:
        assert set(table.headline) <= set(table.scores)
        for method, about in table.columns.items():
            assert about.source, method
            assert about.protocol, method
        assert set(table.scores) <= {m for m, about in table.columns.items() if about.same}
    paper = BY_NAME["dmc_paper_proprio"].frames
    assert (paper["cartpole_balance"], paper["cheetah_run"]) == (100_000, 200_000)
    sticky = {
        method: about.same["repeat_action_probability"]
        for method, about in BY_NAME["atari100k"].columns.items()
        if about.same
    }
    assert {method for method, value in sticky.items() if value} == {"STORM"}


def test_the_seeds_of_a_column_have_its_means() -> None:
    """STORM's 26 games x 5 seeds, whose human-normalised mean is 1.22."""
    table = BY_NAME["atari100k"]
    seeds = table.seeds["STORM"]
    assert seeds.shape == (26, table.columns["STORM"].runs) == (26, 5)
    means, column = seeds.mean(axis=1), table.scores["STORM"]
    assert list(means.index) == list(column.index)
    np.testing.assert_allclose(means, column, rtol=1e-3, atol=0.01)
    normalised = NORMALISE.seeds(table, "STORM")
    assert normalised.loc["Pong", "seed_1"] == NORMALISE("atari", "Pong", seeds.loc["Pong"].iloc[0])
    assert normalised.to_numpy().mean() == pytest.approx(1.222, abs=1e-3)


def test_a_column_without_a_protocol_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("task,frames,Ours\nPong,400000,1\n")
    (tmp_path / "mine.yaml").write_text(
        "benchmark: atari\nunit: score\ntitle: mine\ncolumns:\n  Ours: {source: here}\n"
    )
    with pytest.raises(UserError, match=r"mine\.csv.*protocol Field required"):
        Table(tmp_path / "mine.csv")


def test_human_normalised_score() -> None:
    """Pong: random -20.7, human 14.6. (7.3 - -20.7) / (14.6 - -20.7) = 28 / 35.3."""
    normalise = NORMALISE
    assert normalise("atari", "Pong", 7.3) == pytest.approx(28 / 35.3)
    assert normalise("atari", "Pong", -20.7) == 0
    assert normalise("atari", "Pong", 14.6) == 1
    assert np.isnan(normalise("atari", "Tetris", 3.0))
    assert normalise("dmc", "cup_catch", 250.0) == 0.25
    assert normalise.unit("atari") == "human-normalised score"
    assert normalise.unit("dmc") == "return / 1000"


def test_tasks_have_the_names_of_the_published_tables() -> None:
    assert find_domain("atari").benchmark.short_name("ALE/Pong-v5") == "Pong"
    for task in ("ball_in_cup_catch", "cup_catch"):
        assert find_domain("dmc").benchmark.short_name(task) == "cup_catch"


def test_random_play_is_measured_or_published(tmp_path: Path) -> None:
    """A measurement at the nearest action repeat is preferred to a published value."""
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / "dmc.csv").write_text(
        "task,frame_skip,episodes,mean,std\nhopper_hop,2,50,1.5,0\nhopper_hop,8,50,4.5,0\n"
    )
    (tmp_path / "random" / "other.csv").write_text("nonsense\n")
    problems: list[str] = []
    random = RandomPlay(tmp_path, PUBLISHED, problems)
    assert random("dmc", "hopper_hop", 4) == 1.5
    assert random("dmc", "hopper_hop", 7) == 4.5
    assert np.isnan(random("dmc", "walker_walk", 2))
    assert random("atari", "Pong", 4) == -20.7
    assert "50 episodes" in random.source("dmc")
    (line,) = problems
    assert "random/other.csv: random play is left out" in line


def test_random_play_of_every_published_task_is_measured() -> None:
    """The committed measurements cover all tasks of the table, with enough episodes and plausible
    numbers."""
    from pwm_core.paths import REPOSITORY

    table = pd.read_csv(REPOSITORY / "eval_result" / "random" / "dmc.csv")
    assert set(table.task) == set(BY_NAME["dmc_paper_proprio"].frames.index)
    assert (table.episodes >= 50).all()
    assert table["mean"].between(0, 1000).all()
    assert table.groupby("task").frame_skip.apply(set).map({2, 4, 8}.issubset).all()
