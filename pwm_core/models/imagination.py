"""Imagined rollouts: the policy acts inside the world model, one recurrent step at a time."""

from __future__ import annotations

import torch

from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.types import Context, Trajectory
from pwm_core.models.world_model import WorldModel


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    actor_critic: ActorCritic,
    context: Context,
    horizon: int,
    gamma: float,
) -> Trajectory:
    """``horizon`` recurrent steps from every state of ``context`` (PaMoRL, section 3.2).

    Call it with the world model in eval mode. No gradient flows.

    Args:
        context: the N states to start from.
        horizon: H.
        gamma: discount of one agent step.
    """
    policy = actor_critic.policy
    state = context.history.start(context.steps, context.begins, horizon)
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
    reward, continues = world_model.predict(deter[:, 1:])  # (N, H)
    discount = gamma * continues.float()
    return Trajectory(deter, torch.stack(latents, dim=1), action, log_prob, reward, discount)
