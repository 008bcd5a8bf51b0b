"""``python -m results``: numbers worked out by hand, published aggregates, and damaged input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pwm_core import cli
from pwm_core.config import REPOSITORY
from pwm_core.config_file import load_config
from pwm_core.eval import record_in_wandb
from pwm_core.paths import LOGDIR_VARIABLE
from pwm_core.runs.mp4 import VideoWriter
from pwm_core.runs.run_folder import RunFolder
from results import aggregates, published, tables
from results.__main__ import main
from results.aggregates import Matrix, intervals, make_matrix
from results.curves import Curve, over_seeds, smooth
from results.names import config_name
from results.page import cell
from results.published import Normaliser, Table, read_published, task_key
from results.report import Findings, Report, gather
from results.scores import Conditions
from tests.commands.test_cli import read_wandb

PUBLISHED = read_published()
NORMALISE = Normaliser(PUBLISHED)
BY_NAME = {table.name: table for table in PUBLISHED}
PONG_STEPS = (51000, 102000)


# ------------------------------------------------------------------------------ published numbers


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
    """Human-normalised mean and median over the 26 games, as the papers print them."""
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
    """What a source prints under its columns is what the typed numbers give."""
    about, scores = BY_NAME[table].columns[method], BY_NAME[table].scores[method].dropna()
    if BY_NAME[table].benchmark == "atari":
        scores = NORMALISE.table(BY_NAME[table])[method]
    for name, printed in about.printed.items():
        digits = len(repr(printed).partition(".")[2])
        found = getattr(scores, name)()
        assert found == pytest.approx(printed, abs=0.61 * 10**-digits), name


def test_every_published_column_has_a_source_and_a_protocol() -> None:
    assert [len(t.columns) for t in PUBLISHED] == [14, 5, 5, 3, 4]
    for table in PUBLISHED:
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


def test_a_column_without_a_protocol_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("task,frames,Ours\nPong,400000,1\n")
    (tmp_path / "mine.yaml").write_text(
        "benchmark: atari\nunit: score\ncolumns:\n  Ours: {source: here}\n"
    )
    with pytest.raises(published.UserError, match=r"mine\.csv.*protocol Field required"):
        Table(tmp_path / "mine.csv")


# ------------------------------------------------------------------------------- numbers by hand


def test_human_normalised_score() -> None:
    """Pong: random -20.7, human 14.6. (7.3 - -20.7) / (14.6 - -20.7) = 28 / 35.3."""
    normalise = NORMALISE
    assert normalise("atari", "Pong", 7.3) == pytest.approx(28 / 35.3)
    assert normalise("atari", "Pong", -20.7) == 0
    assert normalise("atari", "Pong", 14.6) == 1
    assert np.isnan(normalise("atari", "Tetris", 3.0))
    assert normalise("dmc", "cup_catch", 250.0) == 0.25
    assert task_key("ALE/Pong-v5") == "Pong"
    assert task_key("ball_in_cup_catch") == task_key("cup_catch") == "cup_catch"


def test_aggregates_by_hand() -> None:
    """Two runs of four tasks; the middle half of the eight scores is 0.2, 0.4, 0.6, 0.8."""
    values = np.array([[0.0, 0.2, 0.6, 2.0], [0.1, 0.4, 0.8, 4.0]])
    found = intervals({"A": Matrix(values, list("abcd"))}, reps=200).set_index("metric")
    assert found.value["mean"] == pytest.approx(8.1 / 8)
    assert found.value["median"] == pytest.approx((0.3 + 0.7) / 2)
    assert found.value["IQM"] == pytest.approx(0.5)
    assert found.value["optimality gap"] == pytest.approx(1 - (0.3 + 0.6 + 1.4 + 1 + 0.8) / 8)
    assert (found.tasks == 4).all()
    assert (found.runs == 2).all()


def test_interval_of_two_runs_by_hand() -> None:
    """One task, runs 0 and 1: resampled means are 0, 0.5, 1 with chances 1/4, 1/2, 1/4, so the
    2.5th and the 97.5th percentile are 0 and 1."""
    matrix = Matrix(np.array([[0.0], [1.0]]), ["a"])
    found = intervals({"A": matrix}, reps=400)
    assert found.loc[0, ["low", "high"]].tolist() == [0, 1]


def test_intervals_repeat() -> None:
    """The same call gives the same interval, whatever was drawn before, and leaves no trace."""
    matrix = Matrix(np.random.default_rng(0).random((9, 5)), list("abcde"))
    first = intervals({"A": matrix}, reps=100)
    np.random.random(7)  # the generator that rliable uses
    state = np.random.get_state()[2]
    second = intervals({"A": matrix}, reps=100)
    pd.testing.assert_frame_equal(first, second)
    assert np.random.get_state()[2] == state


def test_interval_is_stratified() -> None:
    """Tasks far apart, runs alike: resampled within tasks, the mean cannot move far."""
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
    """Task a: 3 of 4 pairs won; task b: 2 won and 2 tied, a tie counts half. Task c is not
    shared, and the tasks stand in another order."""
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


def test_curve_over_seeds_by_hand() -> None:
    """Windows of 10 frames: means within a window, a straight line over an empty one, nothing
    outside what all seeds have."""
    here = Conditions("atari", (("name", "pamorl"),), "atari")

    def curve(seed: int, frames: Sequence[float], returns: Sequence[float]) -> Curve:
        return Curve(f"r{seed}", "Pong", seed, here, np.array(frames), np.array(returns))

    first = curve(1, [1, 9, 25, 400], [0, 2, 5, 9])
    second = curve(2, [15, 25, 385], [1, 7, 7])
    edges = np.linspace(0, 40, 5)
    low = curve(1, [1, 9, 25], [0, 2, 5])
    np.testing.assert_allclose(smooth(low, edges), [1, 3, 5, np.nan])
    frames, mean, least, most = over_seeds([first, second])
    assert (frames[0], frames[-1]) == (15, 385)
    assert (mean[0], least[0], most[0]) == (2, 1, 3)
    assert (mean[1], least[1], most[1]) == (6, 5, 7)


def test_config_names() -> None:
    defaults = "config_files/atari.yaml"

    def name(path: str, *overrides: str) -> str:
        config = load_config(path, defaults=defaults, overrides=overrides)
        return config_name("atari", config.model_dump(mode="json"))

    assert name(defaults) == "atari"
    assert name("config_files/atari_tiny.yaml", "BasicSettings.Seed=7") == "atari_tiny"
    same_numbers = ("Models.WorldModel={Scan: odd_even, ScanChunk: 4}", "BasicSettings.Threads=1")
    assert name(defaults, *same_numbers) == "atari"
    assert name(defaults, "Models.Gamma=0.9") == "atari with Gamma=0.9"
    many = [f"Models.Agent.{key}=0.5" for key in ("LR", "Eps", "EMADecay", "WeightDecay")]
    assert re.fullmatch(r"atari with 4 changes \([0-9a-f]{6}\)", name(defaults, *many))
    assert name(defaults, *many) != name(defaults, *many[1:], "Models.Gamma=0.9")


def test_cells() -> None:
    values = [0.123456, 12345.678, 1_000_000, np.int64(5), None, float("nan"), "a"]
    assert [cell(v) for v in values] == ["0.1235", "12,345.7", "1,000,000", "5", "-", "-", "a"]


# ----------------------------------------------------------------------------- folders of results


class Folders:
    """Made-up score files in the format of ``eval.py``, and the command that reads them."""

    def __init__(self, root: Path) -> None:
        self.scores, self.runs = root / "eval_result", root / "ckpt"
        self.scores.mkdir()
        self.runs.mkdir()
        config = load_config("config_files/atari.yaml", defaults="config_files/atari.yaml")
        self.config = config.model_dump(mode="json")

    def add(self, game: str, seed: int, mean: float, *, sticky: float = 0.25) -> str:
        """A run evaluated twice: first at half of ``mean``, at the end at ``mean``."""
        task, name = f"ALE/{game}-v5", f"{game}-{sticky}-seed{seed}"
        returns = [(half, [half - 1, half + 1]) for half in (mean / 2, mean)]
        rows = [
            ",".join(map(str, [step, 4 * step, value, 1.0, *both]))
            for step, (value, both) in zip(PONG_STEPS, returns, strict=True)
        ]
        text = "\n".join(["step,frames,mean,std,return_0,return_1", *rows]) + "\n"
        (self.scores / f"{name}.csv").write_text(text)
        protocol = {
            "name": "pamorl" if sticky else "standard",
            "repeat_action_probability": sticky,
            "noop_max": 0 if sticky else 30,
        }
        about = {
            "task": task, "greedy": False, "domain": "atari", "config": self.config,
            "protocol_settings": {**protocol, "frame_skip": 4},
            "training": {"task": task, "domain": "atari", "seed": seed, "protocol": protocol},
        }  # fmt: skip
        (self.scores / f"{name}.json").write_text(json.dumps(about))
        records = [
            {"step": s, f"Rollout/{task}_reward": s / 1000} for s in range(1000, 102000, 900)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (self.scores / f"{name}.metrics.jsonl").write_text(lines)
        return name

    def gather(self) -> Findings:
        return gather(self.scores, self.runs)

    def seeds(self) -> list[pd.DataFrame]:
        """The table task x seed of each setting, by letter."""
        groups = self.gather().groups.items()
        return [tables.seeds_table(*group, NORMALISE).set_index("task") for group in groups]

    def finals(self) -> dict[str, float]:
        """Run -> its score."""
        groups = self.gather().groups.values()
        return {score.run: score.final.mean for scores in groups for score in scores}

    def report(self) -> Path:
        """All files, made in this process."""
        Report(self.gather(), self.scores / "report", reps=100)
        return self.scores / "report"

    def command(self, *flags: str) -> subprocess.CompletedProcess[str]:
        folders = ["--scores", str(self.scores), "--runs", str(self.runs), "--reps", "100"]
        return subprocess.run(
            [sys.executable, "-O", "-m", "results", *folders, *flags],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.scores / "report" / f"{name}.csv")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


class Links(HTMLParser):
    """What a page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, v or "") for k, v in attrs if k in ("src", "href", "data")]


