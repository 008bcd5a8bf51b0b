"""Copies of the weights in bfloat16, for the parts of a step that only read them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pwm_core.models.networks import LatentLinear

PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, LatentLinear)
"""The layers whose parameters autocast would cast."""


class HalfWeights:
    """The parameters of all products in ``modules``, in bfloat16.

    Autocast casts a weight again wherever it is used, and a part of a weight each time. Imagination
    uses every weight at each of its steps. Copying them all beforehand is one kernel, and the
    numbers are those of autocast.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._places = [
            (part, name)
            for module in modules
            for part in module.modules()
            if isinstance(part, PRODUCTS)
            for name, parameter in part.named_parameters(recurse=False)
        ]
        self._copies = [
            nn.Parameter(
                torch.empty_like(part._parameters[name], dtype=torch.bfloat16), requires_grad=False
            )
            for part, name in self._places
        ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the modules have copies of their present weights. No gradient may be needed."""
        weights = [part._parameters[name] for part, name in self._places]
        with torch.no_grad():
            torch._foreach_copy_(self._copies, weights)
        try:
            for (part, name), copy in zip(self._places, self._copies, strict=True):
                part._parameters[name] = copy
            yield
        finally:
            for (part, name), weight in zip(self._places, weights, strict=True):
                part._parameters[name] = weight
