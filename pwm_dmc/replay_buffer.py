"""The fields of a DMC transition: an 8-bit image or a float vector, and the executed action."""

from __future__ import annotations

import torch

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.training.replay_buffer import Field, TransitionSpec


def transition(config: Config, env: VectorEnv) -> TransitionSpec:
    """Images (height, width, 3) uint8 or vectors (O,) float32, and actions (A,) float32."""
    pixels = config.BasicSettings.ObsType == "visual"
    return TransitionSpec(
        obs=Field(env.observation_space.shape, torch.uint8 if pixels else torch.float32),
        action=Field(env.action_space.shape, torch.float32),
    )
