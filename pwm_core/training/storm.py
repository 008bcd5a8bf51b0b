"""STORM's agent: where its imagination starts, and how it acts.

It is the agent of ``Models.Method: storm``. What else STORM computes differently is a key of the
config (``config_files/STORM.yaml``), and its sequence model is ``attention`` (Zhang et al., NeurIPS
2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pwm_core.models.distributions import sample_index
from pwm_core.models.types import Batch, Context, concatenate
from pwm_core.training.agent import Agent
from pwm_core.training.replay_buffer import ReplayBuffer


class StormAgent(Agent):
    """An agent whose policy reads predicted latents.

    Imagination starts after contexts that are sampled apart from the world model's batch. Both
    there and when acting, the policy reads ``(deter_{t-1}, z_t)`` with a ``z_t`` that is drawn from
    the prior. It thus acts on the current frame as the world model predicts it, before it is seen.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._context = self._compiled(self.world_model.predicted_context)

    def draw(
        self, replay: ReplayBuffer, demonstration: ReplayBuffer | None = None
    ) -> tuple[Batch, ...]:
        """The world model's batch, and the contexts (N, ImagineContext) to imagine from."""
        settings = self.config.JointTrainAgent
        (batch,) = super().draw(replay, demonstration)
        length = settings.ImagineContext
        contexts = replay.sample_contexts(settings.ImagineBatchSize, length)
        if demonstration is not None:
            count = settings.ImagineDemonstrationBatchSize
            contexts = concatenate(contexts, demonstration.sample_contexts(count, length))
        return batch, contexts

    def _starts(self, batch: Batch) -> Context:
        return self._context(batch)

    def _choose(self, deter: Tensor, latent: Tensor, is_first: Tensor, greedy: bool) -> Tensor:
        """See :meth:`Agent._choose`. Where an episode begins there is nothing to predict from, and
        the action is random."""
        predicted = sample_index(self.world_model.predict_latent(deter))
        action = self.actor_critic.act(deter, predicted, greedy=greedy)
        at_random = self.actor_critic.act_at_random(len(deter), deter.device)
        begins = is_first.view(-1, *[1] * (action.ndim - 1))
        return torch.where(begins, at_random, action)
