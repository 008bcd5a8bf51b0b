"""A signal stops a run after a checkpoint; a second one ends it at once."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from pwm_core.runs.checkpoint import ResumePoints
from tests.helpers_runs import (
    PONG,
    Job,
    RunTree,
    assert_same_run,
    atari,
    wait_for,
    wait_for_step,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")


def points(tree: RunTree, name: str) -> list[int]:
    return ResumePoints(tree.folder(name)).steps()


def stopped_by(number: int, job: Job) -> int:
    """The step at which the signal ended the run."""
    job.kill(number)
    job.ended(75)
    before, _, after = job.stderr.partition(" at step ")
    step, _, rest = after.partition(": ")
    assert before == signal.Signals(number).name
    assert rest == "a checkpoint was written; -resume continues from there\n"
    return int(step)


@pytest.mark.slow
def test_signals(tree: RunTree, pong: Path) -> None:
    """SIGTERM ends the run with a checkpoint, SIGUSR1 writes one and the run goes on, SIGINT ends
    it again, and the run is the one that no signal met."""
    argv, run = atari("disturbed", PONG), tree.folder("disturbed")
    job = tree.start("atari", *argv)
    wait_for_step(job, run, 110)
    first = stopped_by(signal.SIGTERM, job)
    assert points(tree, "disturbed") == [first]

    job = tree.start("atari", *argv, "-resume")
    wait_for_step(job, run, first + 5)
    job.kill(signal.SIGUSR1)
    wait_for(lambda: len(points(tree, "disturbed")) == 2)
    second = points(tree, "disturbed")[-1]
    assert first < second < 170
    wait_for_step(job, run, second + 5)
    third = stopped_by(signal.SIGINT, job)
    assert points(tree, "disturbed") == [second, third], "SIGUSR1 writes one, not two"

    job = tree.start("atari", *argv, "-resume").ended()
    assert f"continuing from step {third}" in job.stdout
    assert_same_run(pong, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: int, tree: RunTree) -> None:
    """In the midst of a step that would take hours."""
    name = f"hasty{number}"
    argv = atari(name, PONG, "JointTrainAgent={AgentUpdate: 10000000, SaveEverySteps: 40}")
    job = tree.start("atari", *argv)
    wait_for(lambda: "training:" in job.everything)
    job.kill(signal.SIGTERM)
    time.sleep(0.5)
    assert job.running, "the first lets the step be finished"
    job.kill(number)
    assert job.wait() == -number
    assert points(tree, name) == [40, 80]
