"""The sequence model of the paper: blocks of linear attention with data-dependent decay.

They run in parallel over T steps or step by step, and both ways compute the same numbers (PaMoRL,
section 3.1). Training uses the parallel way; acting and imagination use the recurrent one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.models.networks import NORM_EPS, GatedUnit, LatentNet
from pwm_core.models.scan import States, fuses, linear_attention
from pwm_core.models.sequence_models.base import SequenceModel
from pwm_core.models.sequence_models.memory import ImaginedMemory, RecurrentMemory


class BlockHistory(NamedTuple):
    """The states of one block after every step of B sequences.

    Attributes:
        memory: the attention states ``S_t`` of all steps, in factors where the scan does not
            compute them in full; see :class:`States`. They are float32 also under autocast.
        previous: (B, T, D) the block's inputs ``u_t``, for token mixing.
    """

    memory: States
    previous: Tensor


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _trunc_normal(width: int, fan: float) -> Tensor:
    """(width,) from a normal of variance 1 / fan that is truncated at two standard deviations."""
    # 0.8796 is the standard deviation of a unit normal that is truncated at two.
    std = (1.0 / fan) ** 0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(torch.empty(width), std=std, a=-2 * std, b=2 * std)


class ConstantDecay(nn.Module):
    """A decay that does not depend on the inputs: one learned number a channel, or 1.

    Args:
        width: D; learned numbers are drawn as the bias of an ``nn.Linear(width, inner)``.
        inner: E.
        learned: whether it is learned.
    """

    def __init__(self, width: int, inner: int, *, learned: bool) -> None:
        super().__init__()
        bound = width**-0.5
        if learned:
            self.bias = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))
        else:
            self.register_buffer("bias", torch.full((inner,), torch.inf), persistent=False)

    def forward(self, mixed: Tensor) -> Tensor:
        """(..., D), whose values play no part -> (..., E), whose sigmoid is the decay."""
        return self.bias.expand(*mixed.shape[:-1], -1).contiguous()


class LinearAttentionBlock(nn.Module):
    """Token mixing, linear attention with data-dependent decay, and a gated unit."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        config = models.WorldModel
        width, inner = models.Hidden, models.Hidden // config.HeadDivisor
        self.width, self.inner = width, inner
        self.dropout, self.kernels = config.Dropout, config.Kernels
        self.attend = functools.partial(
            linear_attention, backend=config.Scan, chunk=config.ScanChunk
        )
        self.mix: nn.Parameter | None = None
        if config.TokenMixing and config.Decay == "data":
            fan = {"width": width, "mean": (width + 1) / 2}[config.MixFan]
            self.mix = nn.Parameter(_trunc_normal(width, fan))
        # W_q, W_k, W_v, W_r as one product; each is initialised like a separate Linear.
        self.projections = nn.Linear(width, 4 * inner, bias=False)
        self.decay: nn.Module  # (..., D) -> (..., E), whose sigmoid is the decay g_t
        if config.Decay == "data":
            self.decay = nn.Linear(width, inner, bias=False)
        else:
            self.decay = ConstantDecay(width, inner, learned=config.Decay == "learned")
        self.attention_norm = nn.RMSNorm(inner, eps=NORM_EPS) if config.RMSNorm else nn.Identity()
        self.output = nn.Linear(inner, width, bias=False)
        self.output_dropout = nn.Dropout(config.Dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.gated = GatedUnit(width, config.BlockAct, config.Dropout)

    def _mix(self, u: Tensor, previous: Tensor) -> Tensor:
        """``m_t`` (..., D) of the inputs ``u_t`` and ``u_{t-1}`` (..., D)."""
        if self.mix is None:
            return u
        return torch.lerp(previous.to(u.dtype), u, torch.sigmoid(self.mix + 1).to(u.dtype))

    def _project(self, u: Tensor, previous: Tensor, keep: Tensor | None) -> tuple[Tensor, ...]:
        """The projections of a block's inputs, at least float32.

        Args:
            u: (..., D) inputs ``u_t``.
            previous: (..., D) inputs ``u_{t-1}``.
            keep: (..., 1), 0 for dropped tokens, whose inputs are zeros and whose decay is 1; None
                drops nothing.

        Returns:
            q (..., E), k (..., E), v (..., V) and log g (..., E).
        """
        mixed = self._mix(u, previous)
        kept = u if keep is None else u * keep
        q, k, v, r = _at_least_float32(self.projections(kept)).split(self.inner, dim=-1)
        log_decay = F.logsigmoid(_at_least_float32(self.decay(mixed)))
        if keep is not None:
            log_decay = log_decay * keep
        return 1 + F.elu(q), 1 + F.elu(k), torch.sigmoid(r) * v, log_decay

    def _finish(self, u: Tensor, attended: Tensor) -> Tensor:
        """Attention output (..., V) and block input (..., D) -> block output (..., D)."""
        projected = self.output(self.attention_norm(attended))
        return self.gated(self.norm(self.output_dropout(projected) + u))

    def forward(
        self, u: Tensor, is_first: Tensor, *, return_history: bool = False
    ) -> tuple[Tensor, BlockHistory | None]:
        """A whole sequence from zero states.

        Args:
            u: (B, T, D).
            is_first: (B, T) bool; the state and the input before such a step are zeros.
            return_history: also return the states after every step.

        Returns:
            (B, T, D), and the history or None.
        """
        previous = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1)
        previous = previous.masked_fill(is_first.unsqueeze(-1), 0.0)
        keep = None
        if self.training and self.dropout > 0:
            keep = torch.rand(*u.shape[:2], 1, device=u.device) >= self.dropout
            keep = keep.to(u.dtype)
        q, k, v, log_decay = self._project(u, previous, keep)
        with torch.autocast(u.device.type, enabled=False):
            attended = self.attend(q, k, v, log_decay, is_first, return_states=return_history)
        history = BlockHistory(attended.states, u) if return_history else None
        return self._finish(u, attended.output), history

    def step(self, u: Tensor, previous: Tensor, memory: RecurrentMemory | ImaginedMemory) -> Tensor:
        """One step without token dropout; ``memory`` is updated in place.

        Args:
            u: (N, D) input ``u_t``.
            previous: (N, D) input ``u_{t-1}``.
            memory: the attention states after step t-1.

        Returns:
            (N, D).
        """
        if isinstance(memory, ImaginedMemory) and fuses(self.kernels, u.device):
            mixed = self._mix(u, previous)
            return self._finish(u, memory.fused_step(self.projections(u), self.decay(mixed)))
        q, k, v, log_decay = self._project(u, previous, None)
        with torch.autocast(u.device.type, enabled=False):
            attended = memory.step(q, k, v, log_decay)
        return self._finish(u, attended)


