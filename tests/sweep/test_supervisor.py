"""The supervisor, with commands that take milliseconds: what is tried again, what is given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pwm_core.errors import UserError
from pwm_core.signals import StoppedError
from sweep import local, times
from sweep import supervisor as module
from sweep.children import Slot, Work, environment, last_error
from sweep.local import run_here
from sweep.places import Places, read_json, write_json
from sweep.plan import Plan
from sweep.records import Record, Records, lock_is_held, take_lock
from sweep.run import Run
from sweep.schema import Sweep
from sweep.slurm_job import make_slots
from sweep.states import Observer
from sweep.supervisor import Outcome, Supervisor
from tests.helpers_runs import wait_for

STEPS = 9
TRAIN = """
import json, os, pathlib, signal, sys, time
name = sys.argv[sys.argv.index("-n") + 1]
folder = pathlib.Path({root!r}) / "ckpt" / name
for part in ("checkpoints", "resume", "videos"):
    (folder / part).mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps({{"domain": "toy", "task": "toy"}}))
with open(folder / "calls", "a") as file:
    print(time.time(), file=file)
call = len((folder / "calls").read_text().splitlines())
def save(step):
    (folder / f"checkpoints/{{step:09}}.pt").touch()
    (folder / f"resume/{{step:09}}.json").touch()