def test_report_of_two_games(folders: Folders) -> None:
    """Tables by hand; every figure twice; one page that needs no other file."""
    for seed, pong, boxing in ((1, 7.3, 6.1), (2, 14.6, 12.1)):
        folders.add("Pong", seed, pong)
        folders.add("Boxing", seed, boxing)
    run = folders.runs / "Pong-0.25-seed1" / "videos"
    with VideoWriter(run / "evaluation0_000102000.mp4") as video:
        video.write(np.zeros((64, 64, 3), np.uint8))
    done = folders.command()
    assert (done.returncode, done.stderr) == (0, "")
    report = folders.scores / "report"
    assert str(report / "index.html") in done.stdout
    scores = folders.table("atari_scores_A").set_index("task")
    assert scores.loc["Pong", ["seed 1", "seed 2", "mean"]].tolist() == [7.3, 14.6, 10.95]
    assert scores.loc["Pong", "human-normalised"] == pytest.approx((28 / 35.3 + 1) / 2)
    assert scores.loc["Boxing", "human-normalised"] == pytest.approx((6 / 12 + 1) / 2)
    found = folders.table("atari_aggregates").set_index("metric").value
    assert found["mean"] == pytest.approx((28 / 35.3 + 1 + 0.5 + 1) / 4)
    assert found["optimality gap"] == pytest.approx(1 - found["mean"])

    compared = folders.table("atari_comparison").set_index("column")
    assert compared.loc["ours: A", "Pong"] == 10.95
    assert compared.loc["STORM (atari100k)", "Pong"] == 11.28
    assert compared.protocol.notna().all()
    assert "sticky actions 0.25" in compared.loc["STORM (atari100k)", "protocol"]
    assert "repeat_action_probability 0.25" in compared.loc["ours: A", "protocol"]
    better = folders.table("atari_improvement")
    assert better.y.tolist() == ["STORM (atari100k)"], "the only one with sticky actions"
    assert better.value[0] == pytest.approx((1 / 2 + 0) / 2)

    figures = ("aggregates", "profiles", "improvement", "curves")
    for name in figures:
        assert (report / f"atari_{name}.png").stat().st_size > 5000
        assert (report / f"atari_{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (report / "index.html").read_text()
    links = Links(page).found
    assert [tag for tag, _ in links] == ["img"] * 4 + ["video"]
    assert all(re.match(r"data:(image/png|video/mp4);base64,", link) for _, link in links)
    text = (report / "report.md").read_text()
    assert all(f"](atari_{name}.png)" in text for name in figures)


def test_the_same_results_make_the_same_tables(folders: Folders) -> None:
    for seed in (1, 2, 3):
        folders.add("Pong", seed, float(seed))
    report = folders.report()
    before = {path: path.read_bytes() for path in report.iterdir()}
    folders.report()
    assert {path: path.read_bytes() for path in report.iterdir()} == before


def test_protocols_are_kept_apart(folders: Folders) -> None:
    """Two protocols in one folder: two settings, no mean over both, no pair, and a note."""
    folders.add("Pong", 1, 7.3, sticky=0.25)
    folders.add("Pong", 2, 14.6, sticky=0.0)
    found = folders.gather()
    assert any("2 protocols, which are kept apart" in line for line in found.problems)
    assert sorted(table["mean"].tolist() for table in folders.seeds()) == [[7.3], [14.6]]
    settings = tables.settings_table(found.groups, found.names).set_index("setting")
    standard = settings.index[settings.protocol.str.startswith("standard (frame_skip 4")][0]
    assert settings.protocol.nunique() == 2

    ours = tables.matrices(found.groups, found.names, NORMALISE, [])
    pairs = tables.pairs(found.groups, found.names, ours, [BY_NAME["atari100k"]], NORMALISE)
    sticky = {y for x, y in pairs if x != standard}
    assert sticky == {"STORM (atari100k)"}
    assert len({y for x, y in pairs if x == standard} - sticky) == 11
    assert not {"A", "B"} & {y for _, y in pairs}, "ours under different protocols are no pair"


def test_a_missing_seed_is_said(folders: Folders) -> None:
    for game, seeds in (("Pong", (1, 2)), ("Boxing", (1, 2, 3))):
        for seed in seeds:
            folders.add(game, seed, float(seed))
    found = folders.gather()
    assert any("Pong: seed 3 is missing" in line for line in found.problems)
    (table,) = folders.seeds()
    assert table.loc["Boxing", "mean"] == 2, "the table of scores still has all three"
    assert np.isnan(table.loc["Pong", "seed 3"])
    left_out: list[str] = []
    ours = tables.matrices(found.groups, found.names, NORMALISE, left_out)
    assert ours["A"].values.shape == (2, 2)
    assert any("leave out seed 3 of Boxing" in line for line in left_out)


def test_one_seed_is_said(folders: Folders) -> None:
    folders.add("Pong", 1, 1.0)
    assert any("one seed only, so no interval" in line for line in folders.gather().problems)


def test_two_runs_of_one_seed_count_once(folders: Folders) -> None:
    for seed in (1, 2):
        folders.add("Pong", seed, float(seed))
    for kind in ("csv", "json"):
        source = folders.scores / f"Pong-0.25-seed1.{kind}"
        text = source.read_text().replace("408000,1.0", "408000,9.0")
        (folders.scores / f"Pong-again.{kind}").write_text(text)
    found = folders.gather()
    assert any("2 runs of seed 1 (Pong-0.25-seed1, Pong-again)" in p for p in found.problems)
    assert len(tables.runs_table(found.groups, found.names, NORMALISE)) == 3
    assert folders.seeds()[0]["mean"].tolist() == [1.5]


def test_a_run_that_is_not_finished_stands_apart(folders: Folders) -> None:
    folders.add("Pong", 1, 10.0)
    path = folders.scores / f"{folders.add('Pong', 2, 20.0)}.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    found = folders.gather()
    assert any("step 51,000 of 102,000" in line for line in found.problems)
    assert [setting.frames for setting in found.groups] == [408_000, 204_000]


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "empty": ("csv", lambda text: "", "the file is empty"),
    "no rows": ("csv", lambda text: text.splitlines()[0] + "\n", "there is no row to read"),
    "other header": ("csv", lambda text: "a,b\n1,2\n", "the header is not step,frames"),
    "no json": ("json", None, "no Pong-0.25-seed2.json beside it"),
    "broken json": ("json", lambda text: text[:50], "its JSON cannot be used"),
    "json without a protocol": ("json", lambda text: "{}", "'training' is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_unusable_scores_are_named(case: str, folders: Folders) -> None:
    """And what can be used is reported on."""
    kind, change, says = DAMAGE[case]
    folders.add("Pong", 1, 7.3)
    path = folders.scores / f"{folders.add('Pong', 2, 9.0)}.{kind}"
    path.write_text(change(path.read_text())) if change else path.unlink()
    (line,) = [line for line in folders.gather().problems if says in line]
    assert "Pong-0.25-seed2.csv: left out" in line
    assert folders.finals() == {"Pong-0.25-seed1": 7.3}


@pytest.mark.parametrize("cut", [1, 4, 30])
def test_a_score_file_cut_short(cut: int, folders: Folders) -> None:
    """Whatever is left of the last line is not taken for a score, be it all but its newline."""
    path = folders.scores / f"{folders.add('Pong', 1, 10.0)}.csv"
    path.write_text(path.read_text()[:-cut])
    assert any("line 3 is cut short and is left out" in p for p in folders.gather().problems)
    assert folders.finals() == {"Pong-0.25-seed1": 5.0}


def test_scores_without_a_csv_or_set_aside_are_named(folders: Folders) -> None:
    name = folders.add("Pong", 1, 10.0)
    (folders.scores / "set_aside").mkdir()
    (folders.scores / f"{name}.csv").rename(folders.scores / "set_aside" / f"{name}-1.csv")
    problems = folders.gather().problems
    assert any(f"no {name}.csv beside it" in line for line in problems)
    assert any("set_aside/ holds 1 earlier score files" in line for line in problems)


def test_damaged_metrics(folders: Folders) -> None:
    """A last line cut short, a line of something else, no episode at all, no run.json."""
    for seed in (1, 2):
        path = folders.scores / f"{folders.add('Pong', seed, 1.0)}.metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        if seed == 1:
            path.write_text("".join(["nonsense\n", *lines])[:-20])
        else:
            path.write_text('{"step": 5, "frames": 20}\n')
    lonely = folders.runs / "lonely"
    lonely.mkdir()
    (lonely / "metrics.jsonl").write_text('{"step": 1}\n')
    found = folders.gather()
    text = "\n".join(found.problems)
    assert re.search(r"seed1\.metrics\.jsonl: line 1 cannot be read and is left out", text)
    count = len(lines) + 1
    assert re.search(rf"seed1\.metrics\.jsonl: line {count} is cut short and is left out", text)
    assert "seed2.metrics.jsonl: no curve: it holds no Rollout/ALE/Pong-v5_reward" in text
    assert "lonely/metrics.jsonl: no curve" in text
    (curve,) = found.curves
    assert len(curve.frames) == count - 2


def test_a_game_without_a_human_score(folders: Folders) -> None:
    for seed in (1, 2):
        folders.add("Pong", seed, 1.0)
        folders.add("Tetris", seed, 5.0)
    found, problems = folders.gather(), []
    ours = tables.matrices(found.groups, found.names, NORMALISE, problems)
    assert problems == ["Tetris: not in the aggregates: no human score is known for it"]
    assert ours["A"].tasks == ["Pong"]
    assert list(folders.seeds()[0].index) == ["Pong", "Tetris"]


def test_what_is_noted_is_in_the_report(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, in the page and in the Markdown."""
    folders.add("Pong", 1, 7.3)
    (folders.scores / "empty.csv").touch()
    status, captured = run_main(folders, monkeypatch, capsys)
    assert status == 0
    line = "empty.csv: left out: the file is empty"
    assert f"note: {line}" in captured.err
    for name in ("index.html", "report.md"):
        assert line in (folders.scores / "report" / name).read_text()


def run_main(
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *flags: str,
) -> tuple[int, Any]:
    """The command in this process: exit status and what it printed."""
    paths = ["--scores", str(folders.scores), "--runs", str(folders.runs), "--reps", "100"]
    monkeypatch.setattr(sys, "argv", ["results", *paths, *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run_command(main)
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "to report on"),
        (["--scores", "/nowhere"], "there is no folder /nowhere"),
        (["--reps", "3"], "--reps 3"),
        (["--rep"], "--rep"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    says: str,
    folders: Folders,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, captured = run_main(folders, monkeypatch, capsys, *flags)
    assert status == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (folders.scores / "report").exists()


def test_pairs_need_the_same_frames() -> None:
    """A published column at 400,000 frames is no match for runs of 12,000."""
    conditions = Conditions(
        "atari", (("name", "standard"), ("repeat_action_probability", "0.0")), ""
    )
    ours = {"A": Matrix(np.ones((2, 1)), ["Pong"])}
    for frames, matches in ((408_000, 11), (12_000, 0)):
        setting = tables.Setting(conditions, frames, 50, False)
        pairs = tables.pairs({setting: []}, {setting: "A"}, ours, [BY_NAME["atari100k"]], NORMALISE)
        assert len(pairs) == matches


# ---------------------------------------------------------------------------- scores in a tracker

TRACKED = """
import sys
from pwm_core.eval import evaluate_run
from pwm_core.train import train
from tests.helpers_envs import CONFIG, TINY, counting_domain

domain = counting_domain((5,))[0]
short = "JointTrainAgent={SampleMaxSteps: 40, TrainModelEverySteps: 9, TrainAgentEverySteps: 9}"
overrides = [part for key in (*TINY, short) for part in ("-set", key)]
argv = ["-n", "run", "-env_name", "count", "-config_path", CONFIG, "-device", "cpu"]
argv += ["-logdir", sys.argv[1]]
train(domain, [*argv, "-logger", "wandb", *overrides])
evaluate_run(domain, ["-n", "run", "-device", "cpu", "-checkpoint", "all", "-logdir", sys.argv[1]])
"""


def test_scores_join_the_run_that_wandb_tracked(tmp_path: Path) -> None:
    """Under the run's own id, against steps and frames; the last ones are in the summary."""
    hidden = ("WANDB", "NETRC")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, str(tmp_path)],
        cwd=REPOSITORY, env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = pd.read_csv(tmp_path / "eval_result" / "run.csv")
    folder = tmp_path / "ckpt" / "run"
    run_id = json.loads((folder / "run.json").read_text())["tracker_id"]
    found, summary = {}, {}
    for path in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        for record in read_wandb(path):
            items = {i.key or "/".join(i.nested_key): i for i in record.history.item}
            values = {key: json.loads(item.value_json) for key, item in items.items()}
            if "Evaluation/return" in values:
                found[values["step"]] = values
            updates = record.summary.update
            summary |= {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}
    assert list(found) == rows.step.tolist() == [20, 40]
    for row in rows.itertuples():
        assert found[row.step]["Evaluation/return"] == row.mean
        assert found[row.step]["Evaluation/std"] == row.std
        assert found[row.step]["frames"] == row.frames
    assert summary["Evaluation/return"] == rows["mean"].iloc[-1]


def test_a_tracker_that_fails_harms_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    folder = RunFolder("run")
    (folder.path / "wandb").mkdir(parents=True)
    (tmp_path / "run.csv").write_text("step,frames,mean,std,return_0\n1,4,2,0,2\n")
    record_in_wandb(folder, {"domain": "atari", "tracker_id": "abc"}, tmp_path / "run.csv")
    assert "the scores are not in the wandb run: WANDB_MODE=nonsense" in capsys.readouterr().out
