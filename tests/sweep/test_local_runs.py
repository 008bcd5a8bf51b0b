"""Sweeps on one machine: real processes, interrupted in every way, end as if nothing had been."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers_runs import RunTree, assert_same_run, wait_for
from tests.helpers_sweeps import ATARI, DMC, SweepTree, uninterrupted

GAME_STEPS = 420


@pytest.fixture
def sweeps(tmp_path: Path) -> SweepTree:
    """Return a source tree whose commands find no Slurm."""
    return SweepTree(tmp_path / "tree", PATH="/none")


@pytest.mark.slow
def test_a_run_is_trained_evaluated_collected_and_then_left_alone(
    sweeps: SweepTree, tree: RunTree
) -> None:
    """One run's training is killed once. A run that cannot work is tried twice and given up."""
    steps = 500
    file = sweeps.write(
        "one", DMC, steps, tasks=["cartpole_balance", "cup_catch"], resources={"side_by_side": 2},
        per_task={"cup_catch": {"overrides": {"Models.WorldModel.Scan": "triton"}}},
    )  # fmt: skip
    process = sweeps.start(file)
    wait_for(lambda: sweeps.has_point("cartpole_balance-seed1"))
    os.kill(sweeps.trainer("cartpole_balance-seed1"), signal.SIGKILL)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 2, text
    assert "cartpole_balance-seed1: train failed: killed by SIGKILL" in text
    assert "cartpole_balance-seed1: goes on from step" in text
    assert "cup_catch-seed1: given up after 2 failures" in text
    assert text.rstrip().endswith(f"error: failed: cup_catch-seed1; see {sweeps.root}/ckpt/logs")
    sweeps.assert_done("cartpole_balance-seed1", steps, frame_skip=8)
    whole = uninterrupted(tree, DMC, "cartpole_balance", 1, steps)
    assert_same_run(sweeps.run("cartpole_balance-seed1"), whole)

    text = sweeps.sweep(file, "--only", "cartpole*")
    assert text == "1 runs: 1 done; starting 0\n"
    text = sweeps.sweep(file, "--status")
    assert "1 failed, 1 done" in text
    row = next(line for line in text.splitlines() if "cup_catch-seed1" in line)
    assert "train: error: Models.WorldModel.Scan" in row
    assert "(log: " in text


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on_exactly(sweeps: SweepTree, tree: RunTree) -> None:
    """Two sweeps that overlap, of which one runner is asked to stop, one killed, and a
    training that somebody else asks to stop."""
    games = sweeps.write(
        "games", ATARI, GAME_STEPS, tasks=["Pong", "Boxing"], seeds=[1, 2],
        resources={"side_by_side": 1},
    )  # fmt: skip
    first, second = sweeps.start(games), None
    try:
        wait_for(lambda: sweeps.has_point("Pong-seed1"))
        assert "already, by process" in sweeps.sweep(games, status=2)
        text = sweeps.sweep(games, "--status")
        assert "1 running, 3 queued" in text
        assert sweeps.sweep(games, "--cancel").startswith("process ")
        assert first.wait(timeout=60) == 75
        assert "the same command goes on" in first.communicate()[0]
        assert sweeps.record("Pong-seed1")["state"] == "stopped"

        first = sweeps.start(games)
        same = sweeps.write("same", ATARI, GAME_STEPS, tasks=["Boxing", "Pong"], seeds=[1])
        second = sweeps.start(same)
        wait_for(lambda: sweeps.has_point("Boxing-seed1"))
        first.kill()  # its training gets SIGTERM from the kernel
        first.communicate()
        os.kill(sweeps.trainer("Boxing-seed1"), signal.SIGTERM)
        text = second.communicate(timeout=600)[0]
        assert second.returncode == 0, text
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()
    sweeps.sweep(games)
    for task in ("Pong", "Boxing"):
        for seed in (1, 2):
            sweeps.assert_done(f"{task}-seed{seed}", GAME_STEPS, frame_skip=4)
        whole = uninterrupted(tree, ATARI, task, 1, GAME_STEPS)
        assert_same_run(sweeps.run(f"{task}-seed1"), whole)


@pytest.mark.slow
def test_many_tasks_are_planned_watched_stopped_and_gone_on(sweeps: SweepTree) -> None:
    file = sweeps.write(
        "tasks", DMC, 300, tasks="all", seeds=[1, 2, 3], resources={"side_by_side": 2}
    )
    plan = sweeps.sweep(file, "--dry-run")
    assert "48 runs: 48 not started; 48 would be started on this machine" in plan
    assert "disk: " in plan
    process = sweeps.start(file)
    wait_for(lambda: sweeps.has_point("cartpole_balance_sparse-seed1"))
    text = sweeps.sweep(file, "--status")
    assert re.search(r"2 running, 46 queued", text)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 75
    process.communicate()
    assert "2 stopped" in sweeps.sweep(file, "--status")
    two = ["--only", "cartpole_balance-seed1", "cartpole_balance_sparse-seed1"]
    sweeps.sweep(file, *two)
    sweeps.assert_done("cartpole_balance-seed1", 300, frame_skip=8)