def finish():
    save({steps})
    for path in (folder / "resume").iterdir():
        path.unlink()
    (folder / "metrics.jsonl").write_text('{{"step": {steps}, "Rollout/toy_reward": 5.0}}\\n')
{body}
finish()
"""
EVAL = """
import json, pathlib, sys
name = sys.argv[sys.argv.index("-n") + 1]
results = pathlib.Path({root!r}) / "eval_result"
(results / f"{{name}}.csv").write_text("step,frames,mean,std\\n{steps},1,2,3\\n")
(results / f"{{name}}.json").write_text(json.dumps({{"task": "toy"}}))
"""


class Toy:
    """A project whose ``train.py`` is as long as ``body`` says."""

    def __init__(self, root: Path, body: str = "") -> None:
        self.root = root
        (root / "pwm_toy").mkdir(parents=True)
        (root / "eval_result").mkdir()
        train = TRAIN.format(root=str(root), steps=STEPS, body=body)
        (root / "pwm_toy" / "train.py").write_text(train)
        (root / "pwm_toy" / "eval.py").write_text(EVAL.format(root=str(root), steps=STEPS))
        self.places = Places(root / "ckpt", root / "eval_result")
        self.records = Records(self.places)

    def work(self, token: str = "one") -> Work:
        return Work(sweep="toys", token=token, places=self.places, root=self.root)

    def supervisor(self, *names: str, slots: int = 2, token: str = "one") -> Supervisor:
        runs = [Run(name, "toy", "toy", "toy", "", 1, "toy.yaml", (), STEPS, 1) for name in names]
        shares = [Slot()] * slots
        return Supervisor(runs, self.work(token), shares, where="here", busy_wait=0.3)

    def run(self, *names: str, slots: int = 2, token: str = "one") -> Outcome:
        return self.supervisor(*names, slots=slots, token=token).run()

    def calls(self, name: str) -> list[float]:
        text = (self.places.run(name) / "calls").read_text()
        return [float(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between retries, so that the tests are fast."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "RETRY_PAUSE", 0.05)
    monkeypatch.setattr(module, "STRAY_PAUSE", 0.2)


def test_runs_are_trained_evaluated_and_collected_side_by_side(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", "time.sleep(0.5)")
    began = time.monotonic()
    outcome = toy.run("a", "b", "c", "d", slots=4)
    assert sorted(outcome.done) == ["a", "b", "c", "d"]
    assert time.monotonic() - began < 1.9  # one after the other they sleep for 2 s
    for name in "abcd":
        assert toy.places.done(name, STEPS)
        assert read_json(toy.places.results / f"{name}.training.json")["seconds"] >= 1
        assert len(toy.calls(name)) == 1
    assert toy.run("a").done == ["a"]
    assert len(toy.calls("a")) == 1


def test_what_fails_twice_in_the_same_way_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    body = 'if name == "bad":\n    print(f"step {call}0"); sys.exit(f"error: no memory at {call}")'
    toy = Toy(tmp_path / "toy", body)
    outcome = toy.run("bad", "good", slots=1)
    assert (outcome.failed, outcome.done) == (["bad"], ["good"])
    assert len(toy.calls("bad")) == 2
    record = toy.records.read("bad")
    assert (record.state, record.stage, record.error) == (
        "failed",
        "train",
        "error: no memory at 2",
    )
    assert toy.run("bad").failed == ["bad"]  # a job that was queued again with the same token
    assert len(toy.calls("bad")) == 2
    assert toy.run("bad", token="two").failed == ["bad"]  # the user gave the sweep again
    assert len(toy.calls("bad")) == 4


def test_a_failure_with_a_new_checkpoint_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", "save(call)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert toy.run("a").failed == ["a"]
    assert len(toy.calls("a")) == toy.work().most_failures
    assert toy.records.read("a").error == "killed by SIGKILL"


def test_a_failure_that_passes_is_forgotten(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", 'if call == 1:\n    raise OSError("disk")')
    assert toy.run("a").done == ["a"]
    assert toy.records.read("a").state == "done"


def test_a_train_that_ends_well_and_leaves_nothing_is_a_failure(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", "sys.exit(0)")
    assert toy.run("a").failed == ["a"]
    assert "is not there" in toy.records.read("a").error


def test_a_local_sweep_does_not_wait_for_the_process_before_it(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", "sys.exit(3)")
    sweep = Sweep(name="toys", domain="toy", seeds=(1,), resources={"side_by_side": 1})
    runs = [waiting.run for waiting in toy.supervisor("a", "b")._waiting]
    plan = Plan(sweep, tuple(runs), {})
    before = {"host": "vm", "process": 1, "token": "zero", "runs": ["a", "b"]}
    write_json(toy.places.sweep("toys") / "local.json", before)
    for token in ("one", "two"):
        with pytest.raises(UserError, match="failed: a, b"):
            run_here(plan, lambda: Observer(toy.places, {}, "toys").states(runs), toy.work(token))
    assert len(toy.calls("a")) == len(toy.calls("b")) == 4


WAITS = """
signal.signal(signal.SIGTERM, lambda *_: (save(1), sys.exit(75)))
save(0)
(folder / "ready").touch()
time.sleep(60)
"""


def test_a_stop_lets_runs_save_and_starts_no_more(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", "if call > 1:\n    finish(); sys.exit()\n" + WAITS)
    supervisor = toy.supervisor("a", "b", slots=1)
    stopper = threading.Thread(
        target=lambda: (
            wait_for((toy.places.run("a") / "ready").exists), supervisor.stop(tell=True)
        )
    )  # fmt: skip
    stopper.start()
    outcome = supervisor.run()
    stopper.join()
    assert outcome.left == ["a", "b"]
    assert toy.records.read("a").state == "stopped"
    assert toy.places.points("a")[-1] == 1
    assert not toy.places.run("b").exists()
    assert toy.run("a").done == ["a"]


def test_a_run_that_never_gets_on_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens where the time limit is shorter than the start of the run."""
    monkeypatch.setattr(module, "MOST_STALLS", 2)
    toy = Toy(tmp_path / "toy", WAITS.replace("save(1), ", ""))
    outcomes = []
    for _ in range(3):
        supervisor = toy.supervisor("a")
        (toy.places.run("a") / "ready").unlink(missing_ok=True)
        stopper = threading.Thread(
            target=lambda which: (
                wait_for((toy.places.run("a") / "ready").exists), which.stop(tell=True)
            ), args=(supervisor,),
        )  # fmt: skip
        stopper.start()
        outcomes.append(supervisor.run())
        stopper.join()
    assert [outcome.left for outcome in outcomes] == [["a"], ["a"], []]
    assert outcomes[-1].failed == ["a"]
    assert "without a checkpoint after step 0" in toy.records.read("a").error


def test_a_run_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", 'sys.exit("error: run b is being trained by process 1 on vm")')
    claim = toy.records.claim("a")
    assert claim is not None
    with claim:
        assert toy.records.claimed("a")
        outcome = toy.run("a", "b")
    assert sorted(outcome.elsewhere) == ["a", "b"]
    assert outcome.failed == []
    assert not toy.places.run("a").exists()
    assert not toy.records.claimed("a")


def test_a_local_sweep_that_leaves_a_run_to_another_process_is_not_all_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "Supervisor", partial(Supervisor, busy_wait=0.1))
    toy = Toy(tmp_path / "toy", 'sys.exit("error: run a is being trained by process 1 on vm")')
    sweep = Sweep(name="toys", domain="toy", seeds=(1,), resources={"side_by_side": 1})
    runs = [waiting.run for waiting in toy.supervisor("a")._waiting]
    plan, work = Plan(sweep, tuple(runs), {}), toy.work()
    with pytest.raises(StoppedError, match="other processes: a"):
        run_here(plan, lambda: Observer(toy.places, {}, "toys").states(runs), work)


