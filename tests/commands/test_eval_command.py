"""``eval.py`` as a user types it, on the real emulator, in a clone of the source tree."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence

import numpy as np
import pytest

from pwm_core.config_file import load_config
from tests.commands.clone import NAME, STEPS, Clone, Result, flags


def check_row(row: Sequence[float], step: int, episodes: int) -> None:
    assert row[:2] == [step, 4 * step]
    returns = row[4:]
    assert len(returns) == episodes
    assert all(-21 <= value <= 21 and value == int(value) for value in returns)
    assert row[2:4] == pytest.approx([np.mean(returns), np.std(returns)], rel=1e-4)


def test_eval_writes_scores_and_where_they_come_from(clone: Clone, evaluated: Result) -> None:
    header, rows, about = clone.scores(NAME)
    assert header == ["step", "frames", "mean", "std", *(f"return_{i}" for i in range(2))]
    assert len(rows) == 1
    check_row(rows[0], STEPS[-1], 2)
    assert (about["task"], about["protocol"], about["seed"]) == ("ALE/Pong-v5", "pamorl", 1)
    assert (about["episodes"], about["envs"], about["greedy"]) == (2, 2, False)
    assert about["commit"] == clone.commit
    assert about["training"]["seed"] == 1
    assert about["versions"]["ale-py"]
    assert about["protocol_settings"]["repeat_action_probability"] == 0.25
    expected = load_config(clone.folder(NAME) / "config.yaml")
    assert about["config"] == json.loads(expected.model_dump_json())
    mean = f"{rows[0][2]:.2f}"
    error = f"{np.std(rows[0][4:], ddof=1) / np.sqrt(2):.2f}"
    assert f"mean return {mean} +- {error} " in evaluated.stdout
    assert re.search(r"checkpoint \d+: 100%.* 2/2 ", evaluated.stderr), evaluated.stderr
    assert str(clone.root / "eval_result" / f"{NAME}.csv") in evaluated.stdout


@pytest.mark.slow
def test_eval_from_the_root_in_a_process_of_its_own(clone: Clone, evaluated: Result) -> None:
    """The same checkpoint and seed: the same row, in place of the other."""
    _, before, _ = clone.scores(NAME)
    clone.run("pwm_atari/eval.py", "-n", NAME, "-device", "cpu").succeeded()
    assert clone.scores(NAME)[1] == before


@pytest.mark.slow
def test_eval_of_all_checkpoints_and_of_one(clone: Clone, evaluated: Result) -> None:
    _, (last,), _ = clone.scores(NAME)
    clone.evaluate("-n", NAME, "-device", "cpu", "-checkpoint", "1000").succeeded()
    assert [row[0] for row in clone.scores(NAME)[1]] == [*STEPS]
    done = clone.evaluate("-n", NAME, "-device", "cpu", "-checkpoint", "all").succeeded()
    _, rows, _ = clone.scores(NAME)
    assert done.stdout.count("mean return") == 2
    assert rows[-1] == last
    for row, step in zip(rows, STEPS, strict=True):
        check_row(row, step, 2)


@pytest.mark.slow
def test_eval_with_other_settings_has_a_file_of_its_own(clone: Clone, evaluated: Result) -> None:
    before = clone.scores(NAME)
    done = clone.evaluate(
        "-n", NAME, "-device", "cpu", "-episodes", "1", "-greedy", "-seed", "7",
        *flags("BasicSettings.Protocol=standard"),
    ).succeeded()  # fmt: skip
    name = f"{NAME}--greedy-1ep-seed7-standard"
    header, rows, about = clone.scores(name)
    assert header == ["step", "frames", "mean", "std", "return_0"]
    check_row(rows[0], STEPS[-1], 1)
    assert (about["protocol"], about["seed"], about["greedy"]) == ("standard", 7, True)
    assert about["protocol_settings"]["noop_max"] == 30
    assert f"{name}.csv" in done.stdout
    assert "1 episode, " in done.stdout
    assert clone.scores(NAME) == before


@pytest.mark.slow
def test_what_the_project_writes_is_no_change_of_the_code(clone: Clone) -> None:
    """Scores and reports are tracked; a run after ``python -m results`` is not a dirty one."""

    def commit() -> str:
        code = "from pwm_core.runtime import git_commit; print(git_commit())"
        return clone.run("-c", code).succeeded().stdout.strip()

    assert commit() == clone.commit
    for name in ("eval_result/report/report.md", "benchmarks/results/scan.json"):
        path = clone.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")
        subprocess.run(["git", "add", "-f", name], cwd=clone.root, check=True)
    assert commit() == clone.commit
    path = clone.root / "pwm_core" / "errors.py"
    content = path.read_text()
    path.write_text(content + "\n")
    assert commit() == f"{clone.commit}-dirty"
    path.write_text(content)
    subprocess.run(["git", "reset", "-q"], cwd=clone.root, check=True)
