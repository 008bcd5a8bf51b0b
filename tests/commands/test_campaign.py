"""The scripts that train, evaluate and collect many runs."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pwm_core.config import REPOSITORY
from scripts.campaign import LONG_TASKS, budget, task_overrides
from scripts.collect import downsample

SMALL = [
    part
    for override in (
        "JointTrainAgent={SampleMaxSteps: 900, BufferMaxLength: 900, BufferWarmUp: 300}",
        "JointTrainAgent={SaveEverySteps: 100, LogEverySteps: 50, NumEnvs: 2}",
        "JointTrainAgent={VideoLogStep: 9000, EvalEnvs: 2, EvalEpisodes: 2}",
        "Models={Hidden: 16, NumBin: 21}",
    )
    for part in ("-set", override)
]


def copy_of_the_code(root: Path) -> Path:
    """What git tracks, and the scripts' wrapper around the interpreter that runs this."""
    files = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "pwm_*", "config_files", "scripts"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((REPOSITORY / name).read_bytes())
    (root / "eval_result").mkdir()
    return root


def campaign(root: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-O", "-m", "scripts.campaign", *flags, "-device", "cpu", *SMALL]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def first_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until the run has one."""
    deadline = time.monotonic() + 120
    while not list(run.glob("resume/*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)


PROPRIO = ["dmc", "-obs_type", "proprio", "-config_path", "config_files/dmc_tiny.yaml"]
ATARI = ["atari", "-config_path", "config_files/atari_tiny.yaml"]


@pytest.mark.parametrize(
    ("flags", "tasks", "frame_skip"),
    [
        ([*PROPRIO, "-jobs", "2"], {"reacher_easy": "-proprio", "cup_catch": "-proprio"}, 4),
        (ATARI, {"Pong": ""}, 4),
    ],
)
@pytest.mark.slow
def test_a_campaign_that_is_stopped_goes_on_and_collects(
    tmp_path: Path, flags: list[str], tasks: dict[str, str], frame_skip: int
) -> None:
    root = copy_of_the_code(tmp_path)
    names = [f"{task}{kind}-tiny-seed1" for task, kind in tasks.items()]
    command = [*flags, "-suffix", "tiny", *tasks]
    process = campaign(root, *command)
    first_checkpoint(process, root / "ckpt" / names[0])
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 75, text
    assert "the same command goes on" in text
    assert not list((root / "eval_result").iterdir())

    process = campaign(root, *command)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    assert "going on from step" in (root / "ckpt" / "logs" / f"{names[0]}.log").read_text()
    for name, task in zip(names, tasks, strict=True):
        header, row = (root / "eval_result" / f"{name}.csv").read_text().splitlines()
        assert header.startswith("step,frames,mean,std,return_0,return_1")
        assert row.startswith(f"900,{900 * frame_skip},")
        lines = (root / "eval_result" / f"{name}.metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 900
        about = json.loads((root / "eval_result" / f"{name}.training.json").read_text())
        assert task in about["task"]
        assert about["seconds"] > 0

    process = campaign(root, *command)
    text = process.communicate(timeout=60)[0]
    assert (process.returncode, text.count("done already")) == (0, len(tasks))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["atari", "Pong", "-jobs", "0"], "-jobs must be at least 1"),
        (["atari", "Pong", "-config_path", "none.yaml"], "none.yaml does not exist"),
        (["atari", "Po/ng"], "run name 'Po/ng-seed1' is not valid"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    process = campaign(copy_of_the_code(tmp_path), *flags)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert message in text
    assert text.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    root = copy_of_the_code(tmp_path)
    tiny = ["-config_path", "config_files/dmc_tiny.yaml", "-obs_type", "proprio"]
    process = campaign(root, "dmc", *tiny, "walker_wlak", "cup_catch")
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert "failed: walker_wlak-proprio-seed1 (train, status 2)" in text
    assert (root / "eval_result" / "cup_catch-proprio-seed1.csv").is_file()
    log = (root / "ckpt" / "logs" / "walker_wlak-proprio-seed1.log").read_text()
    assert "did you mean 'walker_walk'" in log


def test_budgets_are_those_of_the_published_table() -> None:
    assert budget("cartpole_balance", "proprio") == 100_000
    assert budget("cheetah_run", "proprio") == 200_000
    assert budget("cartpole_balance", "visual") == 200_000
    assert budget("cheetah_run", "visual") == 400_000
    assert len(LONG_TASKS) == 8


@pytest.mark.parametrize(
    ("given", "steps"), [([], 50_000), (["BasicSettings.FrameSkip=4"], 25_000)]
)
def test_a_budget_becomes_agent_steps(given: list[str], steps: int) -> None:
    arguments = argparse.Namespace(domain="dmc", config_path=None, obs_type="proprio", set=given)
    budgets = [f"JointTrainAgent.{key}={steps}" for key in ("SampleMaxSteps", "BufferMaxLength")]
    assert task_overrides(arguments, "cartpole_balance") == budgets + given


def test_metrics_are_averaged_to_fit() -> None:
    records = [
        {"step": i + 1, "frames": 2 * (i + 1), "loss": float(i), "gap": None if i % 2 else 4.0}
        for i in range(1000)
    ]
    whole = downsample(records, limit=10**6)
    assert [json.loads(line) for line in whole.splitlines()] == records
    small = downsample(records, limit=4000)
    kept = [json.loads(line) for line in small.splitlines()]
    assert 2000 < len(small) <= 4000
    assert kept[-1]["step"] == 1000
    assert all(record["frames"] == 2 * record["step"] for record in kept)
    assert all(record["gap"] == 4.0 for record in kept)
    widths = [b["step"] - a["step"] for a, b in itertools.pairwise(kept)]
    assert max(widths) - min(widths) <= 1
    assert kept[0]["loss"] == pytest.approx((kept[0]["step"] - 1) / 2)
