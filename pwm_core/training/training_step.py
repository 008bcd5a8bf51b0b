"""The updates of one step, as eager calls, compiled, or replayed as one CUDA graph.

A full-size step launches thousands of small kernels; launched one by one from Python they take many
times longer than they compute. A CUDA graph records them once, sampling from the replay and the
optimisers included, and launches them all with one call.
"""

from __future__ import annotations

from pwm_core.models.world_model import Batch, Metrics
from pwm_core.training.agent import Agent
from pwm_core.training.cuda_graph import Recorded
from pwm_core.training.replay_buffer import ReplayBuffer


class TrainingStep:
    """Samples a batch and makes the updates that are due, as ``BasicSettings.Compile`` says.

    Args:
        agent: what is updated.
        replay: what it is updated on. Where it lies in host memory the batch is copied to the
            device ahead of the graph; on the device sampling is part of the graph.
    """

    def __init__(self, agent: Agent, replay: ReplayBuffer) -> None:
        self._agent, self._replay = agent, replay
        self._settings = agent.config.JointTrainAgent
        self._captures = agent.captures
        self._recorded: dict[tuple[bool, bool], Recorded[Metrics]] = {}
        self._batch: Batch | None = None

    def __call__(self, *, model: bool, actor: bool) -> Metrics:
        """Update the world model, the actor-critic, or both on one batch; scalars on the device."""
        if not self._captures:
            return self._update(self._sample(), model, actor)
        if self._replay.place.type != "cuda":
            self._copy_in(self._sample())
        key = (model, actor)
        if key not in self._recorded:
            self._recorded[key] = Recorded(
                lambda: self._update(self._batch or self._sample(), model, actor)
            )
        return self._recorded[key]()

    def _sample(self) -> Batch:
        return self._replay.sample(self._settings.BatchSize, self._settings.BatchLength)

    def _copy_in(self, batch: Batch) -> None:
        """Into the tensors that the graph reads."""
        if self._batch is None:
            self._batch = Batch(*(field.clone() for field in batch))
        for static, field in zip(self._batch, batch, strict=True):
            static.copy_(field, non_blocking=True)

    def _update(self, batch: Batch, model: bool, actor: bool) -> Metrics:
        metrics: Metrics = {}
        if model:
            metrics |= self._agent.train_world_model(batch)
        if actor:
            metrics |= self._agent.train_actor_critic(self._agent.imagine(batch))
        return metrics
