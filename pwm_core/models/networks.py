"""Building blocks: MLPs, layers that take a latent, the gated unit, and codecs.

A codec is the encoder, the decoder and the reconstruction loss of one type of observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pwm_core.config import Models

NORM_EPS = 1e-5

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "SiLU": nn.SiLU,
    "Mish": nn.Mish,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "ELU": nn.ELU,
}


class BatchNorm1d(nn.BatchNorm1d):
    """torch's BatchNorm, but in eval mode it is one pass on a CPU, about five times faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) -> (N, features)."""
        if self.training:
            return super().forward(x)
        if x.device.type != "cpu":  # there it is one kernel
            return super().forward(x.float())
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return torch.addcmul(self.bias - self.running_mean * scale, x.float(), scale)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm of the channels at each position of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, height, width) -> the same shape, channels last in memory."""
        return rearrange(super().forward(rearrange(x, "n c h w -> n h w c")), "n h w c -> n c h w")


VECTOR_NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm1d, "layer": nn.LayerNorm}
IMAGE_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}
"""The keys are values of ``Models.WorldModel.CodecNorm``; ``none`` has no module."""


def mlp(inputs: int, units: int, layers: int, act: str, norm: str = "layer") -> nn.Sequential:
    """``layers`` x [Linear (no bias), normalisation, act], ``units`` wide.

    Args:
        norm: a key of :data:`VECTOR_NORMS`; or ``none``, and then the Linears have biases.
    """
    modules: list[nn.Module] = []
    for layer in range(layers):
        width = inputs if layer == 0 else units
        modules.append(nn.Linear(width, units, bias=norm == "none"))
        modules += _normalised(units, VECTOR_NORMS, norm, act)
    return nn.Sequential(*modules)


def _normalised(
    width: int, norms: dict[str, type[nn.Module]], norm: str, act: str
) -> list[nn.Module]:
    """A normalisation of ``width`` channels, unless it is ``none``, and an activation."""
    normalisation = [] if norm == "none" else [norms[norm](width, eps=NORM_EPS)]
    return [*normalisation, ACTIVATIONS[act]()]


def head(
    inputs: int, units: int, layers: int, act: str, outputs: int, *, zero: bool = True
) -> nn.Sequential:
    """An :func:`mlp`, then a Linear (with bias) to ``outputs``.

    Args:
        zero: start the last Linear with zeros.
    """
    last = nn.Linear(units, outputs)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*mlp(inputs, units, layers, act), last)


BAGS = 1024
"""Latents per group, few enough for their gradients to stay in cache."""


class _SumRows(torch.autograd.Function):
    """:func:`sum_rows` on a CPU, with a gradient about five times faster than torch's."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        """Table (S*K, outputs) and index (N, S) int64 -> (N, outputs)."""
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return F.embedding_bag(index, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The sum of the gradients of the latents that picked each row: (S*K, outputs)."""
        (index,) = ctx.saved_tensors
        count, slots = index.shape
        groups = -(-count // BAGS)
        group = torch.arange(count).unsqueeze(1) // BAGS
        row, place = (index + group * ctx.rows).flatten().sort()
        begin = torch.searchsorted(row, torch.arange(groups * ctx.rows))
        sums = F.embedding_bag(place // slots, grad.contiguous(), begin, mode="sum")
        return sums.view(groups, ctx.rows, grad.shape[1]).sum(0), None


class _GatherRows(torch.autograd.Function):
    """:func:`sum_rows` on a device: the rows are gathered; the gradient is a product."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        """Table (S*K, outputs) and index (N, S) int64 -> (N, outputs)."""
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        if torch.compiler.is_compiling():  # it becomes one kernel with its neighbours
            return F.embedding(index, table).sum(1)
        return F.embedding_bag(index, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The product of the multi-hot vectors and the gradients: (S*K, outputs)."""
        (index,) = ctx.saved_tensors
        multi_hot = grad.new_zeros(len(index), ctx.rows).scatter_(1, index, 1.0)
        return multi_hot.t() @ grad, None


def sum_rows(table: Tensor, index: Tensor) -> Tensor:
    """Sum the rows of ``table`` that ``index`` picks.

    This is the product of a multi-hot vector with ``table``. On a CPU, picking the rows is about
    ten times faster than multiplying by zeros. On a device it is one kernel instead of three.

    Args:
        table: (S*K, outputs).
        index: (..., S) int64, without repetition in the last dimension.

    Returns:
        (..., outputs).
    """
    pick = _SumRows if index.device.type == "cpu" else _GatherRows
    return pick.apply(table, index.flatten(0, -2)).view(*index.shape[:-1], table.shape[1])


class LatentLinear(nn.Module):
    """A linear layer without bias whose input is a vector and a latent.

    It is initialised as ``nn.Linear``. Its weight has the shape (inputs + S*K, outputs), so that
    each row that a one-hot latent picks is contiguous.
    """

    def __init__(self, inputs: int, stoch: int, classes: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        total = inputs + stoch * classes
        bound = total**-0.5
        self.weight = nn.Parameter(torch.empty(total, outputs).uniform_(-bound, bound))
        offset = torch.arange(stoch) * classes
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """The output (..., outputs) for a vector and a latent.

        Args:
            x: (..., inputs).
            latent: class indices (..., S) int64, or vectors (..., S*K) floating.
        """
        if latent.is_floating_point():
            return torch.cat([x, latent], dim=-1) @ self.weight
        if x.device.type != "cpu":
            return self._on_device(x, latent)
        return x @ self.weight[: self.inputs] + sum_rows(
            self.weight[self.inputs :], latent + self.offset
        )

    def _on_device(self, x: Tensor, latent: Tensor) -> Tensor:
        """:meth:`forward` with fewer kernels: one cast, and the sum as part of the product."""
        weight, kind = self.weight, x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            weight = weight.to(torch.get_autocast_dtype(kind))
        rows = sum_rows(weight[self.inputs :], latent + self.offset)
        product = torch.addmm(rows.flatten(0, -2), x.flatten(0, -2), weight[: self.inputs])
        return product.view(rows.shape)


class LatentNet(nn.Module):
    """A :class:`LatentLinear`, then LayerNorm, activation and the layers ``rest``."""

    def __init__(self, inputs: int, models: Models, *rest: nn.Module) -> None:
        super().__init__()
        width = models.Hidden
        self.first = LatentLinear(inputs, models.Stoch, models.Discrete, width)
        norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.rest = nn.Sequential(norm, ACTIVATIONS[models.Act](), *rest)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """A vector (..., inputs) and a latent, as for :class:`LatentLinear` -> (..., outputs)."""
        return self.rest(self.first(x, latent))


def latent_head(models: Models, outputs: int) -> LatentNet:
    """A :func:`head` whose input is a state (deter, latent)."""
    width, layers = models.Hidden, models.Agent.Layers
    last = head(width, width, layers - 1, models.Act, outputs, zero=models.ZeroHeads)
    return LatentNet(width, models, *last)


class GatedUnit(nn.Module):
    """``LayerNorm(act(y W_a) * (y W_b) + y)`` with dropout on the product (PaMoRL, section 3.1)."""

    def __init__(self, width: int, act: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2 * width)
        self.act = ACTIVATIONS[act]()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        a, b = self.gate(y).chunk(2, dim=-1)
        return self.norm(self.dropout(self.act(a) * b) + y)


class Standardise(nn.Module):
    """Subtract the mean of all vectors seen in training, and divide by their standard deviation.

    Each entry has its own mean and standard deviation. It is clipped to 10 standard deviations. In
    training mode a call first counts its vectors in; all batches count the same.

    Args:
        size: entries of a vector.
        largest: no entry is divided by more than this.
    """

    LEAST, MOST = 0.01, 10.0
    """The least standard deviation, for entries that hardly change, and the clip."""

    def __init__(self, size: int, largest: float = math.inf) -> None:
        super().__init__()
        self._largest = largest
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, size) -> (N, size) float32."""
        x = x.float()
        if self.training:
            self._count(x)
        spread = self.variance.sqrt().clamp_min(self.LEAST)
        away = (x - self.mean).clamp(-self.MOST * spread, self.MOST * spread)
        return away / spread.clamp_max(self._largest)

    @torch.no_grad()
    def _count(self, x: Tensor) -> None:
        self.batches += 1
        share, away = 1 / self.batches, x.mean(0) - self.mean
        self.variance.lerp_(x.var(0, unbiased=False), share)
        self.variance += share * (1 - share) * away.square()
        self.mean += share * away


class Codec(Protocol):
    """Encoder, decoder and reconstruction loss of one type of observation."""

    encoder: nn.Module
    decoder: nn.Module
    standardise: nn.Module | None
    """What :meth:`prepare` standardises observations with."""
    features: int
    """Width of the encoder's output."""

    def prepare(self, obs: Tensor) -> Tensor:
        """Stored observations (N, ...) -> the encoder's input, which is also the loss's target."""

    def loss(self, decoded: Tensor, prepared: Tensor) -> Tensor:
        """Reconstruction error of each observation: (N,) float32."""

    def frames(self, prepared: Tensor) -> Tensor | None:
        """Pictures (N, height, width, channels) uint8, or None if observations are no pictures."""


class _ImageError(torch.autograd.Function):
    """:func:`quantised_loss`, with one tensor of the images' size instead of four each way."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, prepared: Tensor) -> Tensor:
        """Two tensors of images (N, channels, height, width) -> (N,) float32."""
        error = decoded - prepared  # float32, as ``prepared``
        torch.hardshrink(error, 0.5 / 255, out=error)
        ctx.save_for_backward(error)
        ctx.dtype = decoded.dtype
        return torch.linalg.vector_norm(error, dim=(1, 2, 3)).square_().mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The error itself, times the gradient (N,) of each image."""
        (error,) = ctx.saved_tensors
        return (error * grad.view(-1, 1, 1, 1)).to(ctx.dtype), None


def quantised_loss(decoded: Tensor, prepared: Tensor) -> Tensor:
    """Half the squared error, summed over an image: (N,) float32.

    A value counts 0 if it agrees with its target after rounding to 8 bits.
    """
    return _ImageError.apply(decoded, prepared)


def squared_loss(decoded: Tensor, prepared: Tensor) -> Tensor:
    """The squared error, summed over an image: (N,) float32."""
    return (decoded.float() - prepared).square().sum(dim=(1, 2, 3))


IMAGE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quantised": quantised_loss,
    "squared": squared_loss,
}
"""The keys are the values of ``Models.WorldModel.ImageLoss``."""


