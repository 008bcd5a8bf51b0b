"""The commands ``train.py`` and ``eval.py`` of every domain."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch

from pwm_core import __version__
from pwm_core.agent import Agent
from pwm_core.checkpoint import RunFolder
from pwm_core.config import REPOSITORY, Config, find_config, load_config
from pwm_core.domain import Domain
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.evaluation import ScoreFile, Settings, evaluate, standard_error
from pwm_core.replay_buffer import ReplayBuffer
from pwm_core.runtime import (
    find_device,
    git_commit,
    hardware,
    make_deterministic,
    memory_advice,
    seed_everything,
    use_threads,
    versions,
)
from pwm_core.signals import STOPPED, StoppedError
from pwm_core.tracking import JsonLines, Sink, TensorBoard, Tracker, Wandb, parse_loggers
from pwm_core.trainer import Trainer

EVALUATION_SEEDS = 2**32
"""Added to the seed when evaluating, so that no training episode is evaluated on."""


class Parser(argparse.ArgumentParser):
    """One line for a bad flag, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for bad flags."""
        raise UserError(f"{message}; see {self.prog} -h")


def _parser(description: str, domain: Domain) -> Parser:
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("-n", "-run_name", dest="name", required=True, help="name of the run")
    parser.add_argument(
        "-config_path", default=None, help=f"YAML file; the defaults are {domain.defaults}"
    )
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:N or auto (the default)")
    parser.add_argument("-seed", type=_seed, default=None, help="overrides BasicSettings.Seed")
    parser.add_argument(
        "-set",
        action="append",
        default=[],
        metavar="Section.Key=value",
        help="override one key of the config; may be repeated",
    )
    domain.add_arguments(parser)
    return parser


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def _overrides(arguments: argparse.Namespace, domain: Domain) -> list[str]:
    seed = [] if arguments.seed is None else [f"BasicSettings.Seed={arguments.seed}"]
    return [*domain.overrides(arguments), *seed, *arguments.set]


def make_agent(domain: Domain, config: Config, env: VectorEnv, device: str) -> Agent:
    """World model, actor-critic and optimisers on ``device``."""
    return Agent(
        config,
        domain.make_world_model(config, env),
        domain.make_actor_critic(config, env),
        find_device(device),
    )


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
    parser = _parser(f"Train PaMoRL on {domain.name}.", domain)
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
        overrides=_overrides(arguments, domain),
    )
    domain.check_task(config, task)
    device = find_device(arguments.device)
    if arguments.deterministic:
        make_deterministic()
    use_threads(config.BasicSettings.Threads)
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
    folder = RunFolder(arguments.name)
    if folder.exists and arguments.resume:
        folder.check_same(config, about)
    else:
        folder.refuse_existing()
    fresh = not folder.path.exists()
    try:
        with folder.lock(), memory_advice():
            _train(domain, config, task, loggers, device, folder, about, arguments.keep)
    finally:
        if fresh and not folder.exists:  # bad input is found before anything is worth keeping
            folder.discard()


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
        metrics = JsonLines(folder.metrics, state["metrics_size"] if state else 0)
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
    config = load_config(folder.path / "config.yaml", overrides=_overrides(arguments, domain))
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
    parser = _parser(f"Evaluate a PaMoRL run on {domain.name}.", domain)
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


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0; 2 after bad input (one line on stderr); 75 when a signal ended a
    training that can be resumed; 130 when something else was interrupted."""
    try:
        command()
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def run(command: Callable[[Domain], None], domain: Domain) -> NoReturn:
    """Run a domain's command and exit as :func:`run_command` does."""
    run_command(lambda: command(domain))
