"""A run that is interrupted and resumed is the run that was not."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.errors import UserError
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runtime import random_state, set_random_state
from pwm_core.training.checkpointing import Checkpointer
from tests.helpers_counting import QUICK, damage, interrupted
from tests.helpers_envs import DEFAULTS
from tests.helpers_runs import (
    CrashError,
    assert_same_run,
    crash_at,
    evaluate_counting,
    folder,
    records,
    train_counting,
)

pytestmark = pytest.mark.usefixtures("logdir")


# -------------------------------------------------------------------------------------------- exact

VARIANTS: dict[str, dict[str, Any]] = {
    "one, wrapping, lines across points": {
        "overrides": ["JointTrainAgent={BufferMaxLength: 17, LogEverySteps: 11}"]
    },
    "three": {"lengths": (5, 6, 9)},
    "two on disk, wrapping, pete": {
        "overrides": [
            "JointTrainAgent={BufferMaxLength: 38, BufferStorage: disk}",
            "Models.Agent.Returns=pete",
        ],
        "lengths": (5, 8),
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_crashes_change_nothing(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the warm-up, between points, and with an episode running."""
    options = dict(VARIANTS[variant])
    loop = "JointTrainAgent={SaveEverySteps: 4, SampleMaxSteps: 48}"
    # A policy that stays uniform would not show what it acts on.
    options["overrides"] = [*options.get("overrides", []), loop, "Models.Agent.LR=0.1"]
    train_counting("whole", **options)
    rng = random.Random(variant)
    envs = len(options.get("lengths", (7,)))
    for _ in range(5):
        step = rng.randint(4 // envs, 9 // envs)
        with pytest.raises(CrashError):
            train_counting("run", "-resume", hook=crash_at(step), **options)
    steps = ResumePoints(folder("run")).steps()
    assert steps, "something was there to go on from"
    train_counting("run", "-resume", **options)
    assert f"continuing from step {steps[-1]}:" in capsys.readouterr().out
    assert_same_run(folder("whole"), folder("run"))
    assert {p.name for p in folder("run").iterdir()} == {p.name for p in folder("whole").iterdir()}


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_in_any_write_of_a_checkpoint_changes_nothing(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every (by default: every sixth) file that is put in place or removed, from the first to
    the last of a run."""
    loop = "JointTrainAgent={SampleMaxSteps: 9, SaveEverySteps: 3, BufferWarmUp: 6}"
    options: dict[str, Any] = {"overrides": [loop, "JointTrainAgent.BufferMaxLength=4"]}
    operations = [(os, "replace"), (Path, "unlink")]
    left = 10**9

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:  # and again in what cleans up: a killed process does not
                raise CrashError
            return real(*arguments, **keywords)

        return call

    for owner, name in operations:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    train_counting("whole", **options)
    count = 10**9 - left
    assert count > 30
    for survived in range(stride - 1, count, stride):
        name = f"run{survived}"
        left = survived
        with pytest.raises(CrashError):
            train_counting(name, **options)
        left = 10**9
        train_counting(name, "-resume", **options)
        assert_same_run(folder("whole"), folder(name))
        assert not list(folder(name).rglob(".*.tmp")), "what the crash left half written is gone"


def test_every_random_generator_comes_back() -> None:
    rng = np.random.default_rng(3)

    def draw() -> list[float]:
        ours = (random.random(), np.random.normal(), torch.randn(()).item(), rng.normal())
        return [*map(float, ours), float(rng.integers(1 << 40))]

    draw()
    np.random.normal()  # leaves half of a pair behind
    state = random_state(rng, torch.device("cpu"))
    expected = draw()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert draw() != expected
    set_random_state(state, rng, torch.device("cpu"))
    assert draw() == expected


def test_a_point_writes_new_transitions_only() -> None:
    """However much the replay holds, no transition is written twice."""
    seen: dict[str, int] = {}

    def hook(step: int, env: Any) -> None:
        for path in folder("run").glob("replay/*.pt"):
            assert seen.setdefault(path.name, path.stat().st_ino) == path.stat().st_ino

    save = "JointTrainAgent={SaveEverySteps: 10, TrainModelEverySteps: 5, TrainAgentEverySteps: 5}"
    train_counting("run", overrides=[save], hook=hook)
    spans = sorted(tuple(map(int, name.removesuffix(".pt").split("-"))) for name in seen)
    assert spans == [(first, first + 10) for first in range(0, 50, 10)]


def test_chunks_that_the_ring_has_dropped_are_removed() -> None:
    held: list[set[str]] = []
    options = ["JointTrainAgent={SaveEverySteps: 5, BufferMaxLength: 12, BufferWarmUp: 50}"]
    with pytest.raises(CrashError):
        train_counting("run", overrides=options, hook=crash_at(52))
    held = sorted(path.name for path in folder("run").glob("replay/*.pt"))
    # The point of step 45 needs the steps from 33 on.
    assert held == [f"{first:09d}-{first + 5:09d}.pt" for first in range(30, 50, 5)]


# ------------------------------------------------------------------------------------ begin, refuse


def test_resume_begins_where_there_is_nothing(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_counting("run", "-resume", overrides=QUICK)
    assert "training count" in capsys.readouterr().out
    assert_same_run(whole, folder("run"))


def test_an_existing_run_is_refused_with_the_way_on() -> None:
    interrupted()
    before = {path: path.read_bytes() for path in folder("run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run exists already in .*: -resume continues it"):
        train_counting("run")
    assert {p: p.read_bytes() for p in folder("run").rglob("*") if p.is_file()} == before


def test_other_settings_are_refused_with_all_differences() -> None:
    interrupted()
    changed = [*QUICK, "Models.Gamma=0.5", "JointTrainAgent.BatchSize=5"]
    with pytest.raises(UserError, match="other settings") as raised:
        train_counting("run", "-resume", "-seed", "9", overrides=changed)
    differences = str(raised.value).partition("settings: ")[2]
    *listed, advice = differences.split("; ")
    assert advice == "repeat the run's own flags, or choose another -n"
    assert set(listed) == {
        "BasicSettings.Seed was 0 and is 9",
        "Models.Gamma was 0.997 and is 0.5",
        "JointTrainAgent.BatchSize was 3 and is 5",
    }
    with pytest.raises(UserError, match="task was count and is other"):
        train_counting("run", "-resume", "-env_name", "other", overrides=QUICK)


def test_a_run_may_go_on_with_another_way_to_compute_its_steps(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted()
    train_counting("run", "-resume", overrides=[*QUICK, "BasicSettings.Compile=graph"])
    note = "the numbers may differ from here on: BasicSettings.Compile was auto and is graph"
    assert capsys.readouterr().out.count(note) == 1
    assert RunFolder.open("run").config(DEFAULTS).BasicSettings.Compile == "graph"
    assert_same_run(whole, folder("run"))  # on a CPU, graph is off


def test_a_run_may_go_on_and_be_evaluated_with_another_scan(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run with Scan=triton must on a CPU; the refusal of triton says so."""
    other = "Models.WorldModel.Scan=sequential"
    interrupted()
    train_counting("run", "-resume", overrides=[*QUICK, other])
    assert "Models.WorldModel.Scan was chunked and is sequential" in capsys.readouterr().out
    assert records(folder("run"))[-1]["step"] == records(whole)[-1]["step"]
    assert evaluate_counting("run", "-set", "Models.WorldModel.Scan=chunked").name == "run.csv"


def test_a_finished_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    train_counting("run", overrides=QUICK)
    before = {path: path.read_bytes() for path in folder("run").rglob("*.*")}
    capsys.readouterr()
    train_counting("run", "-resume", overrides=QUICK)
    assert capsys.readouterr().out == (
        "run run is finished: 45 steps; nothing to resume; a larger JointTrainAgent.SampleMaxSteps "
        "extends it\n"
    )
    assert {path: path.read_bytes() for path in folder("run").rglob("*.*")} == before


def test_what_changed_since_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    path = interrupted() / "run.json"
    path.write_text(path.read_text().replace(f'"{torch.__version__}"', '"1.0"'))
    train_counting("run", "-resume", overrides=QUICK)
    note = f"the numbers may differ from here on: torch was 1.0 and is {torch.__version__}"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("keep", [1, 3])
def test_keep(keep: int, whole: Path) -> None:
    """The newest K weights; those that the run could go on from as long as it could."""
    options: dict[str, Any] = {"overrides": [*QUICK, "JointTrainAgent.SaveEverySteps=10"]}
    with pytest.raises(CrashError):
        train_counting("run", "-keep", str(keep), hook=crash_at(42), **options)
    assert RunFolder("run").steps() == [10, 20, 30, 40][-max(2, keep) :]
    damage(folder("run") / "resume" / "000000040.pt", "cut")
    train_counting("run", "-resume", "-keep", str(keep), **options)
    assert RunFolder("run").steps() == [10, 20, 30, 40, 45][-keep:]
    assert_same_run(whole, folder("run"))


def test_all_weights_are_kept_by_default(whole: Path) -> None:
    assert sorted(int(path.stem) for path in whole.glob("checkpoints/*")) == [20, 40, 45]


@pytest.mark.parametrize("value", ["0", "-1", "two", "²"])
def test_keep_is_a_count(value: str) -> None:
    with pytest.raises(UserError, match=f"-keep: {value} is not"):
        train_counting("run", "-keep", value)


# ------------------------------------------------------------------------------------------- extend

LONGER = (*QUICK, "JointTrainAgent.SampleMaxSteps=55")


def test_a_finished_run_that_is_extended_is_the_longer_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Byte for byte, though the shorter one logged a last line of its own and dropped transitions;
    and again after a crash."""
    ring = "JointTrainAgent={BufferMaxLength: 38, LogEverySteps: 7}"
    train_counting("whole", overrides=[*LONGER, ring])
    train_counting("run", overrides=[*QUICK, ring])
    capsys.readouterr()
    with pytest.raises(CrashError):
        train_counting("run", "-resume", overrides=[*LONGER, ring], hook=crash_at(5))
    said = capsys.readouterr().out
    assert "extending the run from 45 to 55 steps" in said
    assert "continuing from step 45:" in said
    train_counting("run", "-resume", overrides=[*LONGER, ring])
    assert_same_run(folder("whole"), folder("run"))
    assert RunFolder("run").config(DEFAULTS).JointTrainAgent.SampleMaxSteps == 55
    train_counting("run", "-resume", overrides=[*LONGER, ring])
    assert "is finished: 55 steps" in capsys.readouterr().out


def test_the_replay_grows_with_the_run() -> None:
    """Where it holds everything so far, as in the full configs."""
    sizes = ["JointTrainAgent.BufferMaxLength=45", "JointTrainAgent.BufferMaxLength=55"]
    train_counting("whole", overrides=[*LONGER, sizes[1]])
    train_counting("run", overrides=[*QUICK, sizes[0]])
    train_counting("run", "-resume", overrides=[*LONGER, sizes[1]])
    assert_same_run(folder("whole"), folder("run"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("SampleMaxSteps=40", "SampleMaxSteps was 45 and is 40"),
        ("BufferMaxLength=40", "BufferMaxLength was 38 and is 40"),  # it has dropped transitions
        ("BufferMaxLength=30", "BufferMaxLength was 38 and is 30"),
    ],
)
def test_what_cannot_be_extended_is_refused(change: str, says: str) -> None:
    ring = "JointTrainAgent.BufferMaxLength=38"
    train_counting("run", overrides=[*QUICK, ring])
    with pytest.raises(UserError, match=says):
        train_counting("run", "-resume", overrides=[*QUICK, ring, f"JointTrainAgent.{change}"])


def test_a_finished_run_without_its_last_point_is_not_begun_again() -> None:
    """As runs of earlier versions are, even with a single checkpoint."""
    once = (*QUICK, "JointTrainAgent.SaveEverySteps=100")
    train_counting("run", overrides=once)
    for path in folder("run").glob("resume/*"):
        path.unlink()
    train_counting("run", "-resume", overrides=once)  # it is finished, and that is all
    with pytest.raises(UserError, match=r"got to step 45, but .* holds nothing to continue from"):
        train_counting("run", "-resume", overrides=[*once, "JointTrainAgent.SampleMaxSteps=55"])
    assert RunFolder("run").steps() == [45]


def test_a_finished_run_keeps_one_small_point() -> None:
    """Not what the replay kept on disk to sample from; and transitions are deflated."""
    train_counting("run", overrides=[*QUICK, "JointTrainAgent.BufferStorage=disk"])
    assert ResumePoints(folder("run")).steps() == [45]
    replay = list(folder("run").glob("replay/*"))
    assert {path.suffix for path in replay} == {".pt"}
    frames = 45 * 8 * 8 * 3
    assert sum(path.stat().st_size for path in replay) < frames


def test_a_start_that_is_refused_leaves_no_replay_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are taken before the loggers are made."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    keys = [*QUICK, "JointTrainAgent.BufferStorage=disk"]
    with pytest.raises(UserError, match="tensorboard is not installed"):
        train_counting("run", "-logger", "tensorboard", overrides=keys)
    assert not folder("run").exists()


def test_a_replay_that_moved_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The place is chosen by what is free at a start, and has a random generator of its own."""
    content = Checkpointer._content
    on_cuda = {"replay_place": "cuda"}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_content", lambda self: content(self) | on_cuda)
        interrupted()
    told = "the replay was in memory of cuda and is in memory of cpu"
    train_counting("run", "-resume", overrides=QUICK)
    assert told in capsys.readouterr().out
    train_counting("run", "-resume", overrides=[*QUICK, "JointTrainAgent.SampleMaxSteps=55"])
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize("left", [0.0, 0.5, "half a line"])
def test_metrics_that_were_lost_are_reported(
    left: float | str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what follows does not join half a line."""
    path = interrupted() / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    kept = lines[: int(len(lines) * left)] if not isinstance(left, str) else lines[:3]
    end = '{"step": 9' if isinstance(left, str) else ""
    path.write_text("".join(kept) + end)
    last = json.loads(kept[-1])["step"] if kept else 0
    train_counting("run", "-resume", overrides=QUICK)
    said = capsys.readouterr().out
    assert f"its lines after step {last} are lost" in said
    steps = [record["step"] for record in records(folder("run"))]
    assert steps[: len(kept)] == [json.loads(line)["step"] for line in kept]
    assert steps[-1] == 45
