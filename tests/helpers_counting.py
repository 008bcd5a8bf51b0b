"""Training and evaluating counting environments in this process, which several test files share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pwm_core.commands import cli
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.domain import Domain
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
from tests.helpers_runs import evaluate_run, rows_of

CPU = torch.device("cpu")


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
    folder = RunFolder("run")
    folder.begin(config, {})
    capacity = config.JointTrainAgent.BufferMaxLength
    replay = ReplayBuffer(domain.transition(config, env), len(lengths), capacity, CPU)
    writer = Writer(background=background)
    tracker = Tracker(JsonLines(folder.metrics), folder.videos, [], writer)
    trainer = Trainer(config, "count", env, agent, replay, tracker, folder, rng)
    trainer.run()
    tracker.close()
    return Run(config, trainer, env, replay, agent, folder)


def score(domain: Domain, name: str, *argv: str) -> list[list[float]]:
    """``eval.py`` in this process; the rows of the CSV as numbers."""
    return rows_of(evaluate_run(domain, ["-n", name, "-device", "cpu", *argv]))[1]
