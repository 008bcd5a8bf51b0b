"""Imagined rollouts: the policy acts inside the world model, one recurrent step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import sample_index
from pwm_core.models.types import Context, Trajectory
from pwm_core.models.world_model import WorldModel


@torch.no_grad()
def imagined_step(
    world_model: WorldModel, actor_critic: ActorCritic, deter: Tensor, latent: Tensor, state: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of N rollouts: the policy acts, and the world model predicts what follows.

    Its shapes are the same at every step, so that it is compiled once.

    Args:
        deter, latent: (N, D) float32 and (N, S) int64.
        state: of the sequence model; updated in place.

    Returns:
        the next deter and latent, the actor's output (N, ...) and the action (N,) or (N, A).
    """
    policy = actor_critic.policy
    output = actor_critic.actor(deter, latent)
    action = policy.sample(output)
    deter = world_model.sequence.step(latent, policy.encode(action), state).float()
    return deter, sample_index(world_model.predict_latent(deter)), output, action


@torch.no_grad()
def evaluate(
    world_model: WorldModel,
    actor_critic: ActorCritic,
    deter: Tensor,
    output: Tensor,
    action: Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What follows from the imagined steps, all at once.

    Args:
        deter: (N, H, D) the states that the actions led to.
        output: (N, H, ...) the actor's outputs.
        action: (N, H) or (N, H, A).
        gamma: discount of one agent step.

    Returns:
        the actions' log-probabilities, the rewards and the discounts, (N, H) float32.
    """
    reward, continues = world_model.predict(deter)
    return actor_critic.policy.log_prob(output, action), reward, gamma * continues.float()


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    actor_critic: ActorCritic,
    context: Context,
    horizon: int,
    gamma: float,
    *,
    step: Callable[..., tuple[Tensor, ...]] = imagined_step,
    evaluate: Callable[..., tuple[Tensor, ...]] = evaluate,
) -> Trajectory:
    """``horizon`` recurrent steps from every state of ``context`` (PaMoRL, section 3.2).

    Call it with the world model in eval mode. No gradient flows.

    Args:
        context: the N states to start from.
        horizon: H.
        gamma: discount of one agent step.
        step, evaluate: :func:`imagined_step` and :func:`evaluate`, or compiled versions of them.
    """
    state = context.history.start(context.steps, context.begins, horizon)
    deter, latent = context.deter.float(), context.latent
    deters, latents, outputs, actions = [deter], [latent], [], []
    for _ in range(horizon):
        deter, latent, output, action = step(world_model, actor_critic, deter, latent, state)
        deters.append(deter)
        latents.append(latent)
        outputs.append(output)
        actions.append(action)
    action = torch.stack(actions, dim=1)  # (N, H) or (N, H, A)
    deter = torch.stack(deters, dim=1)  # (N, H+1, D)
    output = torch.stack(outputs, dim=1)  # (N, H, ...)
    found = evaluate(world_model, actor_critic, deter[:, 1:], output, action, gamma)
    return Trajectory(deter, torch.stack(latents, dim=1), action, *found)
