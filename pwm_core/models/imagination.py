"""Imagined rollouts: the world model runs on recurrently while the policy acts in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.world_model import Context, WorldModel


class Trajectory(NamedTuple):
    """N imagined rollouts of H steps.

    Attributes:
        deter: (N, H+1, D) float32 and
        latent: (N, H+1, S) int64: the states, the start first.
        action: (N, H) int64 or (N, H, A) float32, as the policy drew it (unclipped).
        log_prob: (N, H) float32, of the policy that acted.
        reward: (N, H) float32.
        discount: (N, H) float32, gamma or 0 past a predicted end.
    """

    deter: Tensor
    latent: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    discount: Tensor


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    actor_critic: ActorCritic,
    context: Context,
    horizon: int,
    gamma: float,
) -> Trajectory:
    """``horizon`` recurrent steps from every state of ``context`` (PaMoRL, section 3.2).

    The world model is to be in eval mode. No gradient flows.
    """
    policy, state = actor_critic.policy, context.recurrent_state(horizon)
    deter, latent = context.deter.float(), context.latent
    deters, latents, outputs, actions = [deter], [latent], [], []
    for _ in range(horizon):
        output = actor_critic.actor(deter, latent)
        action = policy.sample(output)
        deter = world_model.sequence.step(latent, policy.encode(action), state).float()
        latent = sample_index(world_model.predict_latent(deter))
        deters.append(deter)
        latents.append(latent)
        outputs.append(output)
        actions.append(action)
    action = torch.stack(actions, dim=1)  # (N, H) or (N, H, A)
    log_prob = policy.log_prob(torch.stack(outputs, dim=1), action)  # (N, H)
    deter = torch.stack(deters, dim=1)  # (N, H+1, D)
    reward, goes_on = world_model.predict(deter[:, 1:])  # (N, H)
    discount = gamma * goes_on.float()
    return Trajectory(deter, torch.stack(latents, dim=1), action, log_prob, reward, discount)
