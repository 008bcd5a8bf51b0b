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
"""Number of replayed steps that are compared, each with an eager one from the same state. Two steps
that go on from two states would part more and more, because sums have no fixed order."""
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
        self._tensors = {
            id(tensor): (tensor, tensor.detach().clone()) for tensor in self._changing()
        }
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

    def measure(self, step: Callable[[], Metrics]) -> dict[str, float]:
        """Take a step: its metrics, and the norm of its change of each module's weights."""
        measured = {name: float(value) for name, value in step().items()}
        for module in self._modules:
            changes = (x.detach() - self._tensors[id(x)][1] for x in module.parameters())
            norm = torch.stack([change.norm() for change in changes]).norm()
            measured[f"the change of {type(module).__name__}"] = float(norm)
        return measured


def difference(
    modules: list[nn.Module],
    optimizers: list[Optimizer],
    eager: Callable[[], Metrics],
    captured: Callable[[], Metrics],
) -> str | None:
    """Take a few steps both ways, each from the same state, and take them all back.

    Args:
        modules, optimizers: all that a step changes.
        eager, captured: one step each. ``captured`` replays after :data:`EAGER_CALLS` calls.

    Returns:
        what differs most by more than :data:`TOLERANCE`, a metric or the norm of a step's change of
        the weights, and both its values; None where all agree.
    """
    kept, differences = _Kept(modules, optimizers), []
    try:
        for _ in range(EAGER_CALLS + 1):
            captured()
        kept.restore()
        for _ in range(REPLAYS):  # each from where the replay before it ended
            before = _Kept(modules, optimizers)
            expected = before.measure(eager)
            before.restore()
            differences += _differences(expected, before.measure(captured))
    finally:
        kept.restore()
    return max(differences, default=(0.0, None))[1]


def _differences(expected: dict[str, float], found: dict[str, float]) -> list[tuple[float, str]]:
    """What differs by more than :data:`TOLERANCE`: by how much, and as text."""
    differences = []
    for name, value in expected.items():
        off = abs(found[name] - value) / max(1.0, abs(value))
        if math.isnan(found[name]) != math.isnan(value):
            off = math.inf
        if off > TOLERANCE:
            differences.append((off, f"{name} is {found[name]:.6g} instead of {value:.6g}"))
    return differences
