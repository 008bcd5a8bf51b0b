"""A sentence on which part of the training is not finite."""

from __future__ import annotations

import torch

from pwm_core.training.agent import Agent
from pwm_core.training.replay_buffer import ReplayBuffer


def diagnose(agent: Agent, replay: ReplayBuffer) -> str:
    """Find what is not finite: a parameter, replayed values, or a loss on a new batch."""
    for name, module in (("world model", agent.world_model), ("actor-critic", agent.actor_critic)):
        for key, value in module.state_dict().items():
            if not torch.isfinite(value).all():
                return f"the {name}'s {key} holds NaN or infinity"
    for key, count in replay.count_not_finite().items():
        if count:
            return f"{count} values of {key} in the replay are NaN or infinite: see the environment"
    return _losses(agent, replay)


@torch.no_grad()
def _losses(agent: Agent, replay: ReplayBuffer) -> str:
    batches = agent.draw(replay)
    with agent.autocast():
        metrics = agent.world_model.train().loss(batches[0])[1]
    bad = [f"WorldModel/{key}" for key, value in metrics.items() if not torch.isfinite(value)]
    if not bad:
        trajectory = agent.imagine(*batches)
        with agent.autocast():
            metrics = agent.actor_critic.loss(trajectory)[1]
        bad = [f"ActorCritic/{key}" for key, value in metrics.items() if not torch.isfinite(value)]
    if bad:
        return f"on a fresh batch these are not finite: {', '.join(bad)}; a lower LR may help"
    return "losses of a fresh batch are finite, so it is the gradients that overflow: lower the LR"
