"""Worker processes: calls, errors, deaths, and that no process is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pwm_core.errors import UserError
from pwm_dmc.workers import InProcess, Worker, stop
from tests.helpers_processes import (
    ROOT,
    SLEEP,
    Account,
    alive,
    all_leave,
    clean_environment,
    no_longer_than,
    run_script,
    start_script,
)

ACCOUNT = "tests.helpers_processes:Account"
Start = Callable[..., Worker]


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    with no_longer_than(30):
        yield


@pytest.fixture
def start() -> Iterator[Start]:
    """``Worker``, whose processes are stopped after the test."""
    workers: list[Worker] = []

    def _start(factory: str = ACCOUNT, **variables: str) -> Worker:
        workers.append(Worker(factory, clean_environment(**variables)))
        return workers[-1]

    yield _start
    stop(workers)


@pytest.fixture(params=["in process", "worker"])
def caller(request: pytest.FixtureRequest, start: Start) -> InProcess | Worker:
    return InProcess(Account()) if request.param == "in process" else start()


def call(worker: InProcess | Worker, method: str, *arguments: object) -> object:
    worker.send(method, *arguments)
    return worker.receive()


def test_calls_reach_one_object_in_order(caller: InProcess | Worker) -> None:
    assert [call(caller, "add", amount) for amount in (3, 4, -2)] == [3, 7, 5]


def test_receive_without_send_is_an_error_and_no_hang(caller: InProcess | Worker) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no send before"):
            caller.receive()
        assert call(caller, "add", 0) == 0


def test_a_second_send_is_refused_and_not_mixed_up(caller: InProcess | Worker) -> None:
    caller.send("add", 1)
    with pytest.raises(RuntimeError, match="has not been received"):
        caller.send("add", 10)
    assert caller.receive() == 1
    assert call(caller, "add", 1) == 2


def test_a_user_error_is_raised_as_one_and_the_worker_lives_on(caller: InProcess | Worker) -> None:
    with pytest.raises(UserError, match=r"^no credit$"):
        call(caller, "refuse", "no credit")
    assert call(caller, "add", 1) == 1


@pytest.mark.parametrize(("method", "name"), [("add", "TypeError"), ("rob", "AttributeError")])
def test_any_other_error_comes_with_its_traceback(start: Start, method: str, name: str) -> None:
    worker = start()
    with pytest.raises(RuntimeError, match=rf"runs environments:\nTraceback[\s\S]*{name}"):
        call(worker, method, "1", 2)
    assert call(worker, "add", 1) == 1


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        ("tests.helpers_processes:broken_account", "ValueError: out of money"),
        ("tests.helpers_processes:Nothing", "AttributeError"),
        ("tests.nowhere:Account", "ModuleNotFoundError"),
    ],
)
def test_an_object_that_cannot_be_made_is_the_first_calls_error(
    start: Start, capfd: pytest.CaptureFixture[str], factory: str, name: str
) -> None:
    worker = start(factory)
    with pytest.raises(RuntimeError, match=rf"Traceback[\s\S]*{name}"):
        call(worker, "add", 1)
    stop([worker])
    assert worker.process.returncode == 0
    assert capfd.readouterr() == ("", "")


def test_in_process_calls_when_the_result_is_wanted() -> None:
    account = Account()
    caller = InProcess(account)
    caller.send("add", 1)
    assert account.balance == 0
    assert caller.receive() == account.balance == 1


def test_workers_compute_at_the_same_time(start: Start) -> None:
    workers = [start() for _ in range(3)]
    for worker in workers:
        call(worker, "add", 1)
    started = time.monotonic()
    for worker in workers:
        worker.send("wait", 0.5)
    assert [worker.receive() for worker in workers] == [0.5] * 3
    assert time.monotonic() - started < 1.2


def test_a_worker_has_its_own_environment_and_little_else(start: Start) -> None:
    pid, modules, environ = call(start(COLOUR="green"), "process")
    assert pid != os.getpid()
    assert environ["COLOUR"] == "green"
    assert "COLOUR" not in os.environ
    imported = {module.partition(".")[0] for module in modules}
    assert imported.isdisjoint({"torch", "numpy", "pydantic", "pytest"})


def test_stop_lets_the_call_at_hand_finish_and_the_object_close(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = [start(), start()]
    call(workers[0], "add", 5)
    workers[1].send("wait", 0.5)
    stop(workers)
    stop(workers)
    assert [worker.process.poll() for worker in workers] == [0, 0]
    out, err = capfd.readouterr()
    assert (sorted(out.splitlines()), err) == (["closed 0", "closed 5"], "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_worker_leaves_a_batch_systems_signals_to_its_parent(start: Start, number: int) -> None:
    worker = start()
    call(worker, "add", 1)
    worker.process.send_signal(number)
    assert call(worker, "add", 1) == 2
    stop([worker])
    assert worker.process.returncode == 0


@pytest.mark.slow
def test_a_worker_that_does_not_leave_is_killed(start: Start) -> None:
    worker = start()
    worker.send("wait", 60)
    stop([worker])
    assert worker.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("during_a_call", [False, True])
def test_a_worker_that_is_killed_is_one_clear_line(start: Start, during_a_call: bool) -> None:
    worker = start()
    call(worker, "add", 1)
    if during_a_call:
        worker.send("wait", 60)
    worker.process.kill()
    worker.process.wait()
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            worker.receive() if during_a_call else worker.send("add", 1)
        line = "a process that runs environments has died: killed by SIGKILL"
        assert str(raised.value) == line


def test_a_worker_that_leaves_by_itself_tells_its_exit_status(start: Start) -> None:
    with pytest.raises(UserError, match=r"has died: exit status 3$"):
        call(start(), "leave", 3)


def test_a_worker_that_nobody_holds_leaves() -> None:
    worker = Worker(ACCOUNT, clean_environment())
    process = worker.process
    call(worker, "add", 1)
    del worker
    assert process.wait() == 0


START_TWO = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts with &
from pwm_dmc.workers import Worker
workers = [Worker({ACCOUNT!r}, os.environ) for _ in range(2)]
for worker in workers:
    worker.send("add", 1)
print(*[worker.process.pid for worker in workers if worker.receive()], flush=True)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_workers_leave_when_the_parent_is_killed_or_interrupted(signal_number: int) -> None:
    parent = start_script(START_TWO + SLEEP)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert parent.stdout.readline() == "asleep\n"
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    if signal_number == signal.SIGINT:
        os.killpg(parent.pid, signal.SIGINT)  # as Ctrl-C does, to whoever is in the group
    else:
        parent.kill()
    out, errors = parent.communicate(timeout=120)
    assert (out, errors) == ("closed 1\n" * 2, "")
    assert all_leave(pids)


def test_a_script_needs_neither_stop_nor_a_main_guard() -> None:
    run = run_script(START_TWO)
    pids, *closed = run.stdout.splitlines()
    assert (closed, run.stderr, run.returncode) == (["closed 1"] * 2, "", 0)
    assert all_leave([int(pid) for pid in pids.split()])


def test_a_worker_finds_what_its_parent_finds(tmp_path: Path) -> None:
    """A worker imports from the script's own path and not from the current folder."""
    script, elsewhere = tmp_path / "script", tmp_path / "elsewhere"
    for folder in (script, elsewhere):
        folder.mkdir()
    (script / "accounts.py").write_text("class Rich:\n    add = int\n    close = int\n")
    for module in ("pickle", "accounts"):
        (elsewhere / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    source = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + START_TWO
    (script / "train.py").write_text(source.replace(ACCOUNT, "accounts:Rich"))
    command, environment = [sys.executable, str(script / "train.py")], dict(os.environ)
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert (run.stderr, run.returncode) == ("", 0)
    assert len(run.stdout.split()) == 2
