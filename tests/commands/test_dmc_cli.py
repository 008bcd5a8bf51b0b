"""The README's DeepMind Control commands, as real processes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pwm_dmc.rendering import try_renderer

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pwm_core", "pwm_dmc", "config_files")
SMALL = [
    "BasicSettings.FrameSkip=2",  # the suite's: 500 steps an episode
    "JointTrainAgent.SampleMaxSteps=540",
    "JointTrainAgent.BufferMaxLength=540",
    "JointTrainAgent.BufferWarmUp=520",
    "JointTrainAgent.NumEnvs=1",
    "JointTrainAgent.TrainModelEverySteps=2",
    "JointTrainAgent.TrainAgentEverySteps=2",
    "JointTrainAgent.LogEverySteps=10",
    "JointTrainAgent.SaveEverySteps=540",
    "JointTrainAgent.VideoLogStep=530",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing is written into the repository."""
    copy = tmp_path_factory.mktemp("dmc") / "tree"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run(tree: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command from inside ``pwm_dmc/``, as the README has it."""
    command = [sys.executable, "-u", "-O", script, *arguments, "-device", "cpu", "-seed", "1"]
    return subprocess.run(
        command, cwd=tree / "pwm_dmc", capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("obs_type", "stem", "other"),
    [("proprio", 32, "visual"), pytest.param("visual", 4, "proprio", marks=pytest.mark.slow)],
)
def test_train_then_evaluate(tree: Path, obs_type: str, stem: int, other: str) -> None:
    if obs_type == "visual" and not [r for r in ("egl", "osmesa") if not try_renderer(r)]:
        pytest.skip("no renderer on this machine: neither EGL nor OSMesa")
    name = f"cup_catch-{obs_type}-pwm"
    small = [part for key in SMALL for part in ("-set", key)]
    common = ["-config_path", "config_files/dmc_tiny.yaml", "-obs_type", obs_type]
    common += ["-env_name", "cup_catch"]
    flags = [*small, "-set", f"Models.WorldModel.Stem={stem}", "-logger", "none"]
    done = run(tree, "train.py", "-n", name, *common, *flags)
    assert done.returncode == 0, done.stderr
    lines = (tree / "ckpt" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == [500, 530, 540]
    assert records[0]["Rollout/length"] == 500  # 1000 simulator steps
    videos = sorted(path.name for path in (tree / "ckpt" / name).glob("videos/*"))
    assert len(videos) == (5 if obs_type == "visual" else 0)

    done = run(tree, "eval.py", "-n", name, *common, "-episodes", "2")
    assert done.returncode == 0, done.stderr
    scores = tree / "eval_result" / f"{name}--2ep.csv"
    header, row = csv.reader(scores.read_text().splitlines())
    assert header == ["step", "frames", "mean", "std", "return_0", "return_1"]
    assert row[:2] == ["540", "1080"]
    assert all(0 <= float(value) <= 1000 for value in row[4:])
    about = json.loads(scores.with_suffix(".json").read_text())
    assert about["protocol_settings"]["obs_type"] == obs_type

    done = run(tree, "eval.py", "-n", name, "-obs_type", other)  # not what it was trained with
    check_refused(done, "ObsType")


def check_refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    """One clear line and the exit status of bad input."""
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-env_name", "walker_wlk"], "walker_walk"),
        (["-env_name", "walker_walk", "-obs_type", "pixels"], "visual"),
        pytest.param(
            ["-env_name", "walker_walk", "-set", "BasicSettings.Protocol=standard"],
            "suite",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_is_one_line(tree: Path, flags: list[str], says: str) -> None:
    done = run(tree, "train.py", "-n", "bad", *flags)
    check_refused(done, says)
    assert not (tree / "ckpt" / "bad").exists()
