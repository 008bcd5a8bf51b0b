"""The study of a sweep's variants: which runs it takes, its numbers, and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot

from pwm_core.commands import cli
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY
from results.settings import COLOURS
from results.study import (
    check_equal_lengths,
    last_metrics,
    main,
    normalise,
    only_tasks,
    order,
    read_outcomes,
    tables,
    variant_of,
)
from results.study_figures import draw_scores
from tests.results.folders import Folders

VARIANTS = ["default", "gru", "rms_norm"]
TABLES = ("scores", "tasks", "summary", "difference", "improvement")


def add(
    folders: Folders, variant: str, seed: int, mean: float, *,
    task: str = "cartpole_balance", suffix: str = "abl", steps: int = 8000, done: bool = True,
) -> str:  # fmt: skip
    """Add a run of one variant; Catch is the one task of Atari."""
    domain, file = ("atari", "atari_catch") if task == "Catch" else ("dmc", "dmc_tiny")
    changes = [f"JointTrainAgent={{SampleMaxSteps: {steps if done else 2 * steps}}}"]
    changes += [] if task == "Catch" else ["BasicSettings.FrameSkip=4"]
    config = load_config(
        f"config_files/{file}.yaml", defaults=f"config_files/{domain}.yaml", overrides=changes
    ).model_dump(mode="json")
    name = f"{task}-{variant}-{suffix}-seed{seed}"
    repeat = config["BasicSettings"]["FrameSkip"]
    about = folders._about(name, domain, task, seed, {"name": "suite"}, repeat, config)
    folders.write(name, about, [(steps, repeat)], [mean])
    return name


@pytest.fixture
def study(folders: Folders) -> Folders:
    """Three seeds: gru always better than the default, rms_norm always worse, on two tasks; on
    Catch there is no rms_norm."""
    for seed in (1, 2, 3):
        for variant, mean in (("default", 500), ("gru", 800), ("rms_norm", 200)):
            for task in ("cartpole_balance", "reacher_easy"):
                add(folders, variant, seed, mean + 10 * seed, task=task)
        add(folders, "default", seed, 0.0, task="Catch")
        add(folders, "gru", seed, 0.5, task="Catch")
    return folders


def test_the_variant_is_in_the_name_of_the_run() -> None:
    assert variant_of("Catch-no_mix-abl-seed12", "Catch", "abl") == "no_mix"
    assert variant_of("cup_catch-a-b-abl-seed1", "cup_catch", "abl") == "a-b"
    for name in ("Catch-abl-seed1", "Catch-gru-other-seed1", "Catch-gru-abl-seed1-x", "Catch"):
        assert variant_of(name, "Catch", "abl") is None


def test_scores_are_shares_of_what_a_task_allows() -> None:
    assert normalise("dmc", "cartpole_balance", 250.0) == 0.25
    assert normalise("atari", "Catch", -1.0) == 0
    assert normalise("atari", "Catch", 0.5) == 0.75
    with pytest.raises(UserError, match="the returns of Pong have no known bounds"):
        normalise("atari", "Pong", 1.0)


def test_the_numbers_of_a_study(study: Folders) -> None:
    problems: list[str] = []
    outcomes = read_outcomes(study.scores, study.runs, "abl", problems)
    assert order(outcomes, "default") == VARIANTS
    made = tables(outcomes, VARIANTS, 200, problems)
    assert len(made["scores"]) == 24
    assert problems == []

    summary = made["summary"].set_index(["variant", "metric"])
    assert summary.loc[("gru", "mean"), "value"] == pytest.approx((0.82 + 0.82 + 0.75) / 3)
    assert summary.loc[("rms_norm", "mean"), "value"] == pytest.approx(0.22)
    assert list(summary.loc[("rms_norm", "mean"), ["tasks", "runs"]]) == [2, 3]
    row = summary.loc[("rms_norm", "mean")]
    assert 0.21 <= row["low"] < 0.22 < row["high"] <= 0.23
    tasks = made["tasks"].set_index(["task", "variant", "metric"])
    assert tasks.loc[("Catch", "gru", "mean"), "value"] == 0.75
    assert ("Catch", "rms_norm", "mean") not in tasks.index

    apart = made["difference"].set_index("variant")
    assert apart.loc["gru", "value"] == pytest.approx((0.3 + 0.3 + 0.25) / 3)
    assert apart.loc["rms_norm", "value"] == pytest.approx(-0.3)
    assert -0.31 < apart.loc["rms_norm", "low"] < -0.3 < apart.loc["rms_norm", "high"] < -0.29
    better = made["improvement"].set_index("variant")
    assert list(better["value"]) == [1.0, 0.0]
    assert list(better["tasks"]) == [3, 2]  # rms_norm is compared on the tasks that it has
    assert list(better.loc["gru", ["low", "high"]]) == [1.0, 1.0]


def test_what_is_not_of_the_study_is_left_out_or_named(study: Folders) -> None:
    add(study, "gru", 1, 0.0, suffix="other")
    add(study, "gru", 4, 0.0, done=False)
    again = add(study, "gru", 5, 900.0, steps=4000)
    study.evaluate_again(again, "greedy-1ep", 0.0, greedy=True)
    for name in ("Catch-gru-abl-seed7", "Catch-gru-other-seed7"):
        (study.runs / name).mkdir(parents=True)
        (study.runs / name / "run.json").write_text("{}")
    problems: list[str] = []
    outcomes = read_outcomes(study.scores, study.runs, "abl", problems)
    assert len(outcomes) == 25
    assert {(one.run, one.score) for one in outcomes if one.seed == 5} == {(again, 900.0)}
    assert "cartpole_balance-gru-abl-seed4: left out: it has not finished" in problems
    assert f"{again}: the evaluation greedy-1ep is left out" in problems
    assert problems[-1] == "Catch-gru-abl-seed7: left out: it has no scores"
    assert len(problems) == 4
    with pytest.raises(UserError, match=r"differ in length: 16000 steps .*, 32000 steps .*extends"):
        check_equal_lengths(outcomes)


def test_some_tasks_only(study: Folders) -> None:
    outcomes = read_outcomes(study.scores, study.runs, "abl", [])
    assert {one.task for one in only_tasks(outcomes, ["Catch"])} == {"Catch"}
    assert len(only_tasks(outcomes, ["Catch", "reacher_easy"])) == 6 + 9
    assert only_tasks(outcomes, None) == outcomes


def test_metrics_of_the_last_fifth_are_averaged_over_steps_then_seeds(study: Folders) -> None:
    """Of the run's folder where there is one, else beside the scores."""
    outcomes = only_tasks(read_outcomes(study.scores, study.runs, "abl", []), ["Catch"])
    kl = "WorldModel/real_kl"
    for seed, values in ((1, (9, 8, 1, 3)), (2, (7, 7, 4, 4)), (3, (5, 5, 9, 9))):
        lines = [{"step": step, kl: v} for step, v in zip((40, 80, 90, 100), values, strict=True)]
        text = "".join(f"{json.dumps(line)}\n" for line in [*lines, {"step": 100, "Rollout/x": 1}])
        name = f"Catch-gru-abl-seed{seed}"
        folder = study.runs / name
        path = folder / "metrics.jsonl" if seed < 3 else study.scores / f"{name}.metrics.jsonl"
        (study.runs / name / "metrics.jsonl").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = last_metrics(study.scores, study.runs, outcomes, [])
    row = found[(found["variant"] == "gru") & (found["metric"] == kl)].iloc[0]
    assert list(row[["task", "mean", "seeds"]]) == ["Catch", 5.0, 3]  # of 2, 4 and 9
    assert row["std"] == pytest.approx((26 / 3) ** 0.5)


