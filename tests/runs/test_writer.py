"""Files written by a thread: the same files, no error lost, and nothing left unwritten."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pwm_core.runs import checkpoint, run_folder
from pwm_core.runs.tensor_files import read_tensors, write_tensors
from pwm_core.runs.writer import Writer
from tests.helpers_counting import Run, train

pytestmark = pytest.mark.usefixtures("logdir")

EVERY = "JointTrainAgent.SaveEverySteps=10"


def contents(run: Run) -> dict[str, Any]:
    """Everything that the run's checkpoints hold, by file, and its metrics."""
    files = sorted(run.folder.path.rglob("*.pt"))
    found = {str(file.relative_to(run.folder.path)): read_tensors(file) for file in files}
    return found | {"metrics": run.folder.metrics.read_text()}


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_a_slow_thread_writes_what_was_at_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while a checkpoint is written, and changes nothing in it."""
    monkeypatch.setenv("PAMORL_LOGDIR", str(tmp_path / "one"))
    expected = contents(train(EVERY))
    monkeypatch.setenv("PAMORL_LOGDIR", str(tmp_path / "other"))
    threads = set()

    def slowly(*args: Any, **options: Any) -> str:
        threads.add(threading.current_thread().name)
        time.sleep(0.1)
        return write_tensors(*args, **options)

    for module in (run_folder, checkpoint):
        monkeypatch.setattr(module, "write_tensors", slowly)
    found = contents(train(EVERY, background=True))
    assert threads == {"writer"}
    assert_same(found, expected)


def test_videos_reach_the_sinks_after_they_are_written() -> None:
    run = train("JointTrainAgent.VideoLogStep=30", background=True)
    assert len(list(run.folder.videos.iterdir())) == 10


def test_a_full_disk_costs_the_checkpoint_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [True]

    def once_full(*args: Any, **options: Any) -> str:
        if failures:
            failures.pop()
            raise OSError(errno.ENOSPC, "no space left on device")
        return write_tensors(*args, **options)

    monkeypatch.setattr(run_folder, "write_tensors", once_full)
    run = train("JointTrainAgent.SaveEverySteps=30", background=True)
    assert run.folder.steps() == [60]
    assert "checkpoint of step 30 could not be written" in capsys.readouterr().out


def test_an_error_in_the_thread_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> str:
        raise ValueError("a fault in the code")

    monkeypatch.setattr(run_folder, "write_tensors", broken)
    with pytest.raises(ValueError, match="a fault in the code"):
        train(EVERY, background=True)


@pytest.mark.parametrize("background", [True, False])
def test_jobs_run_in_order_and_close_waits(background: bool) -> None:
    writer, done = Writer(background=background), list[int]()

    def job(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    for number in range(3):
        writer.submit(lambda number=number: job(number))
    writer.close()
    assert done == [0, 1, 2]
    writer.submit(lambda: job(3))  # it may be used again
    writer.wait()
    writer.close()
    assert done == [0, 1, 2, 3]


def test_an_error_is_raised_once_and_what_follows_it_is_left_out() -> None:
    writer, done = Writer(background=True), list[str]()
    hold = threading.Event()
    writer.submit(hold.wait)
    writer.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    writer.submit(lambda: done.append("after"))
    hold.set()
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    assert done == []
    writer.submit(lambda: done.append("later"))
    writer.close()
    assert done == ["later"]
