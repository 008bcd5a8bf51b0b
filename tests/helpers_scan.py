"""Inputs of the scan, which several test files share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

B, E, V = 3, 4, 5
RESETS = ("none", "first", "middle", "last", "all", "per_row")
DECAYS = ("mixed", "near_0", "near_1", "extreme")

# Largest error beside float64 `sequential`, relative to the largest number of the tensor (or 1).
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
TF32_TOLERANCE = dict.fromkeys(("sequential", "odd_even", "kogge_stone", "chunked"), 2e-3)
TF32_TOLERANCE["triton"] = TOLERANCE[torch.float32]
"""Largest error of each backend with float32 products in TF32, by norm. Triton's sums are no
products, so TF32 does not change them."""


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    initial_state: Tensor


def make_log_decay(kind: str, length: int, keys: int = E) -> Tensor:
    """(B, T, E) float64 ``log g``, at most 0."""
    shape = (B, length, keys)
    match kind:
        case "mixed":
            return torch.nn.functional.logsigmoid(2 * torch.randn(shape).double())
        case "near_0":
            return -15 - 10 * torch.rand(shape).double()
        case "near_1":
            return -1e-6 * torch.rand(shape).double()
        case "extreme":
            values = torch.tensor([-1e4, -0.0, -1e-8, -1e-30]).double()
            return values[torch.randint(len(values), shape)]
    raise ValueError(kind)


def make_inputs(length: int, decay: str = "mixed", keys: int = E, columns: int = V) -> Inputs:
    """float64 inputs that float32 holds exactly, so that both types compute the same thing."""
    torch.manual_seed(length)
    q, k, v = (torch.randn(B, length, width) for width in (keys, keys, columns))
    values = (q, k, v, make_log_decay(decay, length, keys), torch.randn(B, keys, columns))
    return Inputs(*(x.float().double() for x in values))


def make_reset(kind: str, length: int) -> Tensor | None:
    """(B, T) bool."""
    if kind == "none":
        return None
    reset = torch.zeros(B, length, dtype=torch.bool)
    if kind == "per_row":
        return torch.rand(B, length, generator=torch.Generator().manual_seed(length)) < 0.15
    columns = {"first": 0, "middle": length // 2, "last": -1, "all": slice(None)}
    reset[:, columns[kind]] = True
    return reset
