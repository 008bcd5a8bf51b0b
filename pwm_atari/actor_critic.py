"""The Atari actor-critic: a categorical policy."""

from __future__ import annotations

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import CategoricalPolicy


def make_policy(env: VectorEnv) -> CategoricalPolicy:
    """A categorical over the game's minimal action set."""
    return CategoricalPolicy(int(env.action_space.n))


def make_actor_critic(config: Config, env: VectorEnv) -> ActorCritic:
    """Actor and critic for the games of ``env``."""
    return ActorCritic(config.Models, make_policy(env))
