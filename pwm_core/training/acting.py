"""The recurrent state that an agent keeps between environment steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pwm_core.models.sequence_models.base import SequenceState
from pwm_core.training.cuda_graph import CapturedActing


class ActingState:
    """Recurrent state kept between environment steps, for N environments.

    Its tensors keep their place in memory, so that a CUDA graph can read and write them.

    Attributes:
        deter: (N, D) ``deter_{t-1}``.
        sequence: the sequence model's state after step t-1.
        captured: the CUDA graphs that act on this state, by ``greedy``.
    """

    def __init__(self, deter: Tensor, sequence: SequenceState) -> None:
        self.deter = deter
        self.sequence = sequence
        self.captured: dict[bool, CapturedActing] = {}

    def reset(self, is_first: Tensor) -> tuple[Tensor, SequenceState]:
        """Copies of ``deter_{t-1}`` and of the sequence model's state.

        They are zeros where ``is_first`` (N,) bool is set.
        """
        deter = self.deter.masked_fill(is_first.unsqueeze(-1), 0.0)
        return deter, self.sequence.reset(is_first)

    def copy_(self, deter: Tensor, sequence: SequenceState) -> None:
        """Copy ``deter_t`` and the state after step t into this state's own tensors."""
        self.deter.copy_(deter)
        self.sequence.copy_(sequence)

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name."""
        return {"deter": self.deter, **self.sequence.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.deter.copy_(state["deter"])
        self.sequence.load_state_dict(state)