def test_the_figure_shows_every_task() -> None:
    """More of them than there are colours."""
    tasks = [f"task {i}" for i in range(len(COLOURS) + 2)]
    scores = pd.DataFrame({"task": tasks, "variant": "default", "normalised": 0.5})
    one = pd.DataFrame({"variant": ["default"], "value": [0.5], "low": [0.4], "high": [0.6]})
    figure = draw_scores({"scores": scores, "difference": one, "improvement": one}, ["default"])
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == sorted(tasks)
    pyplot.close(figure)


def given(folders: Folders) -> list[str]:
    return ["--scores", str(folders.scores), "--runs", str(folders.runs), "--reps", "100"]


def test_the_command_writes_tables_and_figures(study: Folders) -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "results.study", *given(study), "abl"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output = Path(done.stdout.split(": ")[1].strip())
    assert output == study.scores / "study_abl"
    names = {path.name for path in output.iterdir()}
    tables = {f"{name}.csv" for name in (*TABLES, "curves", "metrics")}
    figures = {f"{name}.{kind}" for name in ("scores", "curves") for kind in ("png", "pdf")}
    assert names == tables | figures | {"study.md"}
    text = (output / "study.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| gru")]
    assert lines[0].startswith("| gru | 0.75 [0.75, 0.75] | 0.82 [0.81, 0.83] |")
    assert "| +0.28 [+0." in lines[0]
    assert "| 1.00 [1.00, 1.00] | 9 |" in lines[0]
    curves = pd.read_csv(output / "curves.csv")
    assert set(curves["variant"]) == set(VARIANTS)
    assert curves["frames"].max() > 30_000


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["nothing"], "holds no scores of a finished run whose name ends in -nothing-seed<N>"),
        (["abl", "--default", "lstm"], "there is no run of the variant lstm; there are default"),
        (["abl", "--tasks", "Catch,Pong"], "no run of Pong has finished; there are Catch, cart"),
        (["abl", "--reps", "3"], "--reps 3 is not valid"),
        (["abl", "--scores", "/nowhere"], "there is no folder /nowhere"),
        (["abl", "--runs", "/nowhere"], "there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line(
    study: Folders,
    flags: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *given(study), *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run_command(main)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_report_takes_the_runs_of_a_study_too(study: Folders) -> None:
    """Catch has no published scores: it is reported without them."""
    found = study.gather()
    tasks = {task for panel in found.panels for task in panel.tasks}
    assert {"Catch", "cartpole_balance", "reacher_easy"} <= tasks
    assert (study.report() / "files.json").is_file()
