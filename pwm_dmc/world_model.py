"""The DMC world model: pixels or proprioception in and out, continuous actions."""

from __future__ import annotations

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.models.networks import ImageCodec, VectorCodec
from pwm_core.models.world_model import WorldModel
from pwm_dmc.actor_critic import make_policy


def make_world_model(config: Config, env: VectorEnv) -> WorldModel:
    """A world model for the task of ``env``."""
    shape = env.observation_space.shape
    if config.BasicSettings.ObsType == "visual":
        codec = ImageCodec(config.Models, shape)
    else:
        codec = VectorCodec(config.Models, shape[0])
    return WorldModel(config.Models, codec, make_policy(config, env))
