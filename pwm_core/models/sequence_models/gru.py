"""The recurrent baseline: gated recurrent units, one step after the other.

The state passes through a matrix product and a nonlinearity at every step, so no scan can compute
it: the parallel pass is a loop over the T steps, after all inputs have been projected at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.sequence_models.mixer_blocks import Mixer, MixerModel


class GRUMixer(Mixer):
    """A GRU (Cho et al., 2014, in the form of cuDNN and torch), whose output is its state::

        r = sigmoid(W_r u_t + b_r + U_r h_{t-1} + c_r)
        s = sigmoid(W_s u_t + b_s + U_s h_{t-1} + c_s)
        n = tanh(W_n u_t + b_n + r * (U_n h_{t-1} + c_n))
        h_t = (1 - s) * n + s * h_{t-1}

    b are the biases of the input and c those of the state.
    """

    def __init__(self, models: Models) -> None:
        super().__init__()
        self.cell = nn.GRUCell(models.Hidden, models.Hidden)  # holds the weights

    def _move(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Projected inputs (N, 3D) and the state (N, D) -> the next state (N, D)."""
        sizes = 2 * hidden.shape[1], hidden.shape[1]
        gates, new = inputs.split(sizes, dim=1)
        moved = F.linear(hidden, self.cell.weight_hh, self.cell.bias_hh)
        moved_gates, moved_new = moved.split(sizes, dim=1)
        reset, stay = torch.sigmoid(gates + moved_gates).chunk(2, dim=1)
        new = torch.tanh(new + reset * moved_new)
        return torch.lerp(new.to(hidden.dtype), hidden, stay.to(hidden.dtype))

    def _project(self, u: Tensor) -> Tensor:
        return F.linear(u, self.cell.weight_ih, self.cell.bias_ih)

    def forward(self, u: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """A whole sequence, step by step; see :class:`Mixer`. The states are the outputs."""
        hidden = self.initial_state(len(u), u.device)
        states = []
        # The gradient of unbind is one stack. That of u[:, t] would fill T steps for every t.
        for inputs, first in zip(self._project(u).unbind(1), is_first.unbind(1), strict=True):
            hidden = self._move(inputs, hidden.masked_fill(first.unsqueeze(-1), 0.0))
            states.append(hidden)
        stacked = torch.stack(states, dim=1)  # (B, T, D)
        return stacked, stacked

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step; see :class:`Mixer`."""
        state = self._move(self._project(u), state)
        return state, state

    def initial_state(self, count: int, device: torch.device) -> Tensor:
        """Zeros (N, D) in the dtype of the parameters."""
        weight = self.cell.weight_hh
        return torch.zeros(count, weight.shape[1], dtype=weight.dtype, device=device)


class GRU(MixerModel):
    """Input layer and blocks of gated recurrent units: (z_t, a_t) -> deter_t."""

    make_mixer = GRUMixer
