"""Imagined rollouts: the world model runs on recurrently while the policy acts in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pwm_core.actor_critic import ActorCritic
from pwm_core.linear_attention import ImaginedMemory, RecurrentState
from pwm_core.world_model import Context, WorldModel


class Trajectory(NamedTuple):
    """N imagined rollouts of H steps.

    Attributes:
        feature: (N, H+1, D + S*K) states: concat(deter, stoch).
        action: (N, H) int64 or (N, H, A) float32, as the policy drew it (unclipped).
        log_prob: (N, H) float32, of the policy that acted.
        reward: (N, H) float32.
        discount: (N, H) float32, gamma or 0 past a predicted end.
    """

    feature: Tensor
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
    state = RecurrentState(
        [block.previous for block in context.states],
        [ImaginedMemory(block.memory, horizon) for block in context.states],
    )
    policy, stoch, deter = actor_critic.policy, context.stoch, context.deter
    features, actions, log_probs, deters = [torch.cat([deter.float(), stoch], -1)], [], [], []
    for _ in range(horizon):
        output = actor_critic.actor(features[-1])
        action = policy.sample(output)
        deter = world_model.sequence.step(stoch, policy.encode(action), state)
        stoch = world_model.sample(world_model.prior_log_probs(deter))
        features.append(torch.cat([deter.float(), stoch], -1))
        actions.append(action)
        log_probs.append(policy.log_prob(output, action))
        deters.append(deter)
    reward, goes_on = world_model.predict(torch.stack(deters, dim=1))  # (N, H)
    return Trajectory(
        torch.stack(features, dim=1),
        torch.stack(actions, dim=1),
        torch.stack(log_probs, dim=1),
        reward,
        gamma * goes_on.float(),
    )