def test_the_time_of_a_training_whose_supervisor_died_is_kept(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy")
    folder = toy.places.run("a")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    began = (folder / "metrics.jsonl").stat().st_mtime - 5000
    toy.records.write("a", Record(state="running", stage="train", token="zero", began=began))
    assert toy.run("a").done == ["a"]
    lines = (folder / "times").read_text().splitlines()
    assert lines[0] == "0 0 5000"
    assert len(lines) == 2
    assert read_json(toy.places.results / "a.training.json")["seconds"] > 5000


def test_the_time_of_a_train_py_outside_any_sweep_is_not_known(tmp_path: Path) -> None:
    """The sweep's command is refused while it trains, and finds steps that no sweep made."""
    refused = 'if call < 3: sys.exit("error: run a is being trained by process 1 on vm")'
    toy = Toy(tmp_path / "toy", refused)
    supervisor = toy.supervisor("a")
    supervisor.busy_wait = 60.0
    assert supervisor.run().done == ["a"]
    assert len(toy.calls("a")) == 3
    assert len((toy.places.run("a") / "times").read_text().splitlines()) == 1

    by_hand = Toy(tmp_path / "other")
    (by_hand.places.run("a") / "resume").mkdir(parents=True)
    (by_hand.places.run("a") / "resume" / f"{STEPS - 1:09}.json").touch()
    assert by_hand.run("a").done == ["a"]
    assert times.trained(by_hand.places, "a") is None
    assert "seconds" not in read_json(by_hand.places.results / "a.training.json")


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ("0 4000 100\n4000 9000 50\n", times.Trained(150, 9000)),
        ("0 4000 100\n2000 9000 50\n", times.Trained(150, 9000)),  # killed after step 2000
        ("0 4000 100\n5000 9000 50\n", None),
        ("5000 9000 50\n", None),
        ("120\n", None),
        ("", None),
    ],
)
def test_times_add_up_where_they_leave_no_gap(
    tmp_path: Path, lines: str, known: times.Trained | None
) -> None:
    places = Places(tmp_path / "ckpt", tmp_path / "eval_result")
    places.run("a").mkdir(parents=True)
    (places.run("a") / "times").write_text(lines)
    assert times.trained(places, "a") == known


def test_a_claim_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    script = (
        "import time, pathlib; from sweep.records import take_lock\n"
        f"lock = take_lock(pathlib.Path({str(path)!r})); \n"
        "print('has it', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    assert lock_is_held(path)
    assert take_lock(path) is None
    process.kill()
    process.communicate()
    assert not lock_is_held(path)


def test_a_child_ignores_slurms_warning_and_hears_of_its_parents_death(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", WAITS)
    script = (
        "import sys; sys.path.insert(0, '.'); from pathlib import Path\n"
        "from tests.sweep.test_supervisor import *\n"
        f"toy = Toy.__new__(Toy); toy.root = Path({str(toy.root)!r})\n"
        "toy.places = Places(toy.root / 'ckpt', toy.root / 'eval_result')\n"
        "toy.run('a')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    wait_for((toy.places.run("a") / "ready").exists)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    child = int(children.split()[0])
    os.kill(child, signal.SIGUSR2)
    time.sleep(0.2)
    assert toy.places.points("a") == [0]
    process.kill()
    process.wait()
    wait_for(lambda: toy.places.points("a")[-1] == 1)


@pytest.mark.parametrize(
    ("status", "text", "line"),
    [
        (2, "a\nerror: bad key\nmore\n", "error: bad key"),
        (1, "Traceback\nValueError: x\n 5%|# | 3/9 [00:01<00:09, 25.02step/s]\n", "ValueError: x"),
        (1, "", "exit status 1"),
        (-9, "error: no\n", "killed by SIGKILL"),
    ],
)
def test_the_line_that_says_why(tmp_path: Path, status: int, text: str, line: str) -> None:
    log = tmp_path / "log"
    log.write_text("error: of another day\n" + text)
    assert last_error(log, len("error: of another day\n"), status) == line


def test_slots_share_gpus_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    slots = make_slots(3, cpus=5)
    assert [slot.environ["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "6", "4"]
    toy = Toy(tmp_path / "toy")
    run = toy.supervisor("a")._waiting[0].run
    given = environment(run, toy.work(), slots[1])
    assert (given["OMP_NUM_THREADS"], given["CUDA_VISIBLE_DEVICES"]) == ("5", "6")
    assert (given["WANDB_RUN_GROUP"], given["WANDB_TAGS"]) == ("toys-toy", "toys")
