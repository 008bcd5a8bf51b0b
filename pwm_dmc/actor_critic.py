"""The DMC actor-critic: a Gaussian policy within the task's action bounds."""

from __future__ import annotations

import torch

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import GaussianPolicy


def make_policy(config: Config, env: VectorEnv) -> GaussianPolicy:
    """Independent normals over the task's actuators."""
    agent, space = config.Models.Agent, env.action_space
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    return GaussianPolicy(len(low), agent.MinStd, agent.MaxStd, low, high)


def make_actor_critic(config: Config, env: VectorEnv) -> ActorCritic:
    """Actor and critic for the task of ``env``."""
    return ActorCritic(config.Models, make_policy(config, env))
