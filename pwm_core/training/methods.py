"""The agents by the names of ``Models.Method``."""

from __future__ import annotations

import torch

from pwm_core.config import Config
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.world_model import WorldModel
from pwm_core.training.agent import Agent
from pwm_core.training.storm import StormAgent

METHODS: dict[str, type[Agent]] = {"pamorl": Agent, "storm": StormAgent}
"""The keys are the values of ``Models.Method``."""


def make_agent(
    config: Config, world_model: WorldModel, actor_critic: ActorCritic, device: torch.device
) -> Agent:
    """The agent of the configured method."""
    return METHODS[config.Models.Method](config, world_model, actor_critic, device)
