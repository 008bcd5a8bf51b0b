"""The DMC actor-critic: a Gaussian policy within the task's action bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic


class GaussianPolicy(nn.Module):
    """A Gaussian policy with independent components, as in the published agent.

    From the actor's output (x, y), the mean is ``tanh(x)`` and the standard deviation is
    ``min + (max - min) sigmoid(y + 2)``. Actions (..., A) are clipped to [low, high].

    Args:
        num_actions: A.
        min_std, max_std: range of the standard deviation; the published agent has 0.1 and 1.
        low, high: bounds of an action, (A,) or scalars; buffers without learned content.
    """

    discrete = False
    low: Tensor
    high: Tensor

    def __init__(
        self,
        num_actions: int,
        min_std: float,
        max_std: float,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.output_width = 2 * num_actions
        self.min_std, self.max_std = min_std, max_std
        self.register_buffer("low", torch.as_tensor(low), persistent=False)
        self.register_buffer("high", torch.as_tensor(high), persistent=False)

    def _mean_std(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """``output`` (..., 2A) -> mean and standard deviation, (..., A) float32."""
        mean, raw = output.float().chunk(2, dim=-1)
        return mean.tanh(), self.min_std + (self.max_std - self.min_std) * (raw + 2).sigmoid()

    def sample(self, output: Tensor) -> Tensor:
        """Draw unclipped actions (..., A) float32 from ``output`` (..., 2A)."""
        mean, std = self._mean_std(output)
        return mean + std * torch.randn_like(mean)

    def mode(self, output: Tensor) -> Tensor:
        """The means (..., A)."""
        return self._mean_std(output)[0]

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-density of the unclipped ``action`` (..., A), summed over A."""
        mean, std = self._mean_std(output)
        squared = ((action - mean) / std).square()
        return -(0.5 * squared + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """Entropy (...) float32 in nats, summed over A."""
        _, std = self._mean_std(output)
        return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mixed_entropy(self, output: Tensor) -> Tensor:
        """Entropy of the mixture of the Gaussians of all states: a float32 scalar in nats.

        It is that of independent Gaussians with the mixture's variances, the most that the
        mixture can have. It is exact if all states have the same Gaussian.
        """
        mean, std = (part.flatten(0, -2) for part in self._mean_std(output))
        variance = mean.var(0, correction=0) + std.square().mean(0)
        return 0.5 * (2 * math.pi * math.e * variance).log().sum()

    def encode(self, action: Tensor) -> Tensor:
        """The clipped ``action``, which the world model reads and the environment executes."""
        return action.clamp(self.low, self.high)


def make_policy(config: Config, env: VectorEnv) -> GaussianPolicy:
    """A Gaussian policy over the task's actuators."""
    settings, space = config.Models.Agent, env.action_space
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    return GaussianPolicy(len(low), settings.MinStd, settings.MaxStd, low, high)


def make_actor_critic(config: Config, env: VectorEnv) -> ActorCritic:
    """Actor and critic for the task of ``env``."""
    return ActorCritic(config.Models, make_policy(config, env))
