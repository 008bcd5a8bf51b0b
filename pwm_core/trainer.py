"""The training loop: act, store, update, log, save."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pwm_core.agent import Agent
from pwm_core.checkpoint import RunFolder
from pwm_core.config import Config
from pwm_core.envs import Finished, VectorEnv
from pwm_core.replay_buffer import ReplayBuffer
from pwm_core.tracking import MeanMetrics, Tracker, progress_bar
from pwm_core.video import log_videos


class Trainer:
    """Drives one run from its first step to ``SampleMaxSteps``.

    Args:
        config: the resolved config.
        task: the environment's name, for the metrics.
        env, agent, replay: the parts it moves.
        tracker, folder: where metrics and checkpoints go.
        rng: draws the warm-up's actions.
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
    ) -> None:
        self.config, self.settings, self.task = config, config.JointTrainAgent, task
        self.env, self.agent, self.replay = env, agent, replay
        self.tracker, self.folder, self.rng = tracker, folder, rng
        self.step, self.episodes = 0, 0
        self._last_return = ""  # for the progress bar
        self.metrics = MeanMetrics()
        self.acting = agent.initial_state(env.num_envs)

    def run(self) -> None:
        """Train to the end; a checkpoint is written at the last step, and when interrupted."""
        try:
            self._run()
        except KeyboardInterrupt:
            self.save()
            print(f"\ninterrupted; the checkpoint of step {self.step} was written")
            raise
        if not self._crossed(self.settings.SaveEverySteps):
            self.save()

    def _run(self) -> None:
        total = self.settings.SampleMaxSteps
        obs = self.env.reset()
        is_first = np.ones(self.env.num_envs, bool)
        while self.step < self.settings.BufferWarmUp:
            obs, is_first = self._step(obs, is_first)
        # The warm-up takes a second; counted in, it would make the time left far too short.
        with progress_bar(total, "step", initial=self.step) as bar:
            while self.step < total:
                obs, is_first = self._step(obs, is_first)
                bar.set_postfix_str(self._last_return, refresh=False)
                bar.update(self.env.num_envs)

    def _step(self, obs: np.ndarray, is_first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One agent step in every environment and the updates that are due after it."""
        learning = self.step >= self.settings.BufferWarmUp
        if learning:
            action = self.agent.act(obs, is_first, self.acting)
        else:
            action = self.env.random_actions(self.rng)
        result = self.env.step(action)
        self.replay.add(obs, action, result.reward, result.done, is_first)
        self.step += self.env.num_envs
        if result.finished:
            self._log_episodes(result.finished)
        if learning:
            self._train()
            self._log()
        if self._crossed(self.settings.SaveEverySteps):
            self.save()
        return result.obs, result.is_first

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
            batch = self.replay.sample(self.settings.BatchSize, self.settings.BatchLength)
            if update < model_updates:
                self.metrics.add(self.agent.train_world_model(batch))
            if update < agent_updates:
                trajectory = self.agent.imagine(batch)
                self.metrics.add(self.agent.train_actor_critic(trajectory))

    def _log(self) -> None:
        """Metrics and videos that are due."""
        if self._crossed(self.settings.LogEverySteps):
            frames = self.step * self.env.frame_skip
            self.tracker.log(self.step, {**self.metrics.take(), "frames": frames})
        if self._crossed(self.settings.VideoLogStep):
            batch = self.replay.sample(self.settings.BatchSize, self.settings.BatchLength)
            for name, frames in log_videos(self.agent, batch).items():
                self.tracker.video(self.step, name, frames)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self.tracker.flush()
        state = self.agent.state_dict()
        weights = {name: state.pop(name) for name in ("world_model", "actor_critic")}
        self.folder.save(self.step, weights, state | self._counters())

    def _counters(self) -> dict[str, Any]:
        """What the loop itself must remember to go on."""
        return {
            "episodes": self.episodes,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy_rng": str(self.rng.bit_generator.state),
        }
