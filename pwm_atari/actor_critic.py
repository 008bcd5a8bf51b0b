"""The Atari actor-critic: a categorical policy."""

from __future__ import annotations

import torch
from torch import Tensor

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import categorical_entropy, one_hot, sample_index


class CategoricalPolicy:
    """A categorical policy; actions are indices (...) int64."""

    discrete = True

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.output_width = num_actions

    def sample(self, output: Tensor) -> Tensor:
        """Draw actions (...) int64 from the logits ``output`` (..., A)."""
        return sample_index(output.float().softmax(-1))

    def mode(self, output: Tensor) -> Tensor:
        """The most probable actions (...) int64."""
        return output.argmax(-1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-probability of ``action``."""
        return output.float().log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """Entropy (...) float32 in nats."""
        return categorical_entropy(output.float().log_softmax(-1))

    def mixed_entropy(self, output: Tensor) -> Tensor:
        """Entropy of the probabilities averaged over all states: a float32 scalar in nats."""
        mean = output.float().softmax(-1).flatten(0, -2).mean(0)
        return -torch.xlogy(mean, mean).sum()

    def encode(self, action: Tensor) -> Tensor:
        """The world model's input: ``action`` as one-hot vectors (..., A) float32."""
        return one_hot(action, self.num_actions)


def make_policy(env: VectorEnv) -> CategoricalPolicy:
    """A categorical policy over the game's minimal action set."""
    return CategoricalPolicy(int(env.action_space.n))


def make_actor_critic(config: Config, env: VectorEnv) -> ActorCritic:
    """Actor and critic for the games of ``env``."""
    return ActorCritic(config.Models, make_policy(env))
