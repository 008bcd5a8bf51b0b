"""The command ``eval.py`` of every domain."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from pwm_core.checkpoint import RunFolder
from pwm_core.cli import make_agent, make_parser, overrides
from pwm_core.config import Config, find_config, load_config
from pwm_core.domain import Domain
from pwm_core.errors import UserError
from pwm_core.evaluation import ScoreFile, Settings, evaluate, standard_error
from pwm_core.runtime import find_device, git_commit, seed_everything, use_threads, versions

EVALUATION_SEEDS = 2**32
"""Added to the seed when evaluating, so that no training episode is evaluated on."""


def _trained_with(config: Config) -> dict[str, Any]:
    """What the weights of a run depend on."""
    basic = config.BasicSettings
    return {"Models": config.Models, "ObsType": basic.ObsType, "ObsShape": basic.ObsShape}


def _evaluation_config(arguments: argparse.Namespace, folder: RunFolder, domain: Domain) -> Config:
    """The run's own config with the flags' overrides; says so where ``-config_path`` differs.

    Raises:
        UserError: the overrides contradict what the run was trained with.
    """
    own = folder.config()
    config = load_config(folder.path / "config.yaml", overrides=overrides(arguments, domain))
    for key, value in _trained_with(own).items():
        if _trained_with(config)[key] != value:
            given = "" if key == "Models" else f" {_trained_with(config)[key]}; it was {value}"
            raise UserError(f"run {folder.name} was not trained with this {key}{given}")
    if arguments.config_path is not None:
        given = load_config(find_config(arguments.config_path), defaults=domain.defaults)
        if given.Models != own.Models:
            print(
                f"note: the Models of {arguments.config_path} differ from the run's own in "
                f"{folder.path / 'config.yaml'}, which are used"
            )
    return config


def evaluate_run(domain: Domain, argv: list[str] | None = None) -> None:
    """Evaluate checkpoints of one run, as the flags say."""
    parser = make_parser(f"Evaluate a PaMoRL run on {domain.name}.", domain)
    parser.add_argument("-env_name", default=None, help="checked against the run's own task")
    parser.add_argument("-checkpoint", default="last", help="last (default), all or a step")
    parser.add_argument("-episodes", type=int, default=None, help="overrides EvalEpisodes")
    parser.add_argument("-greedy", action="store_true", help="the policy's mode, not samples")
    arguments = parser.parse_args(argv)
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"-episodes {arguments.episodes} is not valid: at least 1 is needed")
    folder = RunFolder.open(arguments.name)
    config = _evaluation_config(arguments, folder, domain)
    about = folder.metadata()
    task = arguments.env_name or about["task"]
    if about.get("domain") != domain.name:
        raise UserError(f"run {folder.name} is one of {about.get('domain')}, not {domain.name}")
    domain.check_task(config, task)
    if task != about["task"]:
        raise UserError(f"run {folder.name} was trained on {about['task']}, not on {task}")
    steps = folder.select(arguments.checkpoint)
    device = find_device(arguments.device)
    use_threads(config.BasicSettings.Threads)

    episodes = arguments.episodes or config.JointTrainAgent.EvalEpisodes
    seed = config.BasicSettings.Seed
    settings = Settings(
        task=task,
        protocol=config.BasicSettings.Protocol,
        episodes=episodes,
        envs=min(config.JointTrainAgent.EvalEnvs, episodes),
        greedy=arguments.greedy,
        seed=seed,
    )
    scores = ScoreFile(folder.name, settings, _provenance(domain, config, about))
    for step in steps:
        seed_everything(seed)
        env = domain.make_env(config, task, settings.envs, seed + EVALUATION_SEEDS)
        try:
            agent = make_agent(domain, config, env, arguments.device)
            weights = folder.load_weights(step, device)
            try:
                agent.load_weights(weights)
            except (RuntimeError, KeyError, TypeError):
                raise UserError(
                    f"{folder.checkpoint(step)} does not fit the run's config.yaml"
                ) from None
            began = time.monotonic()
            returns = evaluate(agent, env, episodes, greedy=arguments.greedy)
            scores.add(step, step * env.frame_skip, returns)
        finally:
            env.close()
        print(
            f"step {step}: mean return {np.mean(returns):.2f} +- {standard_error(returns):.2f} "
            f"(standard error, {episodes} episodes, {time.monotonic() - began:.0f} s)"
        )
    print(f"scores: {scores.csv}")


def _provenance(domain: Domain, config: Config, about: dict[str, Any]) -> dict[str, Any]:
    """What a score file says beside its settings."""
    return {
        "domain": domain.name,
        "protocol_settings": {
            **domain.protocol(config),
            "frame_skip": config.BasicSettings.FrameSkip,
        },
        "training": about,
        "versions": versions(),
        "commit": git_commit(),
        "config": config.model_dump(mode="json"),
    }