class ImageCodec:
    """Stride-2 convolutions for images, in channels-last memory format (PaMoRL, appendix)."""

    def __init__(self, models: Models, obs_shape: tuple[int, int, int]) -> None:
        height, _, channels = obs_shape
        config = models.WorldModel
        stages = round(math.log2(height / config.MinRes))
        widths = [config.Stem * 2**stage for stage in range(stages)]
        self.features = widths[-1] * config.MinRes**2
        self.norm = "batch" if config.CodecNorm == "auto" else config.CodecNorm
        self.standardise = None
        self.encoder = self._encoder(channels, widths, models.Act)
        self.decoder = self._decoder(channels, widths, models)
        self._error = IMAGE_LOSSES[config.ImageLoss]

    def _encoder(self, channels: int, widths: list[int], act: str) -> nn.Sequential:
        modules: list[nn.Module] = []
        bias = self.norm == "none"
        for inputs, outputs in zip([channels, *widths], widths, strict=False):
            modules.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=bias))
            modules += _normalised(outputs, IMAGE_NORMS, self.norm, act)
        return nn.Sequential(*modules, nn.Flatten()).to(memory_format=torch.channels_last)

    def _decoder(self, channels: int, widths: list[int], models: Models) -> nn.Sequential:
        resolution, bias = models.WorldModel.MinRes, self.norm == "none"
        modules: list[nn.Module] = [
            nn.Linear(models.Stoch * models.Discrete, self.features, bias=bias),
            nn.Unflatten(-1, (widths[-1], resolution, resolution)),
        ]
        if self.norm != "none":
            modules.append(IMAGE_NORMS[self.norm](widths[-1], eps=NORM_EPS))
        for inputs, outputs in zip(widths[::-1], widths[-2::-1], strict=False):
            modules.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias))
            modules += _normalised(outputs, IMAGE_NORMS, self.norm, models.Act)
        modules.append(nn.ConvTranspose2d(widths[0], channels, 4, 2, 1))
        if models.WorldModel.ImageOutput == "sigmoid":
            modules.append(nn.Sigmoid())
        return nn.Sequential(*modules).to(memory_format=torch.channels_last)

    def prepare(self, obs: Tensor) -> Tensor:
        """Stored images -> what the encoder takes.

        Args:
            obs: (N, height, width, channels) uint8.

        Returns:
            (N, channels, height, width) float32 in [0, 1], channels last in memory.
        """
        return rearrange(obs, "n h w c -> n c h w").float().div_(255)

    def loss(self, decoded: Tensor, prepared: Tensor) -> Tensor:
        """The function of :data:`IMAGE_LOSSES` that the config names: (N,) float32."""
        return self._error(decoded, prepared)

    def frames(self, prepared: Tensor) -> Tensor:
        """(N, channels, height, width) in [0, 1] -> (N, height, width, channels) uint8."""
        pixels = prepared.detach().float().clamp(0, 1).mul(255).round()
        return rearrange(pixels.to(torch.uint8), "n c h w -> n h w c")
