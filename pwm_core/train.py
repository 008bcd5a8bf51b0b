"""The command ``train.py`` of every domain."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

import torch

from pwm_core import __version__
from pwm_core.cli import make_agent, make_parser, overrides
from pwm_core.config import REPOSITORY, Config
from pwm_core.config_file import load_config
from pwm_core.domain import Domain
from pwm_core.models.scan import check_backend
from pwm_core.paths import find_logdir
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Sink, TensorBoard, Tracker, Wandb, parse_loggers
from pwm_core.runtime import (
    find_device,
    git_commit,
    hardware,
    make_deterministic,
    memory_advice,
    seed_everything,
    use_tensor_float,
    use_threads,
    versions,
)
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.trainer import Trainer


def _sinks(
    loggers: list[str], folder: RunFolder, domain: Domain, about: dict[str, Any], after: int
) -> list[Sink]:
    """The trackers asked for; ``after`` is the step that a resumed run goes on from."""
    made: list[Sink] = []
    if "wandb" in loggers:
        project = f"pamorl-{domain.name}"
        made.append(Wandb(folder.path, folder.name, project, about, about["tracker_id"]))
    if "tensorboard" in loggers:
        made.append(TensorBoard(folder.path, after))
    return made


def _train_arguments(domain: Domain, argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(f"Train PaMoRL on {domain.name}.", domain)
    parser.add_argument("-env_name", required=True, help=f"task, such as {domain.example_task}")
    parser.add_argument(
        "-logger", default="wandb", help="wandb, tensorboard, both with a comma, or none"
    )
    parser.add_argument(
        "-resume",
        action="store_true",
        help="go on where the run of that name stopped; begin it where there is none",
    )
    parser.add_argument(
        "-keep", type=_keep, default=None, metavar="K", help="keep the newest K weights (all)"
    )
    parser.add_argument(
        "-deterministic", action="store_true", help="the same numbers every time on one machine"
    )
    return parser.parse_args(argv)


def _keep(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def train(domain: Domain, argv: list[str] | None = None) -> None:
    """Train one agent on one task, as the flags say."""
    arguments = _train_arguments(domain, argv)
    task, loggers = arguments.env_name, parse_loggers(arguments.logger)
    config = load_config(
        arguments.config_path or REPOSITORY / domain.defaults,
        defaults=domain.defaults,
        overrides=overrides(arguments, domain),
    )
    domain.check_task(config, task)
    config = domain.resolve(config, task)
    if arguments.deterministic:
        make_deterministic()
    device = find_device(arguments.device)
    check_backend(config.Models.WorldModel.Scan, device)  # here: to evaluate needs no scan
    use_threads(config.BasicSettings.Threads)
    use_tensor_float(config.BasicSettings.TF32)
    about = {
        "task": task,
        "domain": domain.name,
        "seed": config.BasicSettings.Seed,
        "protocol": domain.protocol(config),
        "tracker_id": secrets.token_hex(4),
        "pamorl": __version__,
        "versions": versions(),
        "commit": git_commit(),
        "hardware": hardware(device),
    }
    folder = RunFolder(arguments.name, find_logdir(arguments.logdir))
    if not arguments.resume:
        folder.refuse_existing()
    with folder.lock(), memory_advice():
        if arguments.resume and folder.exists:
            folder.check_same(config, about, domain.defaults)
        else:
            folder.refuse_existing()  # another process may have made it meanwhile
        _train(domain, config, task, loggers, device, folder, about, arguments.keep)


def _train(
    domain: Domain,
    config: Config,
    task: str,
    loggers: list[str],
    device: torch.device,
    folder: RunFolder,
    about: dict[str, Any],
    keep: int | None,
) -> None:
    """Begin the run of ``folder``, or go on with it, to its end."""
    settings, seed = config.JointTrainAgent, config.BasicSettings.Seed
    point = None
    if folder.exists:
        if folder.finished(settings.SampleMaxSteps):
            print(f"run {folder.name} is finished: {folder.steps()[-1]} steps; nothing to resume")
            return
        point = folder.points.newest()
        if point is None:
            folder.refuse_lost_points()
        about["tracker_id"] = folder.metadata().get("tracker_id", about["tracker_id"])
    start = point.step if point else 0
    verb = f"going on from step {start}:" if point else "training"
    print(f"{verb} {task} on {device}, seed {seed}; everything of this run is in {folder.path}")
    rng = seed_everything(seed)
    env = domain.make_env(config, task, settings.NumEnvs, seed)
    try:
        agent = make_agent(domain, config, env, str(device))
        replay = ReplayBuffer(
            domain.transition(config, env),
            settings.NumEnvs,
            settings.BufferMaxLength,
            device,
            storage=settings.BufferStorage,
            directory=folder.path / "replay",
        )
        state = folder.points.state(point) if point else None
        sinks = _sinks(
            loggers, folder, domain, {**about, "config": config.model_dump(mode="json")}, start
        )
        if point is None:
            folder.begin(config, about)
        else:
            folder.note_versions(about)
        metrics = JsonLines(folder.metrics, fresh=point is None)
        tracker = Tracker(metrics, folder.videos, sinks)
        try:
            trainer = Trainer(config, task, env, agent, replay, tracker, folder, rng, keep)
            if point:
                trainer.resume(point, state)
            trainer.run()
        finally:
            tracker.close()
    finally:
        env.close()
    print(f"done: {folder.steps()[-1]} steps; checkpoints are in {folder.path / 'checkpoints'}")
