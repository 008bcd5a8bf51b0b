"""Sweeps on a real Slurm: interrupted in every way, they end as if nothing had been."""

from __future__ import annotations

import os
import re
import signal
import time
from functools import partial

import pytest

from tests.helpers_runs import RunTree, assert_same_run, last_step, wait_for
from tests.helpers_sweeps import ATARI, DMC, SweepTree, uninterrupted
from tests.slurm.cluster import Cluster

GAME_STEPS, TASK_STEPS, LONG_STEPS, PACK_STEPS, SPARE_STEPS = 420, 600, 3200, 3000, 1500
LONG = {"JointTrainAgent.SampleMaxSteps": LONG_STEPS, "JointTrainAgent.TrainModelEverySteps": 1}
"""Overrides of a run that takes longer than the time limit of a minute."""


PATIENCE = 600
"""Seconds after which a wait is given up. They are a guard against waiting for ever, and many, so
that a slow or busy machine passes too."""


def wait_until_over(cluster: Cluster) -> None:
    """Wait until Slurm has no jobs left."""
    deadline = time.monotonic() + PATIENCE
    while left := cluster.ask("squeue", "--noheader"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.slow
def test_jobs_that_are_interrupted_go_on_exactly(
    cluster: Cluster, sweeps: SweepTree, tree: RunTree
) -> None:
    """Two games x two seeds and two tasks: one queued again by hand, one into its time limit, one
    killed, and the node taken down under all of them."""
    games = sweeps.write("games", ATARI, GAME_STEPS, tasks=["Pong", "Boxing"], seeds=[1, 2])
    limit = {"time": 1, "warning": 20}
    tasks = sweeps.write(
        "tasks", DMC, TASK_STEPS, tasks=["cartpole_balance", "reacher_easy"], resources=limit,
        per_task={"reacher_easy": {"overrides": LONG}},
    )  # fmt: skip
    assert "submitted 2 jobs" in sweeps.sweep(tasks)
    again = sweeps.sweep(tasks)
    assert "submitted 0 jobs" in again, again
    assert re.search(r"2 (queued|running)|1 running, 1 queued", again), again
    assert "submitted 4 jobs" in sweeps.sweep(games)

    left = {"Pong-seed1", "Boxing-seed1"}
    while left:  # each is interrupted at its first checkpoint, since it might be done later
        ready = wait_for(lambda: [run for run in left if sweeps.has_point(run)], PATIENCE)[0]
        left.remove(ready)
        if ready == "Boxing-seed1":
            os.kill(sweeps.trainer(ready), signal.SIGKILL)
        else:
            cluster.ask("scontrol", "requeue", sweeps.ticket(ready)["job"])
    wait_for(lambda: sweeps.log("Boxing-seed1").count("continuing from step") >= 1, PATIENCE)

    wait_for(lambda: "continuing from step" in sweeps.log("reacher_easy-seed1"), PATIENCE)
    # It has met its time limit. On a busy machine a minute is little more than a start, and both
    # jobs of the array would meet the limit for ever.
    array = sweeps.ticket("reacher_easy-seed1")["job"].split("_")[0]
    cluster.ask("scontrol", "update", f"jobid={array}", "timelimit=60")
    wait_for(lambda: last_step(sweeps.run("reacher_easy-seed1")) > 0, PATIENCE)
    node = ("scontrol", "update", f"nodename={cluster.host}")
    steps = cluster.steps()
    cluster.ask(*node, "state=down", "reason=test")
    # Slurm holds a job for ever that it launches while the node still has its old steps.
    wait_for(lambda: not steps & cluster.steps(), PATIENCE)
    cluster.ask(*node, "state=resume", check=False)

    wait_until_over(cluster)
    assert "4 done" in sweeps.sweep(games, "--status")
    assert "2 done" in sweeps.sweep(tasks, "--status")
    for task in ("Pong", "Boxing"):
        for seed in (1, 2):
            sweeps.assert_done(f"{task}-seed{seed}", GAME_STEPS, frame_skip=4)
        whole = uninterrupted(tree, ATARI, task, 1, GAME_STEPS)
        assert_same_run(sweeps.run(f"{task}-seed1"), whole)
    sweeps.assert_done("cartpole_balance-seed1", TASK_STEPS, frame_skip=8)
    sweeps.assert_done("reacher_easy-seed1", LONG_STEPS, frame_skip=8)
    base = {**DMC, "overrides": {**DMC["overrides"], **LONG}}
    whole = uninterrupted(tree, base, "reacher_easy", 1, LONG_STEPS)
    assert_same_run(sweeps.run("reacher_easy-seed1"), whole)
    logs = sweeps.root.glob("ckpt/.sweeps/tasks/*/*_log.out")
    assert any("the job is queued again" in path.read_text() for path in logs)


@pytest.mark.slow
def test_jobs_are_packed_cancelled_killed_and_given_up(
    cluster: Cluster, sweeps: SweepTree, tree: RunTree
) -> None:
    """Two runs in one job, one of which cannot work; the job is cancelled and its successor killed,
    and the same command goes on each time."""
    tasks = ["cartpole_balance", "cup_catch"]
    broken = {"cup_catch": {"overrides": {"Models.WorldModel.Scan": "triton"}}}
    file = sweeps.write(
        "pack", DMC, PACK_STEPS, tasks=tasks, per_task=broken, resources={"runs_per_job": 2}
    )
    assert "submitted 1 jobs" in sweeps.sweep(file)
    text = sweeps.sweep(file, "--cancel", "--only", "cartpole*", status=2)
    assert "error: the same jobs hold cup_catch-seed1: name these too" in text
    wait_for(lambda: sweeps.has_point("cartpole_balance-seed1"), PATIENCE)
    wait_for(lambda: sweeps.record("cup_catch-seed1").get("state") == "failed", PATIENCE)
    step = cluster.ask("scontrol", "show", "step", sweeps.ticket("cup_catch-seed1")["job"] + ".0")
    assert "CPUs=2 " in step
    text = sweeps.sweep(file, "--status")
    assert "1 running, 1 failed" in text
    assert "train: error: Models.WorldModel.Scan" in text
    assert "cancelled 1 Slurm jobs" in sweeps.sweep(file, "--cancel")
    wait_until_over(cluster)
    assert sweeps.record("cartpole_balance-seed1")["state"] == "stopped"
    assert "1 failed, 1 stopped" in sweeps.sweep(file, "--status")

    assert "1 stopped; submitted 1 jobs" in sweeps.sweep(file, "--only", "cartpole*")
    wait_for(lambda: "continuing from step" in sweeps.log("cartpole_balance-seed1"), PATIENCE)
    cluster.ask(
        "scancel", "--signal=KILL", "--full", sweeps.ticket("cartpole_balance-seed1")["job"]
    )
    wait_until_over(cluster)
    assert "1 stopped; submitted 1 jobs" in sweeps.sweep(file, "--only", "cartpole*")
    wait_until_over(cluster)
    sweeps.assert_done("cartpole_balance-seed1", PACK_STEPS, frame_skip=8)
    whole = uninterrupted(tree, DMC, "cartpole_balance", 1, PACK_STEPS)
    assert_same_run(sweeps.run("cartpole_balance-seed1"), whole)


@pytest.mark.slow
def test_a_job_that_is_preempted_is_warned_and_goes_on_exactly(
    cluster: Cluster, sweeps: SweepTree, tree: RunTree
) -> None:
    file = sweeps.write(
        "spare", DMC, SPARE_STEPS, tasks="cartpole_balance", resources={"partition": "spare"}
    )
    sweeps.sweep(file)
    wait_for(lambda: sweeps.has_point("cartpole_balance-seed1"), PATIENCE)
    cluster.ask("sbatch", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 1")
    wait_until_over(cluster)
    sweeps.assert_done("cartpole_balance-seed1", SPARE_STEPS, frame_skip=8)
    (log,) = sweeps.root.glob("ckpt/.sweeps/spare/*/*_log.out")
    assert "the job is queued again" in log.read_text()
    whole = uninterrupted(tree, DMC, "cartpole_balance", 1, SPARE_STEPS)
    assert_same_run(sweeps.run("cartpole_balance-seed1"), whole)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"partition": "mian"}, "Slurm has no partition 'mian'; did you mean 'main'?"),
        slow({"gpus": 1}, "Invalid generic resource (gres) specification"),
        slow({"cpus": 64}, "Requested node configuration is not available"),
        ({"time": 61}, "resources.time is 61 minutes, but a job of the partition main may take 60"),
        slow({"sbatch": {"colour": "red"}}, "unrecognized option '--colour=red'"),
    ],
)
def test_what_slurm_refuses_is_one_line_and_nothing_is_begun(
    cluster: Cluster, sweeps: SweepTree, resources: dict[str, object], says: str
) -> None:
    file = sweeps.write("bad", DMC, 300, tasks="cartpole_balance", resources=resources)
    sweeps.refused(file, says=says)
    assert not cluster.ask("squeue", "--noheader")
    assert not list((sweeps.root / "ckpt").rglob("*.pkl"))


def test_a_slurm_that_does_not_answer_is_one_line(sweeps: SweepTree) -> None:
    del sweeps.environ["SLURM_CONF"]
    file = sweeps.write("one", DMC, 300, tasks="cartpole_balance")
    sweeps.refused(file, says="Slurm does not answer")
    for look in ("--dry-run", "--status"):
        text = sweeps.sweep(file, look)
        assert text.startswith("note: Slurm does not answer"), text
        assert "cartpole_balance" in text or "1 not started" in text, text
    sweeps.refused(file, "--slurm", "--dry-run", says="Slurm does not answer")
