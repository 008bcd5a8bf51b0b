"""The state of a training run, and the checkpoints from which it resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.runs.checkpoint import NewTransitions, Point
from pwm_core.runs.run_folder import DIFFER, RunFolder
from pwm_core.runs.tensor_files import copied, to_arrays, to_tensors
from pwm_core.runs.tracking import MeanMetrics, Tracker
from pwm_core.runs.writer import Writer
from pwm_core.runtime import random_state, set_random_state
from pwm_core.training.acting import ActingState
from pwm_core.training.agent import Agent
from pwm_core.training.replay_buffer import ReplayBuffer


@dataclass
class Progress:
    """Everything that changes while a run trains.

    Attributes:
        env, agent, replay, tracker: the parts of the run, each with its own state.
        rng: draws the warm-up's actions.
        acting: recurrent state kept between environment steps.
        obs: (N, *observation_shape) the observation to act on next; None before the first reset.
        is_first: (N,) bool, whether ``obs`` begins an episode.
        step: agent steps so far, summed over all environments.
        episodes: whole episodes that have ended.
        last_return: text of the progress bar.
        metrics: means since the last logged line.
    """

    env: VectorEnv
    agent: Agent
    replay: ReplayBuffer
    tracker: Tracker
    rng: np.random.Generator
    acting: ActingState
    is_first: np.ndarray
    obs: np.ndarray | None = None
    step: int = 0
    episodes: int = 0
    last_return: str = ""
    metrics: MeanMetrics = field(default_factory=MeanMetrics)

    @classmethod
    def fresh(
        cls,
        env: VectorEnv,
        agent: Agent,
        replay: ReplayBuffer,
        tracker: Tracker,
        rng: np.random.Generator,
    ) -> Progress:
        """A run before its first step."""
        acting, is_first = agent.initial_state(env.num_envs), np.ones(env.num_envs, bool)
        return cls(env, agent, replay, tracker, rng, acting, is_first)

    def reset_environments(self) -> None:
        """Begin an episode in every environment."""
        self.obs = self.env.reset()
        self.is_first = np.ones(self.env.num_envs, bool)


class Checkpointer:
    """Writes checkpoints of a run, and restores the run from one.

    Args:
        progress: the state to write and to restore.
        folder: the run's folder.
        keep: keep the weights of this many checkpoints; None keeps all.
        writer: writes the files.
    """

    def __init__(
        self, progress: Progress, folder: RunFolder, keep: int | None, writer: Writer
    ) -> None:
        self.progress, self.folder, self.keep, self.writer = progress, folder, keep, writer
        self._written = True

    def save(self, log_rest: Callable[[], None] | None = None, *, wait: bool = True) -> bool | None:
        """Write a checkpoint of this step, after those before it.

        Args:
            wait: return when it is written. Otherwise training may go on, and the writer works on
                a copy.
            log_rest: logs what the end of the run leaves to log. The checkpoint does not know of
                it, so that the metrics of an extended run are those of one that never ended.

        Returns:
            whether it was written, or None without ``wait``. If the disk does not allow it, a
            warning is printed and earlier checkpoints stay untouched.
        """
        progress = self.progress
        self.writer.wait()
        progress.tracker.flush()
        state = progress.agent.state_dict()
        weights = {name: state.pop(name) for name in ("world_model", "actor_critic")}
        content = to_tensors(self._content() | state)
        transitions = self.folder.points.read(progress.replay)
        if self.writer.background:
            weights, content = copied(weights), copied(content)
        if log_rest:
            log_rest()
            progress.tracker.flush()
        self.writer.submit(partial(self._write, progress.step, weights, content, transitions))
        if not wait:
            return None
        self.writer.wait()
        return self._written

    def _write(
        self, step: int, weights: dict[str, Any], content: Any, transitions: NewTransitions
    ) -> None:
        """Write the files of a checkpoint; a job of the writer."""
        self._written = False
        try:
            files = self.folder.save(step, weights)
            self.folder.points.save(step, files, content, transitions)
            self.folder.prune(self.keep)
        except OSError as error:
            print(
                f"\nwarning: the checkpoint of step {step} could not be written "
                f"({error.strerror}); earlier ones are untouched and training continues"
            )
            return
        self._written = True

    def finish(self, log_rest: Callable[[], None]) -> None:
        """Write the last checkpoint of a finished run.

        Args:
            log_rest: see :meth:`save`.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if not self.save(log_rest):
            raise UserError("the run's last checkpoint is missing; make room and -resume")
        self.folder.points.finish()
        self.folder.prune(self.keep)

    def _content(self) -> dict[str, Any]:
        """The state of everything except the agent and the replay."""
        progress = self.progress
        return {
            "step": progress.step,
            "episodes": progress.episodes,
            "last_return": progress.last_return,
            "obs": progress.obs,
            "is_first": progress.is_first,
            "env": progress.env.state_dict(),
            "acting": progress.acting.state_dict(),
            "metrics": progress.metrics.state_dict(),
            "metrics_file": progress.tracker.metrics.state_dict(),
            "random": random_state(progress.rng, progress.agent.device),
            "replay_place": progress.replay.place.type,
        }

    def restore(self, point: Point, content: dict[str, Any]) -> None:
        """Restore the run to the checkpoint ``point``, whose file holds ``content``.

        Raises:
            UserError: ``content`` was written by another version of this code.
        """
        try:
            self._restore(point, content)
            episodes, random = to_arrays(content["env"]), content["random"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"the checkpoint of step {point.step} cannot be resumed: it was written by "
                f"another version of this code ({type(error).__name__}: {error}); use the commit "
                "in run.json, or start a new run"
            ) from None
        self._restore_episodes(episodes)
        progress = self.progress
        set_random_state(random, progress.rng, progress.agent.device)
        was, now = content.get("replay_place"), progress.replay.place.type
        if was is not None and was != now:  # sequences are drawn by a generator of that place
            print(f"{DIFFER} the replay was in memory of {was} and is in memory of {now}")

    def _restore(self, point: Point, content: dict[str, Any]) -> None:
        progress, device = self.progress, self.progress.agent.device
        weights = self.folder.load_weights(point.step, device)
        progress.agent.load_state_dict(weights | content)
        for first, fields in self.folder.points.transitions(point):
            progress.replay.write(first, fields)
        progress.step, progress.episodes = content["step"], content["episodes"]
        progress.last_return = content["last_return"]
        progress.acting.load_state_dict(content["acting"])
        progress.metrics.load_state_dict(content["metrics"], device)
        progress.tracker.metrics.load_state_dict(content["metrics_file"])
        progress.obs = to_arrays(content["obs"])
        progress.is_first = to_arrays(content["is_first"])

    def _restore_episodes(self, state: dict[str, Any]) -> None:
        """Replay the running episodes from their seeds and actions.

        If the simulator, for example in another version, does not reach the same observations, new
        episodes begin.
        """
        obs = self.progress.env.load_state_dict(state)
        if not np.array_equal(obs, self.progress.obs):
            print(
                "warning: the running episodes could not be replayed to the same observation; "
                "new episodes begin instead, so this run differs from an uninterrupted one"
            )
            self.progress.reset_environments()
