"""The sequence model: linear-attention blocks that run in parallel over T or one step at a time.

Both ways compute the same numbers (PaMoRL, section 3.1); the parallel one trains, the recurrent one
acts and imagines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.networks import ACTIVATIONS, NORM_EPS, GatedUnit
from pwm_core.scan import linear_attention


class BlockState(NamedTuple):
    """What one block remembers after a step.

    Attributes:
        memory: (N, K, V) float32, the attention state ``S_t``.
        previous: (N, D) the block's input ``u_t``, for token mixing.
    """

    memory: Tensor
    previous: Tensor


class RecurrentMemory:
    """``S_t`` itself, rewritten at every step."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory  # (N, K, V)

    def step(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        """Take in one step's (N, K) keys and (N, V) values; returns (N, V) ``o_t = q_t S_t``."""
        decay = log_decay.exp().unsqueeze(-1)
        self.memory = torch.addcmul(k.unsqueeze(-1) * v.unsqueeze(-2), decay, self.memory)
        return (q.unsqueeze(-2) @ self.memory).squeeze(-2)


class ImaginedMemory:
    """``S_t`` as a fixed starting state and the few keys and values imagined since.

    ``o_t = (q_t G_t) S_0 + sum_j (q_t . k_j G_t / G_j) v_j``: the same numbers as
    :class:`RecurrentMemory`, but the (N, K, V) states are only read, never rewritten. No gradient.
    """

    def __init__(self, memory: Tensor, horizon: int) -> None:
        count, width, values = memory.shape
        self._start = memory
        self._decay = memory.new_ones(count, width)
        self._keys = memory.new_zeros(count, horizon, width)  # decayed up to the present
        self._values = memory.new_zeros(count, horizon, values)
        self._length = 0

    def step(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        """As :meth:`RecurrentMemory.step`, at most ``horizon`` times."""
        decay = log_decay.exp()
        self._decay.mul_(decay)
        self._keys[:, : self._length].mul_(decay.unsqueeze(1))
        self._keys[:, self._length] = k
        self._values[:, self._length] = v
        self._length += 1
        keys, values = self._keys[:, : self._length], self._values[:, : self._length]
        query = q.unsqueeze(1)  # (N, 1, K)
        scores = torch.bmm(query, keys.transpose(1, 2))  # (N, 1, h)
        output = torch.bmm(query * self._decay.unsqueeze(1), self._start)
        return torch.baddbmm(output, scores, values).squeeze(1)


Memory = RecurrentMemory | ImaginedMemory


def _trunc_normal(width: int) -> Tensor:
    """Truncated normal, variance scaled by the mean of fan-in and fan-out."""
    # 0.8796: the standard deviation of a unit normal cut off at two.
    std = (1.0 / width) ** 0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(torch.empty(width), std=std, a=-2 * std, b=2 * std)


class LinearAttentionBlock(nn.Module):
    """Token mixing, linear attention with data-dependent decay, gated unit."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        config = models.WorldModel
        width, inner = models.Hidden, models.Hidden // config.HeadDivisor
        self.width, self.inner = width, inner
        self.scan, self.chunk, self.dropout = config.Scan, config.ScanChunk, config.Dropout
        self.mix = nn.Parameter(_trunc_normal(width))
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.receptance = nn.Linear(width, inner, bias=False)
        self.decay = nn.Linear(width, inner, bias=False)
        self.attention_norm = nn.RMSNorm(inner, eps=NORM_EPS) if config.RMSNorm else nn.Identity()
        self.output = nn.Linear(inner, width, bias=False)
        self.output_dropout = nn.Dropout(config.Dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.gated = GatedUnit(width, config.BlockAct, config.Dropout)

    def _project(self, u: Tensor, previous: Tensor, keep: Tensor | None) -> tuple[Tensor, ...]:
        """Inputs (..., D) and those before them -> float32 q, k (..., K), v (..., V), log g.

        ``keep`` (..., 1) is 0 for dropped tokens: their inputs are zeros and their decay is 1.
        """
        share = torch.sigmoid(self.mix + 1)  # mu
        mixed = share * u + (1 - share) * previous  # m_t
        kept = u if keep is None else u * keep
        weight = torch.cat(
            [self.query.weight, self.key.weight, self.value.weight, self.receptance.weight]
        )
        q, k, v, r = F.linear(kept, weight).float().split(self.inner, dim=-1)
        log_decay = F.logsigmoid(self.decay(mixed).float())
        if keep is not None:
            log_decay = log_decay * keep
        return 1 + F.elu(q), 1 + F.elu(k), torch.sigmoid(r) * v, log_decay

    def _finish(self, u: Tensor, attended: Tensor) -> Tensor:
        """Attention output (..., V) and block input (..., D) -> block output (..., D)."""
        projected = self.output(self.attention_norm(attended))
        return self.gated(self.norm(self.output_dropout(projected) + u))

    def forward(
        self, u: Tensor, is_first: Tensor, *, return_states: bool = False
    ) -> tuple[Tensor, BlockState | None]:
        """A whole sequence from zero states.

        Args:
            u: (B, T, D).
            is_first: (B, T) bool; the state and the input before such a step count as zeros.
            return_states: also return the :class:`BlockState` after every step, (B, T, ...).
        """
        previous = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1)
        previous = previous.masked_fill(is_first.unsqueeze(-1), 0.0)
        keep = None
        if self.training and self.dropout > 0:
            keep = torch.rand(*u.shape[:2], 1, device=u.device) >= self.dropout
            keep = keep.to(u.dtype)
        q, k, v, log_decay = self._project(u, previous, keep)
        with torch.autocast(u.device.type, enabled=False):
            attended = linear_attention(
                q,
                k,
                v,
                log_decay,
                is_first,
                backend=self.scan,
                chunk=self.chunk,
                return_states=return_states,
            )
        state = BlockState(attended.states, u) if return_states else None
        return self._finish(u, attended.output), state

    def step(self, u: Tensor, previous: Tensor, memory: Memory) -> Tensor:
        """One step (N, D) after ``previous`` (N, D); ``memory`` takes it in. No token dropout."""
        q, k, v, log_decay = self._project(u, previous, None)
        with torch.autocast(u.device.type, enabled=False):
            attended = memory.step(q, k, v, log_decay)
        return self._finish(u, attended)


class RecurrentState:
    """Where the sequence model stands in each of N sequences.

    Attributes:
        previous: per block, (N, D) the input of the last step.
        memories: per block, its :class:`RecurrentMemory` or :class:`ImaginedMemory`.
    """

    def __init__(self, previous: list[Tensor], memories: list[Memory]) -> None:
        self.previous = previous
        self.memories = memories

    def reset(self, is_first: Tensor) -> None:
        """Zero the states of the sequences that begin anew; ``is_first`` (N,) bool."""
        for block, memory in enumerate(self.memories):
            mask = is_first.unsqueeze(-1)
            self.previous[block] = self.previous[block].masked_fill(mask, 0.0)
            memory.memory = memory.memory.masked_fill(mask.unsqueeze(-1), 0.0)


class SequenceModel(nn.Module):
    """Input layer and blocks: (z_t, a_t) -> deter_t."""

    def __init__(self, models: Models, latent: int, action: int) -> None:
        super().__init__()
        width = models.Hidden
        self.input_layer = nn.Sequential(
            nn.Linear(latent + action, width, bias=False),
            nn.LayerNorm(width, eps=NORM_EPS),
            ACTIVATIONS[models.Act](),
            nn.Linear(width, width, bias=False),
            nn.LayerNorm(width, eps=NORM_EPS),
        )
        self.blocks = nn.ModuleList(
            LinearAttentionBlock(models) for _ in range(models.WorldModel.Blocks)
        )
        self.output_tanh = models.WorldModel.OutputTanh

    def forward(
        self, stoch: Tensor, action: Tensor, is_first: Tensor, *, return_states: bool = False
    ) -> tuple[Tensor, list[BlockState | None]]:
        """All T steps at once, from zero states.

        Args:
            stoch: (B, T, S*K) latents.
            action: (B, T, A) encoded actions.
            is_first: (B, T) bool.

        Returns:
            deter (B, T, D) and, per block, the states after every step (or None).
        """
        hidden = self.input_layer(torch.cat([stoch, action], dim=-1))
        states = []
        for block in self.blocks:
            hidden, state = block(hidden, is_first, return_states=return_states)
            states.append(state)
        return self._output(hidden), states

    def step(self, stoch: Tensor, action: Tensor, state: RecurrentState) -> Tensor:
        """One step: (N, S*K), (N, A) -> deter (N, D); ``state`` moves on in place."""
        hidden = self.input_layer(torch.cat([stoch, action], dim=-1))
        for index, block in enumerate(self.blocks):
            previous = state.previous[index]
            state.previous[index] = hidden
            hidden = block.step(hidden, previous, state.memories[index])
        return self._output(hidden)

    def _output(self, hidden: Tensor) -> Tensor:
        return hidden.tanh() if self.output_tanh else hidden

    def initial_state(self, count: int, device: torch.device) -> RecurrentState:
        """Zero states of ``count`` sequences."""
        previous = [torch.zeros(count, block.width, device=device) for block in self.blocks]
        memories: list[Memory] = [
            RecurrentMemory(torch.zeros(count, block.inner, block.inner, device=device))
            for block in self.blocks
        ]
        return RecurrentState(previous, memories)
