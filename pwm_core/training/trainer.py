"""The training loop: act, update, store, log, save."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pwm_core.config import Config
from pwm_core.envs import Finished, VectorEnv
from pwm_core.errors import UserError
from pwm_core.runs.checkpoint import Point
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tracking import Tracker, progress_bar
from pwm_core.signals import Signals, StoppedError
from pwm_core.training.agent import Agent
from pwm_core.training.checkpointing import Checkpointer, Progress
from pwm_core.training.diagnosis import diagnose
from pwm_core.training.model_videos import log_videos
from pwm_core.training.replay_buffer import ReplayBuffer


class Trainer:
    """Runs the training from its first step, or from a checkpoint, to ``SampleMaxSteps``.

    Args:
        config: the resolved config.
        task: the environment's name, for the metrics.
        env, agent, replay: the parts of the run.
        tracker, folder: the destinations of metrics and checkpoints.
        rng: draws the warm-up's actions.
        keep: keep the weights of this many checkpoints; None keeps all.
        demonstration: a recorded trajectory that takes part in every update.
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
        demonstration: ReplayBuffer | None = None,
    ) -> None:
        self.settings, self.task = config.JointTrainAgent, task
        self.env, self.agent, self.replay, self.tracker = env, agent, replay, tracker
        self.progress = Progress.fresh(env, agent, replay, tracker, rng)
        self.checkpointer = Checkpointer(self.progress, folder, keep, tracker.writer)
        self.points = folder.points
        self.training_step = agent.training_step(replay, demonstration)
        self.signals = Signals()

    def resume(self, point: Point, content: dict[str, Any]) -> None:
        """Restore the run to the checkpoint ``point``; see :meth:`Checkpointer.restore`."""
        self.checkpointer.restore(point, content)

    def run(self) -> None:
        """Train to the end, and write a checkpoint of the last step.

        Raises:
            StoppedError: a signal asked the run to stop; a checkpoint has been written.
            UserError: too many updates in a row were not finite, or the last checkpoint could not
                be written.
        """
        with self.signals:
            if self.progress.obs is None:
                self.progress.reset_environments()
            # The fast warm-up steps have a bar of their own, so that they do not spoil the
            # estimate of the time left.
            self._run_to(self.settings.BufferWarmUp, "warm-up")
            if self.agent.compiles:
                self._compile()
            self._run_to(self.settings.SampleMaxSteps, "training")
            self.checkpointer.finish(self._log_rest)

    def _run_to(self, step: int, phase: str) -> None:
        """Take steps up to ``step`` and show a progress bar."""
        progress = self.progress
        if progress.step >= step:
            return
        with progress_bar(step, "step", initial=progress.step, phase=phase) as bar:
            while progress.step < step:
                self._step()
                bar.set_postfix_str(progress.last_return, refresh=False)
                bar.update(self.env.num_envs)

    def _compile(self) -> None:
        """Take the steps up to the first update of each kind, and say what takes so long.

        They compile what a training step runs, before the bar begins, whose estimate of the time
        left they would spoil.
        """
        progress, settings = self.progress, self.settings
        due = progress.step + max(settings.TrainModelEverySteps, settings.TrainAgentEverySteps)
        if progress.step >= settings.SampleMaxSteps:
            return
        print(
            "compiling the training step: minutes the first time on a machine, then less, because "
            "torch keeps the kernels",
            flush=True,
        )
        began = time.monotonic()
        while progress.step < min(due, settings.SampleMaxSteps):
            self._step()
        print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)

    def _step(self) -> None:
        """One agent step in every environment, and the updates that are due after it.

        The environments step while the device trains. The newest transition that an update can
        sample is therefore that of the previous step.
        """
        progress = self.progress
        learning = progress.step >= self.settings.BufferWarmUp
        if learning:
            action = self.agent.act(progress.obs, progress.is_first, progress.acting)
        else:
            action = self.env.random_actions(progress.rng)
        self.env.send(action)
        progress.step += self.env.num_envs
        if learning:
            self._train()
        result = self.env.recv()
        self.replay.add(progress.obs, action, result.reward, result.done, progress.is_first)
        progress.obs, progress.is_first = result.obs, result.is_first
        if result.finished:
            self._log_episodes(result.finished)
        if learning:
            self._log()
        self._save_if_due()

    def _crossed(self, every: int) -> int:
        """How many multiples of ``every`` the last step has reached or passed."""
        step = self.progress.step
        return step // every - (step - self.env.num_envs) // every

    def _train(self) -> None:
        """The updates that are due at this step. If both are due, they use the same batch."""
        model_updates = self._crossed(self.settings.TrainModelEverySteps)
        agent_updates = self._crossed(self.settings.TrainAgentEverySteps)
        for update in range(max(model_updates, agent_updates)):
            self.progress.metrics.add(
                self.training_step(
                    world_model=update < model_updates, actor_critic=update < agent_updates
                )
            )

    # ----------------------------------------------------------------------------------- logging

    def _log_episodes(self, finished: list[Finished]) -> None:
        """Log the episodes that ended at this step; of several, log the mean."""
        progress = self.progress
        progress.episodes += len(finished)
        mean = float(np.mean([episode.episode_return for episode in finished]))
        self.tracker.log(
            progress.step,
            {
                f"Rollout/{self.task}_reward": mean,
                "Rollout/length": float(np.mean([episode.length for episode in finished])),
                "Rollout/episodes": progress.episodes,
            },
        )
        progress.last_return = f"return {mean:g}"

    def _log(self) -> None:
        """Log the metrics and videos that are due."""
        if self._crossed(self.settings.LogEverySteps):
            self._log_metrics()
            self._check_updates()
        if self._crossed(self.settings.VideoLogStep):
            batch = self.replay.sample(self.settings.BatchSize, self.settings.BatchLength)
            for name, frames in log_videos(self.agent, batch).items():
                self.tracker.video(self.progress.step, name, frames)

    def _log_metrics(self) -> None:
        """Log the means over the updates since the last line."""
        step = self.progress.step
        counts = {"frames": step * self.env.frame_skip}
        counts["Rollout/worker_restarts"] = self.env.restarts
        self.tracker.log(step, self.progress.metrics.take() | self.agent.skipped() | counts)

    def _log_rest(self) -> None:
        """At the end of the run, log the updates since the last line, if there are any."""
        if self.progress.metrics:
            self._log_metrics()

    def _check_updates(self) -> None:
        """End the run if too many updates in a row were skipped.

        Raises:
            UserError: names the part that is no longer finite and the last checkpoint.
        """
        most = self.settings.MaxSkippedUpdates
        for name, optimizer in self.agent.optimizers.items():
            in_a_row = optimizer.take_longest()
            if in_a_row > most:
                self.tracker.flush()
                steps = self.points.steps()
                saved = f"the checkpoint of step {steps[-1]} is there" if steps else "none is saved"
                raise UserError(
                    f"step {self.progress.step}: {in_a_row} updates of {name} in a row were "
                    "skipped, because they were not finite "
                    f"(JointTrainAgent.MaxSkippedUpdates = {most}). "
                    f"{diagnose(self.agent, self.replay)}; {saved}"
                )

    # ------------------------------------------------------------------------------------ saving

    def _save_if_due(self) -> None:
        """Write a checkpoint if one is due or a signal asks for it.

        Raises:
            StoppedError: the signal also asked the run to stop.
        """
        asked, stop = self.signals.take_save(), self.signals.stop
        due = asked or stop or self._crossed(self.settings.SaveEverySteps)
        if not due or self.progress.step >= self.settings.SampleMaxSteps:  # run() writes the last
            return
        saved = self.checkpointer.save(wait=stop is not None)
        if stop:
            what = "a checkpoint was written; -resume continues from there"
            if not saved:
                what = "no checkpoint could be written; -resume continues from the one before"
            raise StoppedError(f"{stop} at step {self.progress.step}: {what}")
