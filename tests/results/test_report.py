"""Tests of the whole report: its tables, its page and its files."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from pwm_core.commands import cli
from results import details, headline, shown
from results.__main__ import main
from tests.results.folders import Folders, Page


def test_report_of_two_games(folders: Folders) -> None:
    """The tables agree with values computed by hand. Every figure is written twice, and the page
    needs no other file."""
    for seed, pong, boxing in ((1, 7.3, 6.1), (2, 14.6, 12.1)):
        folders.add("Pong", seed, pong)
        folders.add("Boxing", seed, boxing)
    done = folders.command()
    assert (done.returncode, done.stderr) == (0, "")
    report = folders.scores / "report"
    assert str(report / "index.html") in done.stdout
    scores = folders.table("atari_scores").set_index("task")
    ours = ["ours: full", "ours: full, low", "ours: full, high", "ours: full, seeds"]
    assert scores.loc["Pong", ours].tolist() == [10.95, 7.3, 14.6, 2]
    assert scores.loc["Pong", ["play: random", "play: human"]].tolist() == [-20.7, 14.6]
    assert scores.loc["Pong", "published results: STORM"] == 11.28
    table = folders.table("atari_aggregates").set_index(["setting", "metric"])
    found = table.value.loc["full"]
    assert found["mean"] == pytest.approx((28 / 35.3 + 1 + 0.5 + 1) / 4)
    assert found["optimality gap"] == pytest.approx(1 - found["mean"])
    better = folders.table("atari_improvement")
    assert better.y.tolist() == ["STORM (published results)"], "the only one with sticky actions"
    # Of STORM's published seeds of Pong both of ours exceed 2 of 5, and of Boxing none.
    assert better.value[0] == pytest.approx((2 / 5 + 0) / 2)
    seeds = folders.table("atari_published_seeds").set_index(["method", "task"]).loc["STORM"]
    assert (len(seeds), set(seeds.runs)) == (26 + 4, {5})
    assert seeds.value["Pong"] == pytest.approx(11.28)
    assert seeds.value["mean"] == pytest.approx(1.222, abs=1e-3)
    assert (seeds.low <= seeds.value).all()
    assert (seeds.value <= seeds.high).all()
    assert seeds.low["Pong"] < 5 < 17 < seeds.high["Pong"]
    assert "STORM, published seeds" in (report / "report.md").read_text()
    for name in ("scores", "aggregates", "curves"):
        assert (report / f"atari_{name}.png").stat().st_size > 5000
        assert (report / f"atari_{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_answers_first_and_folds_the_rest(folders: Folders) -> None:
    """The page has scores, curves, details and notes, each linked from the contents. Notes and
    details are folded."""
    for game in ("Pong", "Boxing"):
        folders.add(game, 1, 7.3)
    assert folders.command().returncode == 0
    text = (folders.scores / "report" / "index.html").read_text()
    page = Page(text)
    titles = ["Atari", "Learning curves", "Details", "Notes"]
    assert page.headings == ["PaMoRL: results", *titles]
    targets = [link for tag, link in page.links if tag == "a"]
    assert targets == [f"#{title.lower().replace(' ', '-')}" for title in titles]
    assert {target[1:] for target in targets} <= page.ids
    assert {tag for tag, _ in page.links if tag != "a"} <= {"use"}, "no other file is needed"
    assert re.search(r"Written on \d{4}-\d\d-\d\d at \d\d:\d\d UTC by commit [0-9a-f]{12}", text)
    first = text.index("<svg"), text.index("<table")
    assert max(first) < text.index("id='learning-curves'") < text.index("<details")
    ids = re.findall(r"<svg.*?</svg>", text, re.S)
    defined = [set(re.findall(r'id="([^"]+)"', svg)) for svg in ids]
    assert sum(map(len, defined)) == len(set.union(*defined)), "figures must not share names"
    assert "var(--ink)" in ids[0], "text has the colour of the page, light or dark"


def test_the_headline_table(folders: Folders) -> None:
    """Tasks are in rows by published budget, each budget's mean is below it, and protocols are in
    footnotes."""
    for seed, score in ((1, 800.0), (2, 900.0)):
        folders.add_dmc("cartpole_balance", seed, score, frames=100_000, repeat=8)
    folders.add_dmc("reacher_hard", 1, 600, frames=100_000, repeat=4)
    folders.add_dmc("cheetah_run", 1, 300, frames=200_000, repeat=4)
    found = folders.gather()
    table = headline.headline_table(found.panels[0], found)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == [
        "cartpole_balance", "reacher_hard", "mean, 2 tasks at 100,000",
        "median, 2 tasks at 100,000", "cheetah_run", "mean, all 3 tasks", "median, all 3 tasks",
    ]  # fmt: skip
    assert rows["cartpole_balance"][1:3] == ["850.0\n800.0 to 900.0", "2"]
    assert rows["reacher_hard"][1:3] == ["600.0", "1"]
    assert rows["mean, 2 tasks at 100,000"][1] == "725.0"
    curves = [rows[task][-5:] for task in ("cartpole_balance", "cheetah_run")]
    assert shown.NONE not in curves[0]
    assert set(curves[1]) == {shown.NONE}, "published at 100,000 steps"
    assert "Scores that were published at another budget are left out: cheetah_run." in table.notes
    names = [text for text, _ in table.head[1]]
    assert names[:4] == ["task", "tiny", "seeds", "PaMoRLᵃ"], "nobody measured random play here"
    assert rows["mean, 2 tasks at 100,000"][3] == shown.score((994.7 + 645.9) / 2)
    assert table.head[0][1:] == [("ours", 2), ("slides of the PaMoRL paper", 3),
                                 ("authors' training curves", 5)]  # fmt: skip
    first = table.notes[0]
    assert "1 to 2 seeds per task" in first
    assert "action repeat 4 to 8" in first
    assert table.notes[-2].startswith("ᵃ Proprioception; 100,000")


def test_the_summary_says_how_good_against_whom_and_on_how_many_seeds(folders: Folders) -> None:
    (folders.scores / "random").mkdir()
    lines = [
        "task,frame_skip,episodes,mean,std",
        "hopper_hop,4,50,0.5,1",
        "hopper_stand,4,50,1.5,1",
    ]
    (folders.scores / "random" / "dmc.csv").write_text("\n".join(lines) + "\n")
    folders.add_dmc("hopper_hop", 1, 100, frames=200_000, repeat=4)
    folders.add_dmc("hopper_stand", 1, 301, frames=200_000, repeat=4)
    found = folders.gather()
    text = headline.summary(found.panels[0], found)
    assert text.startswith("Ours, tiny: 2 of 16 tasks, 1 seed each. Mean return on these 2 tasks: "
                           "ours 200.5, random 1.0, PaMoRL 269.5,")  # fmt: skip
    assert "the same number of simulator steps" in text
    folders.add_dmc("hopper_hop", 2, 100, frames=40_000, repeat=4)
    folders.add_dmc("cup_catch", 1, 100, frames=40_000, repeat=4)
    found = folders.gather()
    assert "at different budgets" in headline.summary(found.panels[0], found)


def test_no_aggregates_of_a_single_task(folders: Folders) -> None:
    """There are no means in the table of scores either."""
    for seed in (1, 2):
        folders.add("Pong", seed, float(seed))
    found = folders.gather()
    assert details.matrices(found.panels[0], found) == {}
    assert [row[0] for row in headline.headline_table(found.panels[0], found).rows] == ["Pong"]
    assert {path.stem for path in folders.report().glob("*.csv")} == {
        "atari_scores", "atari_published_seeds", "published", "runs",
    }  # fmt: skip


def test_aggregates_take_the_seeds_that_all_tasks_have(folders: Folders) -> None:
    for game, seeds in (("Pong", (1, 2)), ("Boxing", (1, 2, 3))):
        for seed in seeds:
            folders.add(game, seed, float(seed))
    found = folders.gather()
    (matrix,) = details.matrices(found.panels[0], found).values()
    assert matrix.values.shape == (2, 2)
    assert any("leave out seed 3 of Boxing" in line for line in found.problems)


def test_budgets_have_aggregates_of_their_own(folders: Folders) -> None:
    """Tasks of the smaller budget keep all their seeds, whatever the other tasks lack."""
    for task, frames, seeds in (
        ("cartpole_balance", 100_000, (1, 2)),
        ("reacher_hard", 100_000, (1, 2)),
        ("cheetah_run", 200_000, (1,)),
    ):
        for seed in seeds:
            folders.add_dmc(task, seed, 100.0 * seed, frames=frames, repeat=4)
    found = folders.gather()
    parts = details.budget_matrices(found.panels[0], found)
    assert {name: matrix.values.shape for name, matrix in parts.items()} == {
        "tiny: 2 tasks at 100,000": (2, 2)
    }


def test_a_game_without_a_human_score(folders: Folders) -> None:
    for seed in (1, 2):
        for game in ("Pong", "Boxing", "Tetris"):
            folders.add(game, seed, 1.0)
    found = folders.gather()
    (matrix,) = details.matrices(found.panels[0], found).values()
    assert matrix.tasks == ["Boxing", "Pong"]
    assert any("Tetris: not in the aggregates" in line for line in found.problems)
    assert "Tetris" in folders.means()["full"]


@pytest.mark.parametrize(("frames", "matches"), [(100_000, 8), (96_000, 8), (40_000, 0)])
def test_pairs_need_the_same_frames(frames: int, matches: int, folders: Folders) -> None:
    """A published column at 100,000 simulator steps is not compared with runs of 40,000."""
    for task in ("cartpole_balance", "cup_catch"):
        folders.add_dmc(task, 1, 100, frames=frames, repeat=4)
    found = folders.gather()
    (panel,) = found.panels
    assert len(details.pairs(panel, details.matrices(panel, found), found)) == matches


def test_numbers_have_one_format() -> None:
    values = [0.12, -0.04, 12345.678, 1_000_000, np.int64(5), None, float("nan")]
    formatted = ["0.1", "-0.0", "12,345.7", "1,000,000.0", "5.0", "-", "-"]
    assert [shown.score(v) for v in values] == formatted
    assert [shown.count(v) for v in (12000, 3.0, None)] == ["12,000", "3", "-"]
    assert shown.counts({1}, "seed") == "1 seed"
    assert shown.counts({1, 3, 2}, "seed") == "1 to 3 seeds"


def test_the_same_results_make_the_same_files(folders: Folders) -> None:
    for seed in (1, 2, 3):
        folders.add("Pong", seed, float(seed))
    report = folders.report()
    before = {path: path.read_bytes() for path in report.iterdir()}
    folders.report()
    assert {path: path.read_bytes() for path in report.iterdir()} == before


def test_files_of_an_earlier_report_are_removed_and_no_others(folders: Folders) -> None:
    """Old aggregates would be misleading when only one task is left."""
    names = [folders.add(game, 1, 1.0) for game in ("Pong", "Boxing")]
    report = folders.report()
    assert (report / "atari_aggregates.csv").exists()
    (report / "mine.csv").write_text("a\n")
    (folders.scores / f"{names[1]}.csv").unlink()
    (folders.scores / f"{names[1]}.json").unlink()
    folders.report()
    assert not (report / "atari_aggregates.csv").exists()
    assert (report / "mine.csv").read_text() == "a\n"


def test_a_list_of_files_is_no_way_out_of_the_folder(folders: Folders) -> None:
    folders.add("Pong", 1, 1.0)
    report = folders.report()
    outside = folders.scores / "precious.csv.txt"
    outside.write_text("a\n")
    (report / "files.json").write_text('["../precious.csv.txt", 3, "atari_scores.csv"]')
    folders.report()
    assert outside.exists()


def test_what_is_noted_is_in_the_report(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Problems are reported on stderr, in the page and in the Markdown."""
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
    """Run the command in this process. Returns its exit status and what it printed."""
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
