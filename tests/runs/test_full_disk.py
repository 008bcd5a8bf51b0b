"""A disk that is full costs what cannot be written, and nothing that was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE, find_logdir
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec
from tests.helpers_counting import LONG, uninterrupted
from tests.helpers_envs import CountingEnv, counting_domain
from tests.helpers_runs import (
    LIMIT_SIZE,
    Hook,
    RunTree,
    assert_same_run,
    atari,
    evaluate_run,
    fill,
    folder,
    last_step,
    records,
    train_counting,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of :data:`LONG` whose disk had room."""
    return uninterrupted(tmp_path_factory.mktemp("whole"), LONG)


def filling(disk: Path, full: int, free: int | None = None, leave: int = 0) -> Hook:
    """A hook that fills the disk before one step and, where told to, frees it before another."""

    def hook(step: int, env: CountingEnv) -> None:
        if step == full:
            fill(disk, leave)
        if step == free:
            (disk / "ballast").unlink()
        for line in (folder("run") / "metrics.jsonl").read_text().splitlines():
            json.loads(line)  # never half a line, at any step

    return hook


@pytest.mark.parametrize("leave", ["nothing", "weights", "weights and chunk"])
def test_a_full_disk_costs_checkpoints_only(
    leave: str,
    disk: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full from step 25 to step 38: the point of step 30 is missing, at whichever of its files the
    room ends; points, metrics and the run are those of a disk with room."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    size = (whole / "checkpoints" / "000000010.pt").stat().st_size
    room = {"nothing": 0, "weights": size + 8192, "weights and chunk": size + 40960}[leave]
    seen: list[int] = []
    fills = filling(disk, 25, 38, room)

    def hook(step: int, env: CountingEnv) -> None:
        if step == 32:
            seen.extend([ResumePoints(folder("run")).newest().step, *RunFolder("run").steps()])
        fills(step, env)

    train_counting("run", overrides=LONG, hook=hook)
    said = capsys.readouterr().out
    assert "warning: the checkpoint of step 30 could not be written (No space left" in said
    assert seen == [20, 10, 20] + [30] * (leave != "nothing")
    assert said.count("its lines wait in memory") == 1 or leave != "nothing"
    assert "step 40 could not" not in said
    assert_same_run(whole, folder("run"))


@pytest.mark.slow
def test_a_disk_that_stays_full(
    disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with a line and can be resumed once there is room."""
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    with pytest.raises(UserError, match="last checkpoint is missing; make room and -resume"):
        train_counting("run", overrides=LONG, hook=filling(disk, 25))
    assert "lines could not be written" in capsys.readouterr().out
    with pytest.raises(UserError, match="last checkpoint is missing; make room and -resume"):
        train_counting("run", "-resume", overrides=LONG)
    (disk / "ballast").unlink()
    train_counting("run", "-resume", overrides=LONG)
    assert "continuing from step 20:" in capsys.readouterr().out
    assert_same_run(whole, folder("run"))


def test_lines_that_wait_for_room_are_in_the_checkpoint(disk: Path) -> None:
    path = disk / "metrics.jsonl"
    lines = JsonLines(path)
    lines.log(1, {"a": 1.0})
    ballast = fill(disk)
    many = {f"name{i}": float(i) for i in range(500)}
    for step in (2, 3):
        lines.log(step, many)
    state = lines.state_dict()
    assert [len(path.read_text().splitlines()), len(state["waiting"])] == [1, 2]
    ballast.unlink()
    lines.log(4, {"a": 4.0})
    assert [r["step"] for r in records(disk)] == [1, 2, 3, 4]
    again = JsonLines(path)  # killed, and resumed from the state
    again.load_state_dict(state)
    again.log(4, {"a": 5.0})
    assert records(disk) == [{"step": 1, "a": 1}, *({"step": s, **many} for s in (2, 3)),
                             {"step": 4, "a": 5}]  # fmt: skip


def test_a_full_disk_costs_a_video(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    loop = "JointTrainAgent={SampleMaxSteps: 33, VideoLogStep: 14}"
    train_counting("run", overrides=[loop], hook=filling(disk, 27, 29))
    said = capsys.readouterr().out
    for name in ("observation", "reconstruction", "imagination"):
        assert f"{name}_000000028.mp4 could not be written" in said
    assert not list((folder("run") / "videos").iterdir()), "no half a video"
    assert RunFolder("run").steps()[-1] == 33


def fails_with(capsys: pytest.CaptureFixture[str], command: Any) -> str:
    """The one line on stderr of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run_command(command)
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    return line


def test_a_full_disk_leaves_the_scores(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_counting("run", overrides=LONG)
    scores = find_logdir().scores
    scores.symlink_to(disk)

    def score() -> None:
        evaluate_run(counting_domain((7,))[0], ["-n", "run", "-device", "cpu", *which])

    which = ["-checkpoint", "10"]
    score()
    before = {path: path.read_bytes() for path in disk.iterdir()}
    assert {path.name for path in before} == {"run.csv", "run.json"}
    ballast = fill(disk)
    which = ["-checkpoint", "20"]
    line = fails_with(capsys, score)
    assert line == f"error: {scores / 'run.csv'}: No space left on device"
    ballast.unlink()
    assert {path: path.read_bytes() for path in disk.iterdir()} == before


def test_a_disk_that_is_full_from_the_start(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    ballast = fill(disk)
    line = fails_with(capsys, lambda: train_counting("run", overrides=LONG))
    assert line == f"error: {folder('run') / 'run.json'}: No space left on device"
    assert ballast.exists()
    assert list(find_logdir().runs.iterdir()) == []


def test_a_replay_on_disk_is_laid_out_before_the_disk_can_fill(disk: Path) -> None:
    """Written to with no room left, a sparse file would kill the process."""
    spec = TransitionSpec(Field((1024,), torch.uint8), Field((), torch.int64))
    replay = ReplayBuffer(spec, 1, 4000, CPU, storage="disk", directory=disk / "replay")
    fill(disk)
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (4000, 1024), dtype=np.uint8)
    for row in stored:
        replay.add(row[None], *(np.zeros(1) for _ in range(4)))
    assert (replay.read(0, 4000)["obs"][0].numpy() == stored).all()
    with pytest.raises(UserError, match="BufferMaxLength"):
        ReplayBuffer(spec, 1, 4000, CPU, storage="disk", directory=disk / "other")


def test_a_limit_on_file_sizes(tree: RunTree) -> None:
    """Of a real command: no checkpoint fits, the metrics do."""
    loop = "JointTrainAgent={SampleMaxSteps: 120, SaveEverySteps: 60, LogEverySteps: 5}"
    job = tree.start("atari", *atari("limited", loop), limits={LIMIT_SIZE: 64 * 1024})
    job.refused("last checkpoint is missing; make room and -resume")
    assert "checkpoint of step 60 could not be written (File too large)" in job.stdout
    assert last_step(tree.folder("limited")) == 120
    assert not list(tree.folder("limited").rglob("*.pt*"))
