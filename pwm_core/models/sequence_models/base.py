"""The interface through which training, imagination and acting use a sequence model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class SequenceState(Protocol):
    """The recurrent state of a sequence model between two steps, for N sequences."""

    def reset(self, is_first: Tensor) -> Self:
        """A copy that is zeros where ``is_first`` (N,) bool is set."""

    def clone(self) -> Self:
        """A copy that shares no memory."""

    def copy_(self, other: Self) -> None:
        """Copy ``other``'s values into this state's own tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the tensors keep their place in memory."""


class SequenceHistory(Protocol):
    """The states after every step of B replayed sequences."""

    def start(self, steps: slice, zero: Tensor, horizon: int) -> Any:
        """A state from which :meth:`SequenceModel.step` can be called ``horizon`` times.

        Args:
            steps: the steps of every sequence to start after; N is B times their number.
            zero: (N,) bool, the starts whose state is zeros.
            horizon: largest number of steps that will be taken.

        Returns:
            a state for ``step`` alone; it cannot be copied or saved.
        """


class SequenceModel(nn.Module, ABC):
    """(z_t, a_t) -> deter_t, over a whole sequence at once or one step at a time.

    Both ways compute the same numbers. Training uses the parallel one; acting and imagination use
    the recurrent one.

    A subclass is constructed with ``(models, action)``: the sizes, and the width A of an encoded
    action.
    """

    @abstractmethod
    def forward(
        self, latent: Tensor, action: Tensor, is_first: Tensor, *, return_history: bool = False
    ) -> tuple[Tensor, SequenceHistory | None]:
        """All T steps at once, from zero states.

        Args:
            latent: vectors (B, T, S*K), or class indices (B, T, S) int64.
            action: (B, T, A) encoded actions.
            is_first: (B, T) bool; the state before such a step is zeros.
            return_history: also return the states after every step.

        Returns:
            deter (B, T, D), and the history or None.
        """

    @abstractmethod
    def step(self, latent: Tensor, action: Tensor, state: Any) -> Tensor:
        """One step: a latent and an action (N, A) -> deter (N, D).

        ``state`` is updated in place.
        """

    @abstractmethod
    def initial_state(self, count: int, device: torch.device) -> SequenceState:
        """Zero states for ``count`` sequences."""
