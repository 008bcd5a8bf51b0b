"""The frame of the sequence models whose state is one vector: everything but the recurrence.

A block differs from one of linear attention in its recurrence alone::

    y_t = LayerNorm( mixer(u)_t + u_t )
    h_t = LayerNorm( act(y_t W_a) * (y_t W_b) + y_t )

In training, dropout is applied to the mixer's output and to the gated product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.networks import NORM_EPS, GatedUnit, LatentNet
from pwm_core.models.sequence_models.base import SequenceModel


class Mixer(nn.Module, ABC):
    """A recurrence over the steps of a sequence, with states of E numbers."""

    @abstractmethod
    def forward(self, u: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """A whole sequence from zero states.

        Args:
            u: (B, T, D).
            is_first: (B, T) bool; the state before such a step is zeros.

        Returns:
            outputs (B, T, D), and the states after every step (B, T, E).
        """

    @abstractmethod
    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: input (N, D) and state (N, E) -> output (N, D) and the new state (N, E)."""

    @abstractmethod
    def initial_state(self, count: int, device: torch.device) -> Tensor:
        """Zero states (N, E) for ``count`` sequences."""


class MixerBlock(nn.Module):
    """A mixer and a gated unit."""

    def __init__(self, models: Models, mixer: Mixer) -> None:
        super().__init__()
        config, width = models.WorldModel, models.Hidden
        self.mixer = mixer
        self.dropout = nn.Dropout(config.Dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.gated = GatedUnit(width, config.BlockAct, config.Dropout)

    def finish(self, u: Tensor, mixed: Tensor) -> Tensor:
        """Mixer output (..., D) and block input (..., D) -> block output (..., D)."""
        return self.gated(self.norm(self.dropout(mixed) + u))


@dataclass
class VectorState:
    """The recurrent state of N sequences.

    Attributes:
        blocks: for each block, its mixer's state (N, E).
    """

    blocks: list[Tensor]

    def reset(self, is_first: Tensor) -> VectorState:
        """A copy that is zeros where ``is_first`` (N,) bool is set."""
        mask = is_first.unsqueeze(-1)
        return VectorState([state.masked_fill(mask, 0.0) for state in self.blocks])

    def clone(self) -> VectorState:
        """A copy that shares no memory."""
        return VectorState([state.clone() for state in self.blocks])

    def copy_(self, other: VectorState) -> None:
        """Copy ``other``'s values into this state's own tensors."""
        for mine, new in zip(self.blocks, other.blocks, strict=True):
            mine.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name."""
        return {"blocks": self.blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the tensors keep their place in memory."""
        self.copy_(VectorState(state["blocks"]))


class VectorHistory(NamedTuple):
    """The states after every step of B replayed sequences.

    Attributes:
        blocks: for each block, its mixer's states (B, T, E).
    """

    blocks: list[Tensor]

    def start(self, steps: slice, zero: Tensor, horizon: int) -> VectorState:
        """The state after ``steps`` of every sequence; see :class:`SequenceHistory`."""
        return VectorState([states[:, steps].flatten(0, 1) for states in self.blocks]).reset(zero)


class MixerModel(SequenceModel):
    """Input layer and mixer blocks: (z_t, a_t) -> deter_t. A subclass names the mixer."""

    make_mixer: Callable[[Models], Mixer]

    def __init__(self, models: Models, action: int) -> None:
        super().__init__()
        width = models.Hidden
        self.input_layer = LatentNet(
            action, models, nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=NORM_EPS)
        )
        self.blocks = nn.ModuleList(
            MixerBlock(models, type(self).make_mixer(models))
            for _ in range(models.WorldModel.Blocks)
        )
        self.output_tanh = models.WorldModel.OutputTanh

    def forward(
        self, latent: Tensor, action: Tensor, is_first: Tensor, *, return_history: bool = False
    ) -> tuple[Tensor, VectorHistory | None]:
        """All T steps at once, from zero states; see :class:`SequenceModel`."""
        hidden = self.input_layer(action, latent)  # (B, T, D)
        history = []
        for block in self.blocks:
            mixed, states = block.mixer(hidden, is_first)
            hidden = block.finish(hidden, mixed)
            history.append(states)
        return self._output(hidden), VectorHistory(history) if return_history else None

    def step(self, latent: Tensor, action: Tensor, state: VectorState) -> Tensor:
        """One step: a latent and an action (N, A) -> deter (N, D).

        ``state`` is updated in place.
        """
        hidden = self.input_layer(action, latent)
        for index, block in enumerate(self.blocks):
            mixed, state.blocks[index] = block.mixer.step(hidden, state.blocks[index])
            hidden = block.finish(hidden, mixed)
        return self._output(hidden)

    def _output(self, hidden: Tensor) -> Tensor:
        return hidden.tanh() if self.output_tanh else hidden

    def initial_state(self, count: int, device: torch.device) -> VectorState:
        """Zero states for ``count`` sequences, in the dtype of the parameters."""
        return VectorState([block.mixer.initial_state(count, device) for block in self.blocks])
