"""A real ``train.py`` that is killed and resumed is the run that was not."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers_runs import (
    PONG,
    RunTree,
    assert_same_run,
    atari,
    dmc,
    last_step,
    wait_for,
    wait_for_step,
)


def killed_five_times(tree: RunTree, domain: str, argv: list[str], first: int, last: int) -> None:
    """SIGKILL at five random steps, and once at a random moment of the start."""
    name, rng = argv[1], random.Random(argv[1])
    run = tree.folder(name)
    job = tree.start(domain, *argv)
    time.sleep(rng.uniform(0, 1.5))
    job.kill()
    assert job.wait() == -signal.SIGKILL
    for step in sorted(rng.sample(range(first, last), 5)):
        job = tree.start(domain, *argv, "-resume")
        wait_for_step(job, run, step)
        time.sleep(rng.uniform(0, 0.1))
        job.kill()
        assert job.wait() == -signal.SIGKILL, "it ended before it was killed"
    job = tree.start(domain, *argv, "-resume").ended()
    assert re.search("^continuing from step [1-9]", job.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "override", "only_killed", "first", "last"),
    [
        (dmc, "BasicSettings.Seed=4", (), 420, 820),
        (dmc, "BasicSettings.Seed=4", ("JointTrainAgent.BufferStorage=disk",), 420, 820),
        (atari, "BasicSettings.Seed=4", (), 120, 280),
        (atari, "JointTrainAgent.NumEnvs=3", (), 120, 280),
    ],
    ids=["dmc", "dmc on disk", "atari", "atari, three games"],
)
def test_sigkill(
    make: Callable[..., list[str]], override: str, only_killed: tuple[str, ...], first: int,
    last: int, tree: RunTree,
) -> None:  # fmt: skip
    """Four cartpoles in worker processes with a ring that wraps; Pong likewise. With its replay on
    disk a run is the one with the replay in memory."""
    domain, kind = make.__name__, re.sub(r"\W", "", override)
    whole = tree.folder(f"{domain}whole{kind}")
    if not whole.exists():
        tree.start(domain, *make(whole.name, override)).ended()
    name = re.sub(r"\W", "", "".join([domain, "killed", override, *only_killed]))
    killed_five_times(tree, domain, make(name, override, *only_killed), first, last)
    assert_same_run(whole, tree.folder(name))


def test_one_sigkill(tree: RunTree, pong: Path) -> None:
    """The same once, with -deterministic; and what held the lock is dead."""
    argv = [*atari("two", PONG, "JointTrainAgent.SaveEverySteps=15"), "-deterministic"]
    job = tree.start("atari", *argv)
    wait_for(lambda: last_step(tree.folder("two")) >= 120)
    job.kill(signal.SIGSTOP)  # so that it does not end before it is killed
    tree.start("atari", *argv, "-resume").refused(f"is being trained by process {job.pid} on ")
    tree.start("atari", *argv).refused("-resume")
    job.kill()
    assert job.wait() == -signal.SIGKILL
    assert (tree.folder("two") / "lock").exists()
    tree.start("atari", *argv, "-resume").ended()
    assert_same_run(pong, tree.folder("two"))
