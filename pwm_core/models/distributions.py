"""Distributions and encodings: symlog two-hot, straight-through categoricals, the policies'."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)`` (DreamerV3, equation 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


class SymlogTwoHot:
    """A scalar as a categorical over ``num_bins`` bins, evenly spaced in symlog space.

    Encodes to the two nearest bins, weighted by closeness, and decodes to the symexp of the mean
    (DreamerV3, section "Critic learning"). Values beyond the ends are clipped to them.
    """

    def __init__(self, num_bins: int, max_bin: float) -> None:
        self.num_bins = num_bins
        self.max_bin = float(max_bin)
        self._width = 2 * self.max_bin / (num_bins - 1)
        self._bins: dict[torch.device, Tensor] = {}

    def bins(self, device: torch.device) -> Tensor:
        """(C,) float32 bin centres in symlog space."""
        if device not in self._bins:
            self._bins[device] = torch.linspace(
                -self.max_bin, self.max_bin, self.num_bins, device=device
            )
        return self._bins[device]

    def encode(self, value: Tensor) -> Tensor:
        """``value`` (...) -> (..., C) float32 weights: at most two are non-zero, the sum is 1."""
        position = self._position(value)
        index = torch.arange(self.num_bins, device=value.device)
        return (1 - (position.unsqueeze(-1) - index).abs()).clamp_min_(0)

    def _position(self, value: Tensor) -> Tensor:
        """Where ``value`` lies on the bin axis, a float in [0, C - 1]."""
        symlogged = symlog(value.float()).clamp(-self.max_bin, self.max_bin)
        return (symlogged + self.max_bin) / self._width

    def count_clipped(self, value: Tensor) -> Tensor:
        """How many of ``value`` lie beyond the bins: a float32 scalar, left on the device."""
        return (symlog(value.detach().float()).abs() > self.max_bin).sum().float()

    def loss(self, logits: Tensor, value: Tensor) -> Tensor:
        """Cross-entropy of ``logits`` (..., C) with the two-hot ``value`` (...): (...) float32.

        A NaN gives NaN."""
        logits = logits.float()
        position = self._position(value)
        # A NaN may be no index: that would end the run, where its update is only to be skipped.
        low = position.nan_to_num().floor().clamp(max=self.num_bins - 2)
        weight = (position - low).unsqueeze(-1)
        low = low.long().unsqueeze(-1)
        # Only two bins carry weight: gathering them spares a (..., C) target.
        picked = logits.gather(-1, low) * (1 - weight) + logits.gather(-1, low + 1) * weight
        return logits.logsumexp(-1) - picked.squeeze(-1)

    def decode(self, logits: Tensor) -> Tensor:
        """``logits`` (..., C) -> the expected value (...) float32."""
        with torch.autocast(logits.device.type, enabled=False):  # values keep their float32
            return symexp(logits.float().softmax(-1) @ self.bins(logits.device))


def unimix_probs(logits: Tensor, unimix: float) -> Tensor:
    """``(1 - unimix) softmax(logits) + unimix / K``, (..., K) float32."""
    return logits.float().softmax(-1) * (1 - unimix) + unimix / logits.shape[-1]


def sample_index(probs: Tensor) -> Tensor:
    """Draw from categoricals ``probs`` (..., K): indices (...) int64.

    By inversion of the running sum: one random number per categorical, no host round trip.
    """
    total = probs.cumsum(-1)
    threshold = torch.rand_like(total[..., :1]) * total[..., -1:]
    return (total <= threshold).sum(-1).clamp_(max=probs.shape[-1] - 1)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``index`` (...) int64 -> (..., classes)."""
    encoded = torch.zeros(*index.shape, classes, dtype=dtype, device=index.device)
    return encoded.scatter_(-1, index.unsqueeze(-1), 1.0)


def straight_through_sample(probs: Tensor) -> Tensor:
    """A one-hot sample (..., K) whose gradient is that of the probabilities."""
    sample = one_hot(sample_index(probs.detach()), probs.shape[-1], probs.dtype)
    return sample + (probs - probs.detach())


def log_probs(probs: Tensor) -> Tensor:
    """``log(probs)``, finite where a probability underflowed (possible without unimix)."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)`` of log-probabilities (..., K), summed over the last dim: (...)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of log-probabilities (..., K): (...)."""
    return -(log_probs.exp() * log_probs).sum(-1)


class CategoricalPolicy:
    """A discrete policy; actions are indices (...) int64."""

    discrete = True

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.output_width = num_actions

    def sample(self, output: Tensor) -> Tensor:
        """``output`` (..., A) logits -> actions (...) int64."""
        return sample_index(output.float().softmax(-1))

    def mode(self, output: Tensor) -> Tensor:
        """The most probable action."""
        return output.argmax(-1)

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-probability of ``action``."""
        return output.float().log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """(...) float32 nats."""
        return categorical_entropy(output.float().log_softmax(-1))

    def encode(self, action: Tensor) -> Tensor:
        """What the world model takes in: one-hot (..., A)."""
        return one_hot(action, self.num_actions)


class GaussianPolicy:
    """Independent normals: mean tanh(.), std = min + (max - min) sigmoid(. + 2) (SPEC of the
    published DMC agent: 0.1 + 0.9 sigmoid). Actions (..., A) are clipped to [low, high]."""

    discrete = False

    def __init__(
        self,
        num_actions: int,
        min_std: float,
        max_std: float,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
    ) -> None:
        self.num_actions = num_actions
        self.output_width = 2 * num_actions
        self.min_std, self.max_std = min_std, max_std
        self._bounds: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.low, self.high = torch.as_tensor(low), torch.as_tensor(high)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Lowest and highest actions, (A,) or scalars, kept on ``device``."""
        if device not in self._bounds:
            self._bounds[device] = self.low.to(device), self.high.to(device)
        return self._bounds[device]

    def _parameters(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = output.float().chunk(2, dim=-1)
        return mean.tanh(), self.min_std + (self.max_std - self.min_std) * (raw + 2).sigmoid()

    def sample(self, output: Tensor) -> Tensor:
        """``output`` (..., 2A) -> unclipped actions (..., A) float32."""
        mean, std = self._parameters(output)
        return mean + std * torch.randn_like(mean)

    def mode(self, output: Tensor) -> Tensor:
        """tanh(mean)."""
        return self._parameters(output)[0]

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """(...) float32 log-density of the unclipped ``action`` (..., A), summed over A."""
        mean, std = self._parameters(output)
        squared = ((action - mean) / std).square()
        return -(0.5 * squared + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """(...) float32 nats, summed over A."""
        _, std = self._parameters(output)
        return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def encode(self, action: Tensor) -> Tensor:
        """What the world model takes in and the environment executes: the clipped action."""
        return action.clamp(*self.bounds(action.device))


Policy = CategoricalPolicy | GaussianPolicy


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """``max(minimum, kl)``: below it there is no gradient."""
    return F.threshold(kl, minimum, minimum)
