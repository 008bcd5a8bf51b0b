"""Small configs, models with random parameters, and batches, which several test files share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.actor_critic import ActorCritic
from pwm_core.models.distributions import Policy, SymlogTwoHot, symlog
from pwm_core.models.networks import ImageCodec
from pwm_core.models.scan import States
from pwm_core.models.sequence_models.linear_attention import LinearAttentionState
from pwm_core.models.sequence_models.memory import RecurrentMemory
from pwm_core.models.types import Batch, Context
from pwm_core.models.world_model import WorldModel
from pwm_core.training import methods
from pwm_core.training.agent import Agent
from pwm_dmc.actor_critic import GaussianPolicy

ACTIONS = 3
WIDTH, STOCH, CLASSES = 32, 6, 5  # the sizes of load_small
SMALL = (
    "BasicSettings.ObsShape=[16, 16, 3]",
    "JointTrainAgent.ImagineContext=16",
    f"Models.Hidden={WIDTH}",
    f"Models.Stoch={STOCH}",
    f"Models.Discrete={CLASSES}",
    "Models.NumBin=41",
    "Models.WorldModel.Stem=4",
)


def load_small(*overrides: str) -> Config:
    """The Atari config at sizes that take milliseconds; ``overrides`` come last."""
    return load_config(
        "config_files/atari_tiny.yaml",
        defaults="config_files/atari.yaml",
        overrides=[*SMALL, *overrides],
    )


def make_policy(config: Config, *, discrete: bool = True) -> Policy:
    if discrete:
        return CategoricalPolicy(ACTIONS)
    settings, bound = config.Models.Agent, torch.ones(ACTIONS)
    return GaussianPolicy(ACTIONS, settings.MinStd, settings.MaxStd, -bound, bound)


@torch.no_grad()
def disturb(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Add noise to every parameter and BatchNorm statistic.

    Zero-initialised layers and neutral normalisation would hide errors.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        tensor += scale * torch.randn(tensor.shape, generator=generator) / max(1, tensor.ndim - 1)
    for name, tensor in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor += scale * torch.rand(tensor.shape, generator=generator)


def make_world_model(config: Config, *, discrete: bool = True, fresh: bool = False) -> WorldModel:
    """A world model, with noise on its parameters unless ``fresh``."""
    torch.manual_seed(0)
    codec = ImageCodec(config.Models, config.BasicSettings.ObsShape)
    model = WorldModel(config.Models, codec, make_policy(config, discrete=discrete))
    if not fresh:
        disturb(model)
    return model


def make_actor_critic(config: Config, *, discrete: bool = True, fresh: bool = False) -> ActorCritic:
    """An actor-critic, with noise on its parameters unless ``fresh``.

    With noise, the slow critic differs from the critic.
    """
    torch.manual_seed(1)
    model = ActorCritic(config.Models, make_policy(config, discrete=discrete))
    if not fresh:
        disturb(model, seed=1)
        if model.slow_critic is not None:
            disturb(model.slow_critic, seed=2)
    return model


def make_agent(
    config: Config, *, discrete: bool = True, fresh: bool = False, device: str = "cpu"
) -> Agent:
    """An agent of :func:`make_world_model` and :func:`make_actor_critic`."""
    world_model = make_world_model(config, discrete=discrete, fresh=fresh)
    actor_critic = make_actor_critic(config, discrete=discrete, fresh=fresh)
    return methods.make_agent(config, world_model, actor_critic, torch.device(device))


@dataclass(frozen=True)
class Data:
    """A random replayed batch. ``firsts`` are the pairs (row, step) that begin an episode."""

    rows: int = 3
    steps: int = 7
    firsts: tuple[tuple[int, int], ...] = ()
    discrete: bool = True
    seed: int = 0

    def batch(self, config: Config) -> Batch:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.rows, self.steps)
        obs = torch.randint(
            0, 256, (*shape, *config.BasicSettings.ObsShape), generator=generator
        ).to(torch.uint8)
        if self.discrete:
            action = torch.randint(0, ACTIONS, shape, generator=generator)
        else:
            action = torch.rand(*shape, ACTIONS, generator=generator) * 2 - 1
        is_first = torch.zeros(shape, dtype=torch.bool)
        for row, step in self.firsts:
            is_first[row, step] = True
        return Batch(
            obs,
            action,
            torch.randn(shape, generator=generator),
            torch.rand(shape, generator=generator) < 0.3,
            is_first,
        )


def as_vector(latent: Tensor, classes: int = CLASSES) -> Tensor:
    """Class indices (..., S) -> one-hot vectors (..., S*K)."""
    return F.one_hot(latent, classes).flatten(-2).float()


def two_hot_weights(two_hot: SymlogTwoHot, value: Tensor) -> Tensor:
    """The two-hot encoding (..., C) float32 of ``value`` (...): linear interpolation in symlog
    space between the two nearest bins, computed in float64."""
    top, count = two_hot.max_bin, two_hot.num_bins
    bins = torch.linspace(-top, top, count, dtype=torch.float64)
    position = symlog(value.double()).clamp(-top, top)
    right = torch.searchsorted(bins, position).clamp(1, count - 1)
    share = ((position - bins[right - 1]) / (bins[right] - bins[right - 1])).unsqueeze(-1)
    weights = share * F.one_hot(right, count) + (1 - share) * F.one_hot(right - 1, count)
    return weights.float()


def dense(states: States) -> Tensor:
    """All states of a scan in full: (B, T, E, V)."""
    full = states.decay.unsqueeze(-1) * states.start.unsqueeze(2)  # (B, M, L, E, V)
    if states.keys is not None:
        full = full + torch.einsum("bmije,bmjv->bmiev", states.keys, states.values)
    return full.flatten(1, 2)[:, : states.length]


def written_out(context: Context) -> LinearAttentionState:
    """The sequence model's state at every start of ``context``, with its states in full."""

    def starting(x: Tensor) -> Tensor:
        x = x[:, context.steps].flatten(0, 1)
        return x.masked_fill(context.begins.view(-1, *[1] * (x.ndim - 1)), 0.0)

    return LinearAttentionState(
        [starting(block.previous) for block in context.history.blocks],
        [RecurrentMemory(starting(dense(block.memory))) for block in context.history.blocks],
    )


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def replace_at(x: Tensor, row: int, step: int, value: Tensor) -> Tensor:
    """A copy of ``x`` (B, T, ...) that holds ``value`` at one row and step."""
    changed = x.clone()
    changed[row, step] = value
    return changed
