"""The command ``eval.py`` of every domain."""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwm_core.commands.trained_run import TrainedRun, load_agent, open_run
from pwm_core.config import Config
from pwm_core.domain import Domain
from pwm_core.envs import VectorEnv
from pwm_core.paths import find_logdir
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.score_file import NEUTRAL, ScoreFile, Settings, setting_name
from pwm_core.runs.tracking import Wandb
from pwm_core.runtime import (
    find_device,
    git_commit,
    memory_advice,
    refuse_too_many_envs,
    seed_everything,
    use_precision,
    use_threads,
    versions,
)
from pwm_core.training.episode_videos import Episode, as_pictures, film
from pwm_core.training.evaluation import play, standard_error

EVALUATION_SEEDS = 2**32
"""Added to the seed in evaluation, so that no training episode is repeated."""


@memory_advice("lower JointTrainAgent.EvalEnvs or use -device cpu")
def run(domain: Domain, arguments: argparse.Namespace) -> Path:
    """Evaluate checkpoints of one run. Returns the CSV of its scores.

    Args:
        arguments: the flags of evaluation.

    Raises:
        UserError: the flags, the run or the machine do not allow it.
    """
    trained = open_run(domain, arguments)
    own, config, folder = trained.own, trained.config, trained.folder
    steps = folder.select(arguments.checkpoint)
    device = find_device(arguments.device)
    use_threads(config.BasicSettings.Threads)
    use_precision(config.BasicSettings, device)
    settings = _settings(trained.task, config, arguments)
    refuse_too_many_envs(settings.envs, domain.env_bytes(config), "EvalEnvs")

    name = setting_name(own, config, episodes=settings.episodes, greedy=settings.greedy)
    provenance = _provenance(domain, own, config, trained.about)
    scores = ScoreFile(folder.name, name, settings, provenance, find_logdir(arguments.logdir))
    for step in steps:
        began = time.monotonic()
        played = _play(domain, trained, settings, step, device)
        returns = [episode.episode_return for episode in played]
        scores.add(step, step * own.BasicSettings.FrameSkip, returns)
        count = f"{len(returns)} episode{'s' * (len(returns) > 1)}"
        print(
            f"step {step}: mean return {np.mean(returns):.2f} +- {standard_error(returns):.2f} "
            f"(standard error, {count}, {time.monotonic() - began:.0f} s)"
        )
        if arguments.video:
            _film(domain, trained, settings, step, played[: arguments.video])
    print(f"scores: {scores.csv}")
    record_in_wandb(folder, trained.about, scores.csv, name)
    return scores.csv


def _settings(task: str, config: Config, arguments: argparse.Namespace) -> Settings:
    """What the scores of this evaluation have in common."""
    episodes = arguments.episodes or config.JointTrainAgent.EvalEpisodes
    return Settings(
        task=task,
        protocol=config.BasicSettings.Protocol,
        episodes=episodes,
        envs=min(config.JointTrainAgent.EvalEnvs, episodes),
        greedy=arguments.greedy,
        seed=config.BasicSettings.Seed,
    )


def _play(
    domain: Domain, trained: TrainedRun, settings: Settings, step: int, device: torch.device
) -> list[Episode]:
    """Play the episodes of the checkpoint of ``step``."""
    seed_everything(settings.seed)
    seed = settings.seed + EVALUATION_SEEDS
    env = domain.make_env(trained.config, settings.task, settings.envs, seed)
    try:
        agent = load_agent(domain, trained, env, step, device)
        phase = f"checkpoint {step}"
        return play(agent, env, settings.episodes, greedy=settings.greedy, phase=phase)
    finally:
        env.close()


def _film(
    domain: Domain, trained: TrainedRun, settings: Settings, step: int, episodes: list[Episode]
) -> None:
    """Film ``episodes``, the first of the evaluated ones. A note is printed if nothing can render,
    or if a video cannot be written."""
    visual, videos = as_pictures(trained.config), trained.folder.videos

    def make_env(count: int) -> VectorEnv:
        return domain.make_env(visual, settings.task, count, settings.seed + EVALUATION_SEEDS)

    paths = [videos / f"evaluation{i}_{step:09d}.mp4" for i in range(len(episodes))]
    try:
        left_out = film(make_env, episodes, paths)
    except Exception as error:  # PyAV's errors have no class in common
        reason = " ".join(str(error).split())
        print(f"note: the scores are written, but no video: {reason[:300]}")
        return
    for line in left_out:
        print(f"warning: {line}")
    for i, path in enumerate(paths):
        if path.exists():
            print(f"video of return_{i} ({episodes[i].episode_return:g}): {path}")


def _provenance(
    domain: Domain, own: Config, config: Config, about: dict[str, Any]
) -> dict[str, Any]:
    """The content of a score file's JSON besides the settings.

    Its config has the run's own values of the keys that say how numbers are computed, because it
    tells how the agent was trained. The evaluation's own values stand beside it.
    """
    neutral = own.BasicSettings.model_dump(include=set(NEUTRAL))
    trained_with = config.model_dump(mode="json")
    trained_with["BasicSettings"] |= neutral
    return {
        "domain": domain.name,
        "protocol_settings": {
            **domain.protocol(config),
            "frame_skip": config.BasicSettings.FrameSkip,
        },
        "training": about,
        "versions": versions(),
        "commit": git_commit(),
        "config": trained_with,
        "computed_with": config.BasicSettings.model_dump(include=set(NEUTRAL)),
    }


def record_in_wandb(
    folder: RunFolder, about: dict[str, Any], scores: Path, setting: str = ""
) -> None:
    """Add the rows of ``scores`` to the wandb run that tracked the training, if there is one. The
    newest row becomes the run's summary. A failure is reported and does not stop the command.

    Args:
        setting: the name of the evaluation setting, which becomes part of the metrics' names.
    """
    if not (folder.path / "wandb").is_dir() or "tracker_id" not in about:
        return
    with open(scores, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    group = f"Evaluation/{setting}" if setting else "Evaluation"
    try:
        run = Wandb(
            folder.path, folder.name, f"pamorl-{about['domain']}", {**about}, about["tracker_id"]
        )
        for row in rows:
            values = {f"{group}/return": float(row["mean"]), f"{group}/std": float(row["std"])}
            run.log(int(row["step"]), values | {"frames": int(row["frames"])})
        run.close()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(f"note: the scores are not in the wandb run: {reason}")
