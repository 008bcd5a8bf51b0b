"""Distributions and encodings: symlog two-hot, straight-through categoricals, policies."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)`` (DreamerV3, equation 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


class SymlogTwoHot(nn.Module):
    """A scalar as a categorical over ``num_bins`` bins that are evenly spaced in symlog space.

    A value is encoded as weights on its two nearest bins. Logits are decoded to the symexp of the
    mean bin (DreamerV3, section "Critic learning"). Values beyond the last bins are clipped.

    Attributes:
        bins: (C,) float32 bin centres in symlog space, a buffer without learned content.
    """

    bins: Tensor

    def __init__(self, num_bins: int, max_bin: float) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.max_bin = float(max_bin)
        self._width = 2 * self.max_bin / (num_bins - 1)
        bins = torch.linspace(-self.max_bin, self.max_bin, num_bins)
        self.register_buffer("bins", bins, persistent=False)

    def _position(self, value: Tensor) -> Tensor:
        """The position of ``value`` (...) on the axis of bins, a float in [0, C - 1]."""
        symlogged = symlog(value.float()).clamp(-self.max_bin, self.max_bin)
        return (symlogged + self.max_bin) / self._width

    def count_clipped(self, value: Tensor) -> Tensor:
        """How many of ``value`` lie beyond the bins: a float32 scalar that stays on the device."""
        return (symlog(value.detach().float()).abs() > self.max_bin).sum().float()

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy of ``logits`` (..., C) with ``value`` (...) as two-hot: (...) float32.

        The loss of a NaN is NaN.
        """
        logits = logits.float()
        position = self._position(value)
        # A NaN must not become an index: an index error would end the run, but only the update is
        # to be skipped.
        low = position.nan_to_num().floor().clamp(max=self.num_bins - 2)
        weight = (position - low).unsqueeze(-1)
        low = low.long().unsqueeze(-1)
        # Only two bins carry weight. Gathering them avoids a target of shape (..., C).
        picked = logits.gather(-1, low) * (1 - weight) + logits.gather(-1, low + 1) * weight
        return logits.logsumexp(-1) - picked.squeeze(-1)

    def decode(self, logits: Tensor) -> Tensor:
        """``logits`` (..., C) -> the expected value (...) float32."""
        with torch.autocast(logits.device.type, enabled=False):  # values stay float32
            return symexp(logits.float().softmax(-1) @ self.bins.float())


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """``(1 - unimix) softmax(logits) + unimix / K``, (..., K) float32."""
    return logits.softmax(-1, torch.float32) * (1 - unimix) + unimix / logits.shape[-1]


def sample_index(probs: Tensor) -> Tensor:
    """Draw from categoricals ``probs`` (..., K): indices (...) int64.

    On a device this is :func:`exponential_race`, because a float cumsum is not deterministic there.
    On a CPU it inverts the cumulative distribution, which takes one random number per categorical.
    The host does not wait for the device.
    """
    if probs.device.type != "cpu":
        return exponential_race(probs)
    total = probs.cumsum(-1)
    threshold = torch.rand_like(total[..., :1]) * total[..., -1:]
    return (total <= threshold).sum(-1).clamp_(max=probs.shape[-1] - 1)


def exponential_race(probs: Tensor) -> Tensor:
    """Draw from categoricals ``probs`` (..., K): indices (...) int64.

    Class k arrives after an exponential time of rate ``probs_k``; the first to arrive is drawn with
    probability ``probs_k / sum(probs)``. A class of probability 0 is never drawn.
    """
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``index`` (...) int64 -> (..., classes)."""
    if torch.compiler.is_compiling():  # a comparison is fused with its neighbours, a scatter is not
        return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).to(dtype)
    encoded = torch.zeros(*index.shape, classes, dtype=dtype, device=index.device)
    return encoded.scatter_(-1, index.unsqueeze(-1), 1.0)


def straight_through_sample(probs: Tensor) -> Tensor:
    """A one-hot sample (..., K) of ``probs`` (..., K); its gradient is that of ``probs``."""
    sample = one_hot(sample_index(probs.detach()), probs.shape[-1], probs.dtype)
    return sample + (probs - probs.detach())


def log_probs(probs: Tensor) -> Tensor:
    """``log(probs)``, finite also where a probability has underflowed to 0."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` in nats from log-probabilities (..., K): (...)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats from log-probabilities (..., K): (...)."""
    return -(log_probs.exp() * log_probs).sum(-1)


class Policy(Protocol):
    """How a domain's actions are drawn from the actor's output.

    Attributes:
        discrete: whether actions are indices (...) int64; otherwise they are vectors (..., A)
            float32.
        num_actions: A, which is also the width of an encoded action.
        output_width: width of the actor's output.
    """

    discrete: bool
    num_actions: int
    output_width: int

    def sample(self, output: Tensor) -> Tensor:
        """Draw actions from the actor's ``output`` (..., output_width)."""

    def mode(self, output: Tensor) -> Tensor:
        """The most probable actions."""

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-probability or log-density of ``action``."""

    def entropy(self, output: Tensor) -> Tensor:
        """(...) float32 nats."""

    def mixed_entropy(self, output: Tensor) -> Tensor:
        """Entropy of an action when the state is not known, a float32 scalar in nats.

        The state is equally likely each of those that ``output`` (..., output_width) belongs to.
        """

    def encode(self, action: Tensor) -> Tensor:
        """The world model's input for ``action``: (..., A) float32."""


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """``max(minimum, kl)`` in nats, without a gradient where ``kl`` is below ``minimum``."""
    return F.threshold(kl, minimum, minimum)
