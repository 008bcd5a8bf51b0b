"""The DMC world model, which encodes and decodes images or vectors and takes continuous actions."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pwm_core.config import Config, Models
from pwm_core.envs import VectorEnv
from pwm_core.models.networks import ImageCodec, Standardise, mlp
from pwm_core.models.world_model import WorldModel
from pwm_dmc.actor_critic import make_policy

LARGEST: dict[str, float | None] = {"none": None, "running": math.inf, "small": 1.0}
"""The keys are the values of ``Models.WorldModel.ObsNorm``: what entries are divided by at most."""


class VectorCodec:
    """MLPs that encode and decode proprioceptive vectors."""

    def __init__(self, models: Models, obs_size: int) -> None:
        config = models.WorldModel
        units, layers = config.MLPUnits, config.MLPLayers
        self.features = units
        largest = LARGEST[config.ObsNorm]
        self.standardise = None if largest is None else Standardise(obs_size, largest)
        norm = "layer" if config.CodecNorm == "auto" else config.CodecNorm
        self.encoder = mlp(obs_size, units, layers, models.Act, norm)
        latent_width = models.Stoch * models.Discrete
        self.decoder = nn.Sequential(
            *mlp(latent_width, units, layers, models.Act, norm), nn.Linear(units, obs_size)
        )

    def prepare(self, obs: Tensor) -> Tensor:
        """(N, O) -> (N, O) float32."""
        return obs.float() if self.standardise is None else self.standardise(obs)

    def loss(self, decoded: Tensor, prepared: Tensor) -> Tensor:
        """Half the squared error of the prepared vectors, summed over the entries: (N,) float32."""
        return 0.5 * (decoded.float() - prepared).square().sum(dim=-1)

    def frames(self, prepared: Tensor) -> None:
        """None, because a vector is no picture."""
        return None


def make_world_model(config: Config, env: VectorEnv) -> WorldModel:
    """A world model for the task of ``env``."""
    shape = env.observation_space.shape
    if config.BasicSettings.ObsType == "visual":
        codec = ImageCodec(config.Models, shape)
    else:
        codec = VectorCodec(config.Models, shape[0])
    return WorldModel(config.Models, codec, make_policy(config, env))
