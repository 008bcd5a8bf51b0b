"""What goes wrong around a run, provoked: memory, processes, trackers, files."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.commands.plot import plot
from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE
from pwm_core.runs.files import write_text
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Tracker, Wandb
from tests.helpers_counting import LONG
from tests.helpers_envs import counting_domain
from tests.helpers_runs import (
    LIMIT_MEMORY,
    CrashError,
    RunTree,
    assert_same_run,
    atari,
    crash_at,
    dmc,
    evaluate_run,
    fill,
    folder,
    hooked,
    last_step,
    records,
    train_counting,
    wait_for_step,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")

# -------------------------------------------------------------------------------- memory, processes


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("Models.Hidden=150000", ["the networks and their optimisers need", "lower Models.Hidden"]),
        (
            "JointTrainAgent.BatchSize=1000000",
            ["(tried to allocate", "start a new run with a lower JointTrainAgent.Batch"],
        ),
    ],
)
def test_out_of_memory_is_one_line(setting: str, says: list[str], tree: RunTree) -> None:
    """On the CPU: the networks do not fit, which is known before they are made; or the first batch
    does not."""
    name = f"large{setting[-5:]}"
    job = tree.start("atari", *atari(name, setting), limits={LIMIT_MEMORY: 12 << 30})
    job.refused("out of memory", *says)


def test_compiling_without_a_compiler_is_refused() -> None:
    from torch._inductor import config  # seconds that no other test takes

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UserError, match=r"Compile: compile needs a C\+\+ compiler .* or write off"),
    ):
        train_counting("run", overrides=["BasicSettings.Compile=compile"])
    assert not folder("run").exists()


@pytest.mark.parametrize("part", ["environment", "weights"])
def test_out_of_memory_in_evaluation_is_one_line(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the weights are read, which is then not said to be the checkpoint's fault."""
    train_counting("run", overrides=LONG)
    domain = counting_domain((7,))[0]
    if part == "environment":
        domain = hooked(domain, lambda step, env: np.ones(1 << 55))
    else:
        monkeypatch.setattr(RunFolder, "load_weights", lambda *_: torch.ones(1 << 55))
    with pytest.raises(UserError, match=r"out of memory \(.*lower JointTrainAgent.EvalEnvs"):
        evaluate_run(domain, ["-n", "run", "-device", "cpu"])


@pytest.mark.slow  # the simulator's processes take seconds to start
def test_a_run_whose_worker_is_killed_goes_on(tree: RunTree) -> None:
    """What the replacement does is tested in ``test_dmc_envs.py``."""
    loop = "JointTrainAgent={SampleMaxSteps: 260, BufferWarmUp: 100, LogEverySteps: 8}"
    job = tree.start("dmc", *dmc("orphan", loop))
    run = tree.folder("orphan")
    wait_for_step(job, run, 120)
    workers = job.children()
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    job.ended()
    assert "another takes its place, the episodes it ran are closed" in job.everything
    restarts = [r["Rollout/worker_restarts"] for r in records(run) if "frames" in r]
    assert (restarts[0], restarts[-1]) == (0, 1)
    assert last_step(run) == 260


def test_the_lock_is_of_one_process_and_leaves_with_it() -> None:
    with RunFolder("run").lock():
        lock = (folder("run") / "lock").stat().st_ino
        for _ in range(2):
            with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on"):
                train_counting("run", overrides=LONG)
        assert (folder("run") / "lock").stat().st_ino == lock, "the refused one leaves it alone"
    assert not folder("run").exists(), "nothing had begun"
    train_counting("run", overrides=LONG)
    with RunFolder("run").lock():
        pass
    assert (folder("run") / "lock").exists()


def test_a_lock_that_cannot_say_whose_it_is(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(disk))
    folder("run").mkdir(parents=True)
    fill(disk)
    with (
        RunFolder("run").lock(),
        pytest.raises(UserError, match="being trained by another process"),
        RunFolder("run").lock(),
    ):
        pass


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none; the kernel's error names no file."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"lock cannot be locked \(No locks available\): .*-logdir"):
        train_counting("run", overrides=LONG)


# ----------------------------------------------------------------------------------------- trackers


class Broken:
    """A sink that fails from its second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("the network\nis gone")

    def close(self) -> None:
        raise RuntimeError("closed though it was dropped")


def test_a_sink_that_fails_is_dropped_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = Broken()
    tracker = Tracker(JsonLines(tmp_path / "metrics.jsonl"), tmp_path, [sink])
    for step in range(1, 6):
        tracker.log(step, {"a": step})
    tracker.close()
    warning = "warning: Broken failed and is left out from now on: the network is gone\n"
    assert capsys.readouterr().out == warning
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4, 5]
    assert sink.calls == 2


def test_frames_that_cannot_be_encoded_cost_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(JsonLines(tmp_path / "metrics.jsonl"), tmp_path, [])
    tracker.video(1, "Video/Small", np.zeros((3, 1, 1, 3), np.uint8))  # both sides must be even
    tracker.close()
    assert "small_000000001.mp4 could not be written: " in capsys.readouterr().out


def test_wandb_that_starts_neither_online_nor_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(mode: str, **_: Any) -> None:
        raise RuntimeError(f"not {mode}\nhere")

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb cannot start: not offline here"):
        Wandb(tmp_path, "run", "project", {}, "abc")


def with_wandb(name: str) -> list[str]:
    argv = atari(name, "JointTrainAgent={SampleMaxSteps: 140, LogEverySteps: 5}")
    argv[argv.index("-logger") + 1] = "wandb"
    return argv


@pytest.mark.slow  # wandb takes half a minute to give up
def test_wandb_whose_server_cannot_be_reached(tree: RunTree) -> None:
    job = tree.start(
        "atari", *with_wandb("unreachable"), WANDB_MODE="online", WANDB_API_KEY="x" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    ).ended()  # fmt: skip
    assert "wandb: the server cannot be used" in job.stdout
    assert list(tree.folder("unreachable").glob("wandb/offline-run-*/*.wandb"))
    assert last_step(tree.folder("unreachable")) == 140


@pytest.mark.slow
def test_wandb_whose_process_is_killed(tree: RunTree) -> None:
    job = tree.start("atari", *with_wandb("widowed"))
    wait_for_step(job, tree.folder("widowed"), 110)
    for child in job.children():
        os.kill(child, signal.SIGKILL)
    job.ended()
    assert job.stdout.count("warning: Wandb failed and is left out from now on") == 1
    argv = with_wandb("unwatched")
    argv[argv.index("-logger") + 1] = "none"
    tree.start("atari", *argv).ended()
    assert_same_run(tree.folder("unwatched"), tree.folder("widowed"))


# -------------------------------------------------------------------------------------------- files


def test_a_crash_leaves_the_old_file_and_the_next_run_no_trace(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        train_counting("run", overrides=LONG, hook=crash_at(15))
    for name in ("", "resume", "replay", "checkpoints"):
        write_text(folder("run") / name / ".half.pt.123.tmp", "half")
    train_counting("run", "-resume", overrides=LONG)
    assert not list(folder("run").rglob(".*"))


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    train_counting("run", overrides=LONG)
    run = folder("run")
    plot([run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
    with pytest.raises(UserError, match=r"-o .*curve.xyz: Format 'xyz' is not supported"):
        plot([run], tmp_path / "curve.xyz")
    (run / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is missing or damaged"):
        plot([run], tmp_path / "curve.png")
