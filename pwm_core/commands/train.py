"""The command ``train.py`` of every domain."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwm_core import __version__
from pwm_core.commands.cli import make_agent
from pwm_core.config import Config
from pwm_core.config_file import dump_config
from pwm_core.domain import Domain, check_task
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.models.scan import check_backend
from pwm_core.models.sequence_models.ssm import refuse_capture
from pwm_core.paths import find_logdir
from pwm_core.runs.checkpoint import Point
from pwm_core.runs.recording import fingerprint
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import JsonLines, Sink, TensorBoard, Tracker, Wandb
from pwm_core.runs.writer import Writer
from pwm_core.runtime import (
    find_device,
    free_bytes,
    git_commit,
    hardware,
    make_deterministic,
    memory_advice,
    refuse_too_many_envs,
    restart_without_optimisation,
    seed_everything,
    use_precision,
    use_threads,
    versions,
)
from pwm_core.training.agent import check_compiler, compile_mode
from pwm_core.training.demonstration import load_demonstration
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.trainer import Trainer

NO_LOGGER = "; or use -logger none"
MEMORY_ADVICE = (
    "start a new run with a lower JointTrainAgent.BatchSize, ImagineBatchSize, ImagineContext or "
    "Models.Hidden, or with JointTrainAgent.BufferStorage=memory; to continue this run, free "
    "memory and give the same command with -resume"
)
MUCH_DISK = 1e9
"""If the weights of a whole run take more bytes than this, their size is printed."""


def run(domain: Domain, arguments: argparse.Namespace, config: Config) -> None:
    """Train one agent on one task.

    Args:
        arguments: the flags of training.
        config: the resolved config that they ask for.

    Raises:
        UserError: the flags, the config or the machine do not allow it.
    """
    check_task(domain, config, arguments.env_name, arguments.config_path)
    config = domain.resolve(config, arguments.env_name)
    if config.BasicSettings.Compile.startswith("compile"):
        restart_without_optimisation()
    if arguments.deterministic:
        make_deterministic()
    device = find_device(arguments.device)
    # They are checked here, because evaluation needs neither a scan nor compiled updates.
    check_backend(config.Models.WorldModel.Scan, device)
    check_compiler(config.BasicSettings.Compile, device)
    if config.Models.WorldModel.SequenceModel == "ssm":
        mode = compile_mode(config.BasicSettings.Compile, device)
        captured = device.type == "cuda" and "graph" in mode
        refuse_capture(config.Models.WorldModel.SSMScan, captured=captured)
    use_threads(config.BasicSettings.Threads)
    use_precision(config.BasicSettings, device)
    if arguments.trajectory_path and not config.JointTrainAgent.UseDemonstration:
        print("note: JointTrainAgent.UseDemonstration is false: -trajectory_path is not read")
    about = _metadata(domain, config, arguments, device)
    folder = RunFolder(arguments.name, find_logdir(arguments.logdir))
    if not arguments.resume:
        folder.refuse_existing()
    with folder.lock(), memory_advice(MEMORY_ADVICE):
        if arguments.resume and folder.exists:
            folder.check_same(config, about, domain.defaults)
        else:
            folder.refuse_existing()  # Another process may have created it in the meantime.
        _Training(domain, config, arguments, device, folder, about).run()


def _demonstration_path(config: Config, path: Path | None) -> Path | None:
    """The recorded trajectory to read, if any.

    Raises:
        UserError: there must be one, and ``path`` is none.
    """
    if not config.JointTrainAgent.UseDemonstration:
        return None
    if path is None:
        raise UserError("JointTrainAgent.UseDemonstration is true: it needs -trajectory_path FILE")
    if not path.is_file():
        raise UserError(f"-trajectory_path {path} is no file")
    return path


def identity(domain: Domain, config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """The entries of ``run.json`` that must be equal when a run continues.

    Raises:
        UserError: there must be a recorded trajectory, and the flags name none.
    """
    demonstration = _demonstration_path(config, arguments.trajectory_path)
    about = {"task": arguments.env_name, "domain": domain.name}
    return about | ({"demonstration": fingerprint(demonstration)} if demonstration else {})


def _metadata(
    domain: Domain, config: Config, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """The content of ``run.json``."""
    return identity(domain, config, arguments) | {
        "seed": config.BasicSettings.Seed,
        "protocol": domain.protocol(config),
        "tracker_id": secrets.token_hex(4),
        "pamorl": __version__,
        "versions": versions(),
        "commit": git_commit(),
        "hardware": hardware(device),
    }


class _Training:
    """One process that trains the run of ``folder``, from its start or from its newest point."""

    def __init__(
        self,
        domain: Domain,
        config: Config,
        arguments: argparse.Namespace,
        device: torch.device,
        folder: RunFolder,
        about: dict[str, Any],
    ) -> None:
        self.domain, self.config, self.settings = domain, config, config.JointTrainAgent
        self.task, self.loggers, self.keep = arguments.env_name, arguments.logger, arguments.keep
        self.trajectory_path = arguments.trajectory_path
        self.device, self.folder, self.about = device, folder, about

    def run(self) -> None:
        """Train to ``SampleMaxSteps``.

        Raises:
            UserError: there is nothing to continue from, or the run does not fit this machine.
        """
        folder, seed = self.folder, self.config.BasicSettings.Seed
        if folder.finished(self.settings.SampleMaxSteps):
            print(
                f"run {folder.name} is finished: {folder.steps()[-1]} steps; nothing to resume; a "
                "larger JointTrainAgent.SampleMaxSteps extends it"
            )
            return
        point = self._newest_point() if folder.exists else None
        verb = f"continuing from step {point.step}:" if point else "training"
        print(
            f"{verb} {self.task} on {self.device}, seed {seed}; "
            f"everything of this run is in {folder.path}"
        )
        refuse_too_many_envs(self.settings.NumEnvs, self.domain.env_bytes(self.config))
        rng = seed_everything(seed)
        env = self.domain.make_env(self.config, self.task, self.settings.NumEnvs, seed)
        try:
            trainer, tracker = self._make_trainer(env, rng, point)
            try:
                if point:
                    trainer.resume(point, folder.points.state(point))
                trainer.run()
            finally:
                tracker.close()
        finally:
            env.close()
        print(f"done: {folder.steps()[-1]} steps; checkpoints are in {folder.path / 'checkpoints'}")

    def _newest_point(self) -> Point | None:
        """The point that an existing run continues from. None if the run stopped before its first
        checkpoint.

        Raises:
            UserError: it had checkpoints, and none of them can be used.
        """
        folder = self.folder
        point = folder.points.newest()
        if point is None:
            folder.refuse_lost_points(
                folder.config(self.domain.defaults).JointTrainAgent.SampleMaxSteps
            )
        self.about["tracker_id"] = folder.metadata().get("tracker_id", self.about["tracker_id"])
        return point

    def _make_trainer(
        self, env: VectorEnv, rng: np.random.Generator, point: Point | None
    ) -> tuple[Trainer, Tracker]:
        """Make everything that the training loop uses. Create the run's folder, or print what has
        changed."""
        refuse_too_large_networks(self.domain, self.config, env, self.device)
        agent = make_agent(self.domain, self.config, env, str(self.device))
        replay, demonstration = self._make_replay(env), self._load_demonstration(env)
        sinks = self._sinks(point.step if point else 0)
        if point is None:
            self.folder.begin(self.config, self.about)
            self._mention_disk(agent.state_dict())
        else:
            self.folder.extend(self.config, self.domain.defaults)
            self.folder.note_versions(self.about)
        metrics = JsonLines(self.folder.metrics, fresh=point is None)
        # On a CPU a thread would take time from the training itself.
        writer = Writer(background=self.device.type == "cuda")
        tracker = Tracker(metrics, self.folder.videos, sinks, writer)
        trainer = Trainer(
            *(self.config, self.task, env, agent, replay, tracker, self.folder, rng),
            keep=self.keep,
            demonstration=demonstration,
        )
        return trainer, tracker

    def _make_replay(self, env: VectorEnv) -> ReplayBuffer:
        settings = self.settings
        return ReplayBuffer(
            self.domain.transition(self.config, env),
            settings.NumEnvs,
            settings.BufferMaxLength,
            self.device,
            storage=settings.BufferStorage,
            directory=self.folder.path / "replay",
        )

    def _load_demonstration(self, env: VectorEnv) -> ReplayBuffer | None:
        """The recorded trajectory, if the config asks for one."""
        if not self.settings.UseDemonstration:
            return None
        spec = self.domain.transition(self.config, env)
        return load_demonstration(
            self.trajectory_path, self.task, env, spec, self.settings, self.device
        )

    def _sinks(self, after: int) -> list[Sink]:
        """The requested trackers. ``after`` is the step that a resumed run continues from."""
        folder, made = self.folder, list[Sink]()
        config = self.config.model_dump(mode="json")
        if "wandb" in self.loggers:
            project, run_id = f"pamorl-{self.domain.name}", self.about["tracker_id"]
            try:
                made.append(Wandb(folder.path, folder.name, project, self.about | config, run_id))
            except UserError as error:
                raise UserError(f"{error}{NO_LOGGER}") from None
        if "tensorboard" in self.loggers:
            made.append(TensorBoard(folder.path, dump_config(self.config), after))
        return made

    def _mention_disk(self, state: dict[str, Any]) -> None:
        """Print how much disk space the weights of the whole run will take, if it is much."""
        settings = self.settings
        count = -(-settings.SampleMaxSteps // settings.SaveEverySteps)
        size = count * sum(
            tensor.nbytes
            for name in ("world_model", "actor_critic")
            for tensor in state[name].values()
        )
        if self.keep is None and size > MUCH_DISK:
            print(
                f"note: the weights of {count} checkpoints will take {size / 1e9:.1f} GB; "
                "-keep K keeps the newest K only"
            )


def refuse_too_large_networks(
    domain: Domain, config: Config, env: VectorEnv, device: torch.device
) -> None:
    """Refuse networks that do not fit, before any memory is taken for them.

    Raises:
        UserError: weights, gradients and the optimisers' two moments exceed the free memory.
    """
    with torch.device("meta"):
        networks = domain.make_world_model(config, env), domain.make_actor_critic(config, env)
    weights = sum(tensor.nbytes for network in networks for tensor in network.parameters())
    needed, free = 4 * weights, free_bytes(device)
    if needed > free:
        raise UserError(
            f"out of memory: the networks and their optimisers need {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free on {device}: lower Models.Hidden or the other sizes"
        )
