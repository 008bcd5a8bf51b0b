"""The full-size cases that the benchmarks measure, without their environments."""

from __future__ import annotations

import torch

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.models.distributions import Policy
from pwm_core.models.networks import Codec, ImageCodec
from pwm_core.training.replay_buffer import Field, TransitionSpec
from pwm_dmc.actor_critic import GaussianPolicy
from pwm_dmc.world_model import VectorCodec

CASES = {
    "atari": "config_files/atari.yaml",
    "dmc-proprio": "config_files/dmc.yaml",
    "dmc-visual": "config_files/dmc.yaml",
}
"""PaMoRL's full configs."""
OTHERS = {"storm": "config_files/atari.yaml,config_files/STORM.yaml"}
"""Full configs of other methods."""
ACTIONS = 6
OBSERVATIONS = 24
STORED = 4096
"""Steps in the benchmarks' replay."""


def case_parts(case: str, config: Config) -> tuple[Codec, Policy, TransitionSpec]:
    """Codec, policy and transition of a case with 6 actions and, if any, vectors of 24 numbers."""
    shape = config.BasicSettings.ObsShape
    pixels = Field(shape, torch.uint8)
    if case in ("atari", "storm"):
        spec = TransitionSpec(pixels, Field((), torch.int64))
        return ImageCodec(config.Models, shape), CategoricalPolicy(ACTIONS), spec
    settings = config.Models.Agent
    bound = torch.ones(ACTIONS)
    policy = GaussianPolicy(ACTIONS, settings.MinStd, settings.MaxStd, -bound, bound)
    action = Field((ACTIONS,), torch.float32)
    if case == "dmc-visual":
        return ImageCodec(config.Models, shape), policy, TransitionSpec(pixels, action)
    vector = Field((OBSERVATIONS,), torch.float32)
    return VectorCodec(config.Models, OBSERVATIONS), policy, TransitionSpec(vector, action)
