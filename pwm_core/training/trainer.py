"""The training loop: act, update, store, log, save."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pwm_core.config import Config
from pwm_core.envs import Finished, VectorEnv
from pwm_core.errors import UserError
from pwm_core.runs.checkpoint import Point, ResumePoints
from pwm_core.runs.files import to_arrays, to_tensors
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import MeanMetrics, Tracker, progress_bar
from pwm_core.runtime import random_state, set_random_state
from pwm_core.signals import Signals, StoppedError
from pwm_core.training.agent import Agent
from pwm_core.training.diagnosis import diagnose
from pwm_core.training.model_videos import log_videos
from pwm_core.training.replay_buffer import ReplayBuffer
from pwm_core.training.training_step import TrainingStep


class Trainer:
    """Drives one run from its first step, or from where it stopped, to ``SampleMaxSteps``.

    Args:
        config: the resolved config.
        task: the environment's name, for the metrics.
        env, agent, replay: the parts it moves.
        tracker, folder: where metrics and checkpoints go.
        rng: draws the warm-up's actions.
        keep: weights of how many checkpoints to keep; None: of all.
    """

    def __init__(
        self,
        config: Config,
        task: str,
        env: VectorEnv,
        agent: Agent,
        replay: ReplayBuffer,
        tracker: Tracker,
        folder: RunFolder,
        rng: np.random.Generator,
        keep: int | None = None,
    ) -> None:
        self.config, self.settings, self.task = config, config.JointTrainAgent, task
        self.env, self.agent, self.replay = env, agent, replay
        self.tracker, self.folder, self.rng, self.keep = tracker, folder, rng, keep
        self.step, self.episodes = 0, 0
        self._last_return = ""  # for the progress bar
        self.update = TrainingStep(agent, replay)
        self.metrics = MeanMetrics()
        self.acting = agent.initial_state(env.num_envs)
        self.obs: np.ndarray | None = None
        self.is_first = np.ones(env.num_envs, bool)
        self.signals = Signals()

    @property
    def points(self) -> ResumePoints:
        """What the run can go on from."""
        return self.folder.points

    def run(self) -> None:
        """Train to the end; a checkpoint is written at the last step.

        Raises:
            StoppedError: by a signal, after a checkpoint.
            UserError: too many updates in a row were not finite, or the last checkpoint could not
                be written.
        """
        with self.signals:
            if self.obs is None:
                self.obs = self.env.reset()
            while self.step < self.settings.BufferWarmUp:
                self._step()
            # The warm-up takes a second; counted in, it would make the time left far too short.
            total = self.settings.SampleMaxSteps
            with progress_bar(total, "step", initial=self.step) as bar:
                while self.step < total:
                    self._step()
                    bar.set_postfix_str(self._last_return, refresh=False)
                    bar.update(self.env.num_envs)
            if not self.save():
                raise UserError("the run's last checkpoint is missing; make room and -resume")
            self.points.clear()
            self.folder.prune(self.keep)

    def _step(self) -> None:
        """One agent step in every environment, and the updates that are due after it.

        The environments step while the device trains, so the newest transition that an update can
        sample is the one before.
        """
        learning = self.step >= self.settings.BufferWarmUp
        if learning:
            action = self.agent.act(self.obs, self.is_first, self.acting)
        else:
            action = self.env.random_actions(self.rng)
        self.env.send(action)
        self.step += self.env.num_envs
        if learning:
            self._train()
        result = self.env.recv()
        self.replay.add(self.obs, action, result.reward, result.done, self.is_first)
        self.obs, self.is_first = result.obs, result.is_first
        if result.finished:
            self._log_episodes(result.finished)
        if learning:
            self._log()
        self._save_if_asked()

    def _log_episodes(self, finished: list[Finished]) -> None:
        """Episodes that ended at this step: the mean, where several did."""
        self.episodes += len(finished)
        mean = float(np.mean([episode.episode_return for episode in finished]))
        self.tracker.log(
            self.step,
            {
                f"Rollout/{self.task}_reward": mean,
                "Rollout/length": float(np.mean([episode.length for episode in finished])),
                "Rollout/episodes": self.episodes,
            },
        )
        self._last_return = f"return {mean:g}"

    def _crossed(self, every: int) -> int:
        """How many multiples of ``every`` the last step reached or passed."""
        return self.step // every - (self.step - self.env.num_envs) // every

    def _train(self) -> None:
        """The updates due at this step; both use the same replayed batch where both are due."""
        model_updates = self._crossed(self.settings.TrainModelEverySteps)
        agent_updates = self._crossed(self.settings.TrainAgentEverySteps)
        for update in range(max(model_updates, agent_updates)):
            metrics = self.update(model=update < model_updates, actor=update < agent_updates)
            self.metrics.add(metrics)

    def _log(self) -> None:
        """Metrics and videos that are due."""
        if self._crossed(self.settings.LogEverySteps):
            counts = {"frames": self.step * self.env.frame_skip}
            counts["Rollout/worker_restarts"] = self.env.restarts
            self.tracker.log(self.step, self.metrics.take() | self.agent.skipped() | counts)
            self._check_updates()
        if self._crossed(self.settings.VideoLogStep):
            batch = self.replay.sample(self.settings.BatchSize, self.settings.BatchLength)
            for name, frames in log_videos(self.agent, batch).items():
                self.tracker.video(self.step, name, frames)

    def _check_updates(self) -> None:
        """Give up when too many updates in a row were skipped.

        Raises:
            UserError: says which part went bad and what to go on from.
        """
        most = self.settings.MaxSkippedUpdates
        for name, updater in self.agent.updaters.items():
            in_a_row = updater.take_longest()
            if in_a_row > most:
                self.tracker.flush()
                steps = self.points.steps()
                saved = f"the checkpoint of step {steps[-1]} is there" if steps else "none is saved"
                raise UserError(
                    f"step {self.step}: {in_a_row} updates of {name} in a row were skipped, since "
                    f"they were not finite (JointTrainAgent.MaxSkippedUpdates = {most}). "
                    f"{diagnose(self.agent, self.replay)}; {saved}"
                )

    # ------------------------------------------------------------------------------------ saving

    def _save_if_asked(self) -> None:
        """Write a checkpoint where one is due or a signal asks for it.

        Raises:
            StoppedError: the signal asked for the end too.
        """
        asked, stop = self.signals.take_save(), self.signals.stop
        due = asked or stop or self._crossed(self.settings.SaveEverySteps)
        if not due or self.step >= self.settings.SampleMaxSteps:  # the last one is run()'s
            return
        saved = self.save()
        if stop:
            what = "a checkpoint was written; -resume goes on from there"
            if not saved:
                what = "no checkpoint could be written; -resume goes on from the one before"
            raise StoppedError(f"{stop} at step {self.step}: {what}")

    def save(self) -> bool:
        """Write a checkpoint of this step; False, and a warning, where the disk does not let us."""
        self.tracker.flush()
        state = self.agent.state_dict()
        weights = {name: state.pop(name) for name in ("world_model", "actor_critic")}
        try:
            files = self.folder.save(self.step, weights)
            self.points.save(self.step, files, to_tensors(self._state() | state), self.replay)
            self.folder.prune(self.keep)
        except OSError as error:
            print(
                f"\nwarning: the checkpoint of step {self.step} could not be written "
                f"({error.strerror}); those before are untouched and training goes on"
            )
            return False
        return True

    def _state(self) -> dict[str, Any]:
        """What the loop itself must remember to go on."""
        return {
            "step": self.step,
            "episodes": self.episodes,
            "last_return": self._last_return,
            "obs": self.obs,
            "is_first": self.is_first,
            "env": self.env.state_dict(),
            "acting": self.acting.state_dict(),
            "metrics": self.metrics.state_dict(),
            "metrics_file": self.tracker.metrics.state_dict(),
            "random": random_state(self.rng),
        }

    def resume(self, point: Point, state: dict[str, Any]) -> None:
        """Bring everything to where ``point`` was written; ``state`` is what it holds.

        Raises:
            UserError: it holds something else than this version of the code writes.
        """
        try:
            self._restore(point, state)
            episodes, random = to_arrays(state["env"]), state["random"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"the checkpoint of step {point.step} cannot be gone on from: it was written by "
                f"another version of this code ({type(error).__name__}: {error})"
            ) from None
        self._resume_episodes(episodes)
        set_random_state(random, self.rng)

    def _restore(self, point: Point, state: dict[str, Any]) -> None:
        device = self.agent.device
        self.agent.load_state_dict(self.folder.load_weights(point.step, device) | state)
        for first, fields in self.points.transitions(point):
            self.replay.write(first, fields)
        self.step, self.episodes = state["step"], state["episodes"]
        self._last_return = state["last_return"]
        self.acting.load_state_dict(state["acting"])
        self.metrics.load_state_dict(state["metrics"], device)
        self.tracker.metrics.load_state_dict(state["metrics_file"])
        self.obs, self.is_first = to_arrays(state["obs"]), to_arrays(state["is_first"])

    def _resume_episodes(self, state: dict[str, Any]) -> None:
        """Where the simulator does not come back to the same observations (another version of it,
        another renderer), its episodes are closed and the next ones begin."""
        obs = self.env.load_state_dict(state)
        if not np.array_equal(obs, self.obs):
            print(
                "warning: the running episodes could not be played again to the same observation; "
                "the next ones begin instead, and the run is not the one it would have been"
            )
            self.obs = self.env.reset()
            self.is_first = np.ones(self.env.num_envs, bool)
