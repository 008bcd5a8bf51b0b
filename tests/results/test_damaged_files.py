"""Damaged or incomplete score files and metrics are named, and the rest is used."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.results.folders import Folders

DAMAGE: dict[str, tuple[str, Any, str]] = {
    "empty": ("csv", lambda text: "", "the file is empty"),
    "no rows": ("csv", lambda text: text.splitlines()[0] + "\n", "there is no row to read"),
    "other header": ("csv", lambda text: "a,b\n1,2\n", "the header is not step,frames"),
    "no json": ("json", None, "no Pong-0.25-seed2.json beside it"),
    "broken json": ("json", lambda text: text[:50], "its JSON cannot be used"),
    "json without a protocol": ("json", lambda text: "{}", "'training' is missing"),
    "json of no object": ("json", lambda text: "[]", "its JSON cannot be used"),
    "another domain": (
        "json",
        lambda text: text.replace('"atari"', '"chess"'),
        "'chess' is not a domain",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_unusable_scores_are_named(case: str, folders: Folders) -> None:
    """Everything usable is still in the report."""
    kind, change, says = DAMAGE[case]
    folders.add("Pong", 1, 7.3)
    path = folders.scores / f"{folders.add('Pong', 2, 9.0)}.{kind}"
    path.write_text(change(path.read_text())) if change else path.unlink()
    problems = [line for line in folders.gather().problems if ".metrics.jsonl" not in line]
    (line,) = [line for line in problems if says in line]
    assert "Pong-0.25-seed2.csv: left out" in line
    assert folders.finals() == {"Pong-0.25-seed1": 7.3}


@pytest.mark.parametrize("cut", [1, 4, 30])
def test_a_score_file_cut_short(cut: int, folders: Folders) -> None:
    """The rest of a truncated last line is not read as a score, even if only its newline is
    missing."""
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
    """The cases are a truncated last line, a line of another kind, bytes that are no text, no
    episode at all, and no run.json."""
    for seed in (1, 2):
        path = folders.scores / f"{folders.add('Pong', seed, 1.0)}.metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        if seed == 1:
            text = "".join(["nonsense\n", *lines])[:-20]
            path.write_bytes(b"\xff\xfe\n" + text.encode())
        else:
            path.write_text('{"step": 5, "frames": 20}\n')
    lonely = folders.runs / "lonely"
    lonely.mkdir()
    (lonely / "metrics.jsonl").write_text('{"step": 1}\n')
    found = folders.gather()
    text = "\n".join(found.problems)
    for number in (1, 2):
        assert re.search(rf"seed1\.metrics\.jsonl: line {number} cannot be read", text)
    count = len(lines) + 2
    assert re.search(rf"seed1\.metrics\.jsonl: line {count} is cut short and is left out", text)
    assert "seed2.metrics.jsonl: no curve: it holds no Rollout/ALE/Pong-v5_reward" in text
    assert "lonely/metrics.jsonl: no curve" in text
    ((curve,),) = found.panels[0].curves["Pong"].values()
    assert len(curve.frames) == count - 3
