"""The README's DeepMind Control commands."""

from __future__ import annotations

import csv
import json

import pytest

from pwm_dmc.rendering import try_renderer
from tests.commands.clone import Clone, Result

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


def run(clone: Clone, script: str, *arguments: str) -> Result:
    """A command from inside ``pwm_dmc/``, as the README has it."""
    flags = [*arguments, "-device", "cpu", "-seed", "1"]
    return clone.call(f"pwm_dmc/{script}", *flags, cwd=clone.root / "pwm_dmc")


@pytest.mark.parametrize(
    ("obs_type", "stem", "other"),
    [("proprio", 32, "visual"), pytest.param("visual", 4, "proprio", marks=pytest.mark.slow)],
)
def test_train_then_evaluate(clone: Clone, obs_type: str, stem: int, other: str) -> None:
    if obs_type == "visual" and not [r for r in ("egl", "osmesa") if not try_renderer(r)]:
        pytest.skip("no renderer on this machine: neither EGL nor OSMesa")
    name = f"cup_catch-{obs_type}-pwm"
    small = [part for key in SMALL for part in ("-set", key)]
    common = ["-config_path", "config_files/dmc_tiny.yaml", "-obs_type", obs_type]
    common += ["-env_name", "cup_catch"]
    flags = [*small, "-set", f"Models.WorldModel.Stem={stem}", "-logger", "none"]
    done = run(clone, "train.py", "-n", name, *common, *flags)
    assert done.status == 0, done.stderr
    lines = (clone.root / "ckpt" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == [500, 530, 540]
    assert records[0]["Rollout/length"] == 500  # 1000 simulator steps
    videos = sorted(path.name for path in (clone.root / "ckpt" / name).glob("videos/*"))
    assert len(videos) == (5 if obs_type == "visual" else 0)

    done = run(clone, "eval.py", "-n", name, *common, "-episodes", "2")
    assert done.status == 0, done.stderr
    scores = clone.root / "eval_result" / f"{name}--2ep.csv"
    header, row = csv.reader(scores.read_text().splitlines())
    assert header == ["step", "frames", "mean", "std", "return_0", "return_1"]
    assert row[:2] == ["540", "1080"]
    assert all(0 <= float(value) <= 1000 for value in row[4:])
    about = json.loads(scores.with_suffix(".json").read_text())
    assert about["protocol_settings"]["obs_type"] == obs_type

    done = run(clone, "eval.py", "-n", name, "-obs_type", other)  # not what it was trained with
    check_refused(done, "ObsType")


def check_refused(done: Result, says: str) -> None:
    """One clear line and the exit status of bad input."""
    assert done.status == 2
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
def test_bad_input_is_one_line(clone: Clone, flags: list[str], says: str) -> None:
    done = run(clone, "train.py", "-n", "bad", *flags)
    check_refused(done, says)
    assert not (clone.root / "ckpt" / "bad").exists()
