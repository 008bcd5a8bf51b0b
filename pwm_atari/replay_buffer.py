"""The fields of an Atari transition: an 8-bit image and an action index."""

from __future__ import annotations

import torch

from pwm_core.config import Config
from pwm_core.envs import VectorEnv
from pwm_core.training.replay_buffer import Field, TransitionSpec


def transition(config: Config, env: VectorEnv) -> TransitionSpec:
    """Images (height, width, channels) uint8 and actions () int64."""
    return TransitionSpec(
        obs=Field(env.observation_space.shape, torch.uint8), action=Field((), torch.int64)
    )
