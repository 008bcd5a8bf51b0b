"""How many runs pay side by side: the choice, the sum of their speeds, and a real measurement."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from pwm_core.errors import UserError
from sweep.local import make_slots
from sweep.schema import Resources
from sweep.side_by_side import choose, multi_process_service, together
from tests.helpers_sweeps import DMC, SweepTree


@pytest.mark.parametrize(
    ("totals", "most", "best", "tried"),
    [
        ((10, 19, 30, 31), 6, 4, 4),  # the fourth adds less than a tenth
        ((10, 10.5, 99, 99), 6, 1, 2),  # nothing after it is tried
        ((10, 19, 30, 40), 6, 6, 4),
        ((10, 19, 30, 40), 3, 2, 2),
        ((10, 19, 30, 40), 1, 1, 1),
    ],
)
def test_more_runs_are_tried_until_they_do_not_pay(
    totals: tuple[float, ...], most: int, best: int, tried: int
) -> None:
    given, lines = dict(zip((1, 2, 4, 6), totals, strict=True)), list[str]()
    assert choose(given.__getitem__, most, lines.append) == best
    assert len(lines) == tried


def test_only_the_time_when_all_were_at_work_counts() -> None:
    """The first run makes 10 steps a second, and 30 while the second has not begun."""
    first = [(0, 0.0), (30, 1.0), (40, 2.0), (50, 3.0)]
    second = [(7, 1.0), (27, 3.0), (227, 4.0)]
    assert together([first, second]) == pytest.approx(10 + 10)
    assert together([second]) == pytest.approx(220 / 3)
    with pytest.raises(UserError, match="not at work at the same time"):
        together([first, [(0, 5.0), (1, 6.0)]])


def test_jobs_are_slots_with_one_thread_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    slots = make_slots(Resources(), 2)
    assert [slot.environ["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "5", "3", "5"]
    assert {slot.threads for slot in slots} == {1}
    assert len(make_slots(Resources(device="cpu"), 3)) == 3


def test_the_multi_process_service_is_started_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's program is replaced by one that writes down how it is called."""
    program, calls = tmp_path / "nvidia-cuda-mps-control", tmp_path / "calls"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -d ] && echo "start $CUDA_MPS_PIPE_DIRECTORY" >>{calls} '
        f"|| cat >>{calls}\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("PATH", "/none")
    with multi_process_service(tmp_path / "mps") as environ:
        assert environ == {}
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with multi_process_service(tmp_path / "mps") as environ:
        assert environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
    assert calls.read_text().split("\n") == [f"start {tmp_path / 'mps'}", "quit", ""]
    lines: list[str] = []
    program.write_text("#!/bin/sh\nexit 1\n")
    with multi_process_service(tmp_path / "mps", lines.append) as environ:
        assert environ == {}
    assert "does not start" in lines[0]


@pytest.mark.slow  # eight starts of train.py
def test_a_sweep_measures_before_it_starts_and_only_once(tmp_path: Path) -> None:
    """Real trainings on the CPU, one and two side by side; then the sweep's own run is trained."""
    sweeps = SweepTree(tmp_path / "tree", PATH=os.environ["PATH"])
    file = sweeps.write("jobs", DMC, 240, tasks=["cartpole_balance"])
    text = sweeps.sweep(file, "--local", "-jobs", "2")
    totals = [float(x) for x in re.findall(r"side by side: (\d+\.\d) steps/s together", text)]
    assert len(totals) == 2
    assert min(totals) > 0
    assert re.search(r"^[12] at a time with 1 threads each$", text, re.M)
    sweeps.assert_done("cartpole_balance-seed1", 240, frame_skip=8)
    assert not list((sweeps.root / "ckpt").glob("measure*"))

    file = sweeps.write("jobs", DMC, 240, tasks=["cartpole_balance"], seeds=[1, 2])
    text = sweeps.sweep(file, "--local", "-jobs", "2")
    assert "as was measured here before" in text
    assert "together" not in text


def test_jobs_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    sweeps = SweepTree(tmp_path / "tree", PATH="/none")
    file = sweeps.write("jobs", DMC, 240)
    sweeps.refused(file, "-jobs", "0", says="0 is not a whole number from 1 on")
