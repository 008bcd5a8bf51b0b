"""How many runs pay side by side: the choice, the sum of their speeds, and a real measurement."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm_core.errors import UserError
from sweep import side_by_side
from sweep.local import find_gpus, make_slots
from sweep.schema import Resources
from sweep.side_by_side import choose, multi_process_service, service_folder, together
from tests.helpers_runs import wait_for
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


def test_more_runs_that_do_not_fit_end_the_search_and_not_the_sweep() -> None:
    def total(count: int) -> float:
        if count > most:
            raise UserError("a trial run ended early: out of memory")
        return 10.0 * count

    most, lines = 2, list[str]()
    assert choose(total, 6, lines.append) == 2
    assert lines[-1] == "4 side by side do not work: a trial run ended early: out of memory"
    most = 0
    with pytest.raises(UserError, match="out of memory"):
        choose(total, 6, lines.append)


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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(5))
    assert len(make_slots(Resources(), 3)) == 5  # no more than there are cores
    slots = make_slots(Resources(), 2)
    assert [slot.environ["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "5", "3", "5"]
    assert {slot.threads for slot in slots} == {1}
    assert len(make_slots(Resources(device="cpu"), 3)) == 3


@pytest.mark.parametrize(
    ("names", "gpus"), [("0, 2", ["0", "2"]), ("-1", []), ("1,-1,0", ["1"]), ("", [])]
)
def test_gpus_are_those_that_cuda_shows(
    names: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA stops at the first name that is none, and -1 hides all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert find_gpus() == gpus


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Replaces the driver's program by one that writes down how it is called.

    It fails to start where a file ``fails`` lies beside it, and takes orders where one ``answers``
    does. Once started it goes on in the background with the pipes that it got.
    """
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\n'
        'if [ "$1" = -d ]; then\n'
        '  echo "start $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >>calls\n'
        "  [ ! -e fails ] || exit 1\n"
        "  touch answers; sleep 60 & echo $! >background; exit\n"
        "fi\n"
        "cat >>calls; [ -e answers ]\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    yield tmp_path
    if (tmp_path / "background").exists():
        os.kill(int((tmp_path / "background").read_text()), signal.SIGKILL)


def test_the_multi_process_service_is_started_and_ended(service: Path) -> None:
    """It sees all devices, and nobody waits for the pipes that it keeps open."""
    folder = service / "mps"
    with multi_process_service(folder) as environ:
        assert environ["CUDA_MPS_PIPE_DIRECTORY"] == str(folder)
        assert "CUDA_VISIBLE_DEVICES" not in environ
    assert (service / "calls").read_text() == f"start {folder} all\nquit\n"


@pytest.mark.parametrize("answers", [True, False])
def test_a_service_that_runs_already_is_used(service: Path, answers: bool) -> None:
    """A killed sweep may have left it."""
    (service / "fails").touch()
    if answers:
        (service / "answers").touch()
    lines: list[str] = []
    with multi_process_service(service / "mps", lines.append) as environ:
        assert bool(environ) == answers
    calls = (service / "calls").read_text().splitlines()
    assert calls == [f"start {service / 'mps'} all", "get_server_list", "quit"]
    assert ["does not start" in line for line in lines] == ([] if answers else [True])


def test_without_the_service_nothing_is_shared(
    service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    with multi_process_service(service / "mps") as environ:
        assert environ == {}
    assert not (service / "calls").exists()


def test_the_folder_of_the_service_is_short_and_the_sweeps_own(tmp_path: Path) -> None:
    folders = {service_folder(tmp_path / name / ("long" * 50)) for name in ("a", "b", "a")}
    assert len(folders) == 2
    assert all(len(str(folder / "log" / "control")) < 108 for folder in folders)


def test_trial_runs_end_by_themselves_where_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one does not listen."""
    monkeypatch.setattr(side_by_side, "END_PATIENCE", 2.0)
    wait = "touch $0; while :; do sleep 0.05; done"
    commands = [f"trap 'exit 75' TERM; {wait}", f"trap '' TERM; {wait}"]
    files = [tmp_path / str(index) for index in range(2)]
    processes = [
        subprocess.Popen(["sh", "-c", command, str(file)])
        for command, file in zip(commands, files, strict=True)
    ]
    wait_for(lambda: all(file.exists() for file in files))
    side_by_side._end(processes)
    assert [process.returncode for process in processes] == [75, -signal.SIGKILL]


@pytest.mark.slow
def test_a_sweep_that_is_cancelled_while_it_measures_cleans_up(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    sweeps = SweepTree(tmp_path / "tree", PATH=os.environ["PATH"], TMPDIR=str(temporary))
    file = sweeps.write("jobs", DMC, 240, tasks=["cartpole_balance"])
    process = sweeps.start(file, "--local", "-jobs", "2")
    wait_for(lambda: list(temporary.glob("pamorl-*/0.log")))
    sweeps.sweep(file, "--local", "--cancel")
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 75, text
    assert "stopped before the runs began; the same command goes on" in text
    assert not list(temporary.glob("pamorl-*"))


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
