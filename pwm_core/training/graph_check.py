"""Whether a captured training step computes what the eager one computes, tried out at start-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pwm_core.models.types import Metrics
from pwm_core.training.cuda_graph import EAGER_CALLS
from pwm_core.training.optimizer import Optimizer

REPLAYS = 2
"""Number of replayed steps that are compared."""
TOLERANCE = 1e-3
"""Largest difference of a metric, relative to its size, or absolute below 1. Both ways launch the
same kernels, so only sums whose order is not fixed may differ."""


class _Kept:
    """The state that a step changes, so that steps can be taken back.

    AdamW makes its own state at the first step. What was not there before is set to zeros, with
    which AdamW begins.
    """

    def __init__(self, modules: list[nn.Module], optimizers: list[Optimizer]) -> None:
        self._modules, self._optimizers = modules, optimizers
        self._tensors = {id(tensor): (tensor, tensor.clone()) for tensor in self._changing()}
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def _changing(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from module.parameters()
            yield from module.buffers()
        for optimizer in self._optimizers:
            yield from (optimizer.skipped, optimizer.in_a_row, optimizer.longest)
            for state in optimizer.adamw.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the state in place, so that a graph goes on to read it."""
        for tensor in self._changing():
            kept = self._tensors.get(id(tensor))
            tensor.zero_() if kept is None else tensor.copy_(kept[1])
        torch.set_rng_state(self._random)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def difference(
    modules: list[nn.Module],
    optimizers: list[Optimizer],
    eager: Callable[[], Metrics],
    captured: Callable[[], Metrics],
) -> str | None:
    """Take the same few steps both ways, and take them back.

    Args:
        modules, optimizers: all that a step changes.
        eager, captured: one step each. The first :data:`EAGER_CALLS` calls of ``captured`` are
            eager too, the others are compared.

    Returns:
        the metric that differs most by more than :data:`TOLERANCE`, and both its values; None where
        all agree.
    """
    kept, courses = _Kept(modules, optimizers), []
    for step in (eager, captured):
        course = []
        try:
            for _ in range(EAGER_CALLS + REPLAYS):
                course.append({name: float(value) for name, value in step().items()})
        finally:
            kept.restore()
        courses.append(course[EAGER_CALLS:])
    worst, text = TOLERANCE, None
    for before, after in zip(*courses, strict=True):
        for name, value in before.items():
            off = abs(after[name] - value) / max(1.0, abs(value))
            if math.isnan(after[name]) != math.isnan(value):
                off = math.inf
            if off > worst:
                worst, text = off, f"{name} is {after[name]:.6g} instead of {value:.6g}"
    return text
