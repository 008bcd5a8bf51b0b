"""The DMC actor-critic: a Gaussian policy within the task's action bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic


class GaussianPolicy:
    """Independent normals: mean tanh(.), std = min + (max - min) sigmoid(. + 2), as the published
    agent has them (0.1 + 0.9 sigmoid). Actions (..., A) are clipped to [low, high].

    Args:
        num_actions: A.
        min_std, max_std: range of the standard deviation.
        low, high: the bounds of an action, (A,) or scalars.
    """

    discrete = False

    def __init__(
        self,
        num_actions: int,
        min_std: float,
        max_std: float,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
    ) -> None:
        self.num_actions = num_actions
        self.output_width = 2 * num_actions
        self.min_std, self.max_std = min_std, max_std
        self._bounds: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.low, self.high = torch.as_tensor(low), torch.as_tensor(high)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Lowest and highest actions, (A,) or scalars, kept on ``device``."""
        if device not in self._bounds:
            self._bounds[device] = self.low.to(device), self.high.to(device)
        return self._bounds[device]

    def _parameters(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = output.float().chunk(2, dim=-1)
        return mean.tanh(), self.min_std + (self.max_std - self.min_std) * (raw + 2).sigmoid()

    def sample(self, output: Tensor) -> Tensor:
        """``output`` (..., 2A) -> unclipped actions (..., A) float32."""
        mean, std = self._parameters(output)
        return mean + std * torch.randn_like(mean)

    def mode(self, output: Tensor) -> Tensor:
        """tanh(mean)."""
        return self._parameters(output)[0]

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-density of the unclipped ``action`` (..., A), summed over A."""
        mean, std = self._parameters(output)
        squared = ((action - mean) / std).square()
        return -(0.5 * squared + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """(...) float32 nats, summed over A."""
        _, std = self._parameters(output)
        return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """What the world model takes in and the environment executes: the clipped action."""
        return action.clamp(*self.bounds(action.device))


def make_policy(config: Config, env: VectorEnv) -> GaussianPolicy:
    """Independent normals over the task's actuators."""
    agent, space = config.Models.Agent, env.action_space
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    return GaussianPolicy(len(low), agent.MinStd, agent.MaxStd, low, high)


def make_actor_critic(config: Config, env: VectorEnv) -> ActorCritic:
    """Actor and critic for the task of ``env``."""
    return ActorCritic(config.Models, make_policy(config, env))
