"""Training and evaluating counting environments in this process, which several test files share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pwm_core.commands import cli
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.domain import Domain
from pwm_core.paths import LOGDIR_VARIABLE
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Tracker
from pwm_core.runs.writer import Writer
from pwm_core.runtime import seed_everything
from pwm_core.training.agent import Agent
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.trainer import Trainer
from tests.helpers_envs import (
    CONFIG,
    DEFAULTS,
    TINY,
    CountingEnv,
    counting_domain,
)
from tests.helpers_runs import (
    CrashError,
    crash_at,
    evaluate_run,
    folder,
    rows_of,
    train_counting,
)

CPU = torch.device("cpu")
QUICK = ("JointTrainAgent={BufferWarmUp: 37, SampleMaxSteps: 45, SaveEverySteps: 20}",)
"""Points at 20 and 40, three updates before the second and five after."""
LONG = (
    "JointTrainAgent={BufferWarmUp: 24, SampleMaxSteps: 45, SaveEverySteps: 10, LogEverySteps: 1}",
)
"""Points at 10, 20, 30 and 40, and a line of metrics at every step."""


@dataclass
class Run:
    """A training run that has ended."""

    config: Config
    trainer: Trainer
    env: CountingEnv
    replay: ReplayBuffer
    agent: Agent
    folder: RunFolder

    def records(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]


def train(
    *overrides: str,
    lengths: Sequence[int] = (7,),
    seed: int = 0,
    background: bool = False,
    **settings: Any,
) -> Run:
    """Train on as many counting environments as there are ``lengths``.

    Args:
        background: write files in a thread, as on CUDA.
    """
    every = [*TINY, f"JointTrainAgent.NumEnvs={len(lengths)}", *overrides]
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=every)
    domain, _ = counting_domain(lengths, **settings)
    rng = seed_everything(seed)
    env = domain.make_env(config, "count", len(lengths), seed)
    agent = cli.make_agent(domain, config, env, "cpu")
    run = RunFolder("run")
    run.begin(config, {})
    capacity = config.JointTrainAgent.BufferMaxLength
    replay = ReplayBuffer(domain.transition(config, env), len(lengths), capacity, CPU)
    writer = Writer(background=background)
    tracker = Tracker(JsonLines(run.metrics), run.videos, [], writer)
    trainer = Trainer(config, "count", env, agent, replay, tracker, run, rng)
    trainer.run()
    tracker.close()
    return Run(config, trainer, env, replay, agent, run)


def score(domain: Domain, name: str, *argv: str) -> list[list[float]]:
    """``eval.py`` in this process; the rows of the CSV as numbers."""
    return rows_of(evaluate_run(domain, ["-n", name, "-device", "cpu", *argv]))[1]


def damage(path: Path, how: str) -> None:
    """Remove, cut or empty a file (``gone``, ``cut``, ``empty``), or else change one bit of it."""
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def uninterrupted(home: Path, overrides: Sequence[str]) -> Path:
    """The folder of a run under ``home`` that nothing met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGDIR_VARIABLE, str(home))
        train_counting("whole", overrides=overrides)
        return folder("whole")


def interrupted() -> Path:
    """A run with the points 20 and 40 that ended at step 43."""
    with pytest.raises(CrashError):
        train_counting("run", overrides=QUICK, hook=crash_at(43))
    assert ResumePoints(folder("run")).steps() == [20, 40]
    return folder("run")
