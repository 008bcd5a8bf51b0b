"""The Atari world model, which encodes and decodes images and takes one-hot actions."""

from __future__ import annotations

from pwm_atari.actor_critic import make_policy
from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.networks import ImageCodec
from pwm_core.models.world_model import WorldModel


def make_world_model(config: Config, env: VectorEnv) -> WorldModel:
    """A world model for the games of ``env``."""
    codec = ImageCodec(config.Models, env.observation_space.shape)
    return WorldModel(config.Models, codec, make_policy(env))