@dataclass
class LinearAttentionState:
    """The recurrent state of the sequence model for N sequences.

    Attributes:
        previous: for each block, (N, D) its input at the last step.
        memories: for each block, its attention states.
    """

    previous: list[Tensor]
    memories: list[RecurrentMemory]

    def reset(self, is_first: Tensor) -> LinearAttentionState:
        """A copy that is zeros where ``is_first`` (N,) bool is set."""
        mask = is_first.unsqueeze(-1)
        return LinearAttentionState(
            [previous.masked_fill(mask, 0.0) for previous in self.previous],
            [
                RecurrentMemory(memory.memory.masked_fill(mask.unsqueeze(-1), 0.0))
                for memory in self.memories
            ],
        )

    def clone(self) -> LinearAttentionState:
        """A copy that shares no memory."""
        return LinearAttentionState(
            [previous.clone() for previous in self.previous],
            [RecurrentMemory(memory.memory.clone()) for memory in self.memories],
        )

    def copy_(self, other: LinearAttentionState) -> None:
        """Copy ``other``'s values into this state's own tensors."""
        for mine, new in zip(self.previous, other.previous, strict=True):
            mine.copy_(new)
        for memory, new_memory in zip(self.memories, other.memories, strict=True):
            memory.memory.copy_(new_memory.memory)

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name."""
        memories = [memory.memory for memory in self.memories]
        return {"previous": self.previous, "memories": memories}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the tensors keep their place in memory."""
        memories = [RecurrentMemory(memory) for memory in state["memories"]]
        self.copy_(LinearAttentionState(state["previous"], memories))


@dataclass
class ImaginationState:
    """A :class:`LinearAttentionState` for imagined steps that start from replayed states."""

    previous: list[Tensor]
    memories: list[ImaginedMemory]


class History(NamedTuple):
    """The states after every step of B replayed sequences.

    Attributes:
        blocks: the states of each block.
    """

    blocks: list[BlockHistory]

    def start(self, steps: slice, zero: Tensor, horizon: int) -> ImaginationState:
        """The state after ``steps`` of every sequence; see :class:`SequenceHistory`."""
        mask = zero.unsqueeze(-1)
        first, *others = (block.memory for block in self.blocks)
        clock = ImaginedMemory(first, steps, zero, horizon)
        return ImaginationState(
            [
                block.previous[:, steps].flatten(0, 1).masked_fill(mask, 0.0)
                for block in self.blocks
            ],
            [clock, *(ImaginedMemory(states, steps, zero, horizon, clock) for states in others)],
        )


class LinearAttention(SequenceModel):
    """Input layer and linear-attention blocks: (z_t, a_t) -> deter_t (PaMoRL, section 3.1)."""

    def __init__(self, models: Models, action: int) -> None:
        super().__init__()
        width = models.Hidden
        self.input_layer = LatentNet(
            action,
            models,
            nn.Linear(width, width, bias=False),
            nn.LayerNorm(width, eps=NORM_EPS),
        )
        self.blocks = nn.ModuleList(
            LinearAttentionBlock(models) for _ in range(models.WorldModel.Blocks)
        )
        self.output_tanh = models.WorldModel.OutputTanh

    def forward(
        self, latent: Tensor, action: Tensor, is_first: Tensor, *, return_history: bool = False
    ) -> tuple[Tensor, History | None]:
        """All T steps at once, from zero states; see :class:`SequenceModel`."""
        hidden = self.input_layer(action, latent)  # (B, T, D)
        blocks = []
        for block in self.blocks:
            hidden, history = block(hidden, is_first, return_history=return_history)
            blocks.append(history)
        return self._output(hidden), History(blocks) if return_history else None

    def step(
        self, latent: Tensor, action: Tensor, state: LinearAttentionState | ImaginationState
    ) -> Tensor:
        """One step: a latent and an action (N, A) -> deter (N, D).

        ``state`` is updated in place.
        """
        hidden = self.input_layer(action, latent)
        for index, block in enumerate(self.blocks):
            previous = state.previous[index]
            state.previous[index] = hidden
            hidden = block.step(hidden, previous, state.memories[index])
        return self._output(hidden)

    def _output(self, hidden: Tensor) -> Tensor:
        return hidden.tanh() if self.output_tanh else hidden

    def initial_state(self, count: int, device: torch.device) -> LinearAttentionState:
        """Zero states for ``count`` sequences, in the dtype of the parameters."""
        zeros = functools.partial(
            torch.zeros, dtype=self.blocks[0].output.weight.dtype, device=device
        )
        return LinearAttentionState(
            [zeros(count, block.width) for block in self.blocks],
            [RecurrentMemory(zeros(count, block.inner, block.inner)) for block in self.blocks],
        )
