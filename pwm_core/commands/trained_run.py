"""A run that ``eval.py`` or ``record.py`` plays: its settings, and the agent of a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from pwm_core.commands.cli import make_agent, overrides
from pwm_core.config import ROUNDING, Config
from pwm_core.config_file import leaves, load_config
from pwm_core.domain import Domain
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.paths import find_logdir
from pwm_core.runs import pretrained
from pwm_core.runs.run_folder import RunFolder
from pwm_core.training.agent import Agent


@dataclass(frozen=True)
class TrainedRun:
    """A run, with the settings that the flags ask for.

    Attributes:
        folder: the run's folder.
        about: the content of its ``run.json``.
        task: what it was trained on.
        own: its own config.
        config: the same with the overrides of the flags, resolved for the task.
    """

    folder: RunFolder
    about: dict[str, Any]
    task: str
    own: Config
    config: Config


def open_run(domain: Domain, arguments: argparse.Namespace) -> TrainedRun:
    """The run that the flags name; a published agent is copied if there is no run of that name.

    Raises:
        UserError: there is no such run, or the flags contradict what it was trained with.
    """
    logdir = find_logdir(arguments.logdir)
    folder = pretrained.open_folder(arguments.name, logdir)
    about = folder.metadata()
    if about["domain"] != domain.name:
        other = f"pwm_{about['domain']}"
        raise UserError(f"run {folder.name} belongs to {other}: use the commands in {other}/")
    own = folder.config(domain.defaults)
    config = _config(domain, arguments, folder, own)
    task = arguments.env_name or about["task"]
    domain.check_task(config, task)
    if task != about["task"]:
        raise UserError(f"run {folder.name} was trained on {about['task']}, not on {task}")
    return TrainedRun(folder, about, task, own, domain.resolve(config, task))


def _trained_with(config: Config) -> dict[str, Any]:
    """The keys that the weights of a run depend on, with their values."""
    basic = config.BasicSettings.model_dump(include={"ObsType", "ObsShape"})
    found = leaves({"Models": config.Models.model_dump(), "BasicSettings": basic})
    return {key: value for key, value in found.items() if key not in ROUNDING}


def _config(
    domain: Domain, arguments: argparse.Namespace, folder: RunFolder, own: Config
) -> Config:
    """The run's ``own`` config with the overrides of the flags. A note is printed if the Models of
    ``-config_path`` differ.

    Raises:
        UserError: the overrides contradict what the run was trained with.
    """
    config = load_config(
        folder.path / "config.yaml",
        defaults=domain.defaults,
        overrides=overrides(arguments, domain),
    )
    before, now = _trained_with(own), _trained_with(config)
    changed = [key for key in before if before[key] != now[key]]
    if changed:
        said = "; ".join(f"{key} was {before[key]} and is {now[key]}" for key in changed)
        raise UserError(
            f"run {folder.name} was trained with other settings: {said}; leave these flags out"
        )
    if arguments.config_path is not None:
        given = load_config(arguments.config_path, defaults=domain.defaults)
        if given.Models != own.Models:
            print(
                f"note: the Models of {arguments.config_path} differ from the run's own in "
                f"{folder.path / 'config.yaml'}, which are used"
            )
    return config


def load_agent(
    domain: Domain, run: TrainedRun, env: VectorEnv, step: int, device: torch.device
) -> Agent:
    """The agent of the checkpoint of ``step``.

    Raises:
        UserError: the checkpoint is damaged, or does not fit the run's config.
    """
    agent = make_agent(domain, run.config, env, str(device))
    weights = run.folder.load_weights(step, device)
    try:
        agent.load_weights(weights)
    except (RuntimeError, KeyError, TypeError):
        raise UserError(
            f"{run.folder.checkpoint(step)} does not fit the run's config.yaml"
        ) from None
    return agent
