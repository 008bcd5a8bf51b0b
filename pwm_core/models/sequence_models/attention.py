"""Causal softmax attention with learned positions: the transformer of STORM.

Post-norm blocks as in STORM (Zhang et al., NeurIPS 2023)::

    x_t = LayerNorm(u_t + p_n)                             u_t: the input layer's output
    y_t = LayerNorm(x_t + dropout(Attention(x)_t W_o))
    h_t = LayerNorm(y_t + dropout(W_2 relu(W_1 y_t)))

``n`` is the position of step t. There is one rule for it everywhere: **a step's position is the
number of earlier steps that it sees**, and a step sees earlier steps of its own episode alone. So
positions count from 0 again after a reset, and at the start of a replayed sequence, whatever the
episode's age.

The table of positions is finite, so only a window of the past is seen:

- The parallel pass sees all of a sequence, which is at most ``Positions`` steps long.
- A recurrent step sees the last ``ActingWindow`` steps of the episode, itself included. When the
  window moves on, every step in it gets the position before, and with it other keys and values.
  The state therefore holds the window's inputs, and a step computes the whole window anew, as STORM
  does. This equals the parallel pass as long as an episode fits into the window.
- Imagination sees the last ``ImagineWindow`` steps up to its start, and all imagined steps. Both
  together fit into the table, so their keys and values are computed once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pwm_core.config import Models
from pwm_core.errors import UserError
from pwm_core.models.networks import ACTIVATIONS, NORM_EPS, LatentNet
from pwm_core.models.sequence_models.base import SequenceModel

EPS = 1e-6
"""Epsilon of the LayerNorms after the input layer, as in STORM."""
FEED_FORWARD = 2
"""Width of the feed-forward layer as a multiple of Hidden, as in STORM."""


def visible(episode: Tensor) -> Tensor:
    """Which steps a step sees: itself and the earlier steps of its episode.

    Args:
        episode: (N, T) int64 or bool, equal for the steps of one episode.

    Returns:
        (N, T, T) bool by the step that sees and the step that is seen.
    """
    return (episode.unsqueeze(2) == episode.unsqueeze(1)).tril()


class AttentionBlock(nn.Module):
    """Multi-head attention and a feed-forward layer, each with a residual and a LayerNorm after."""

    def __init__(self, models: Models) -> None:
        super().__init__()
        config, width = models.WorldModel, models.Hidden
        self.heads, self.rate = config.Heads, config.Dropout
        # W_q, W_k, W_v as one product; each is initialised like a separate Linear.
        self.projections = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.output_dropout = nn.Dropout(config.Dropout)
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, FEED_FORWARD * width),
            ACTIVATIONS[config.FeedForwardAct](),
            nn.Linear(FEED_FORWARD * width, width),
            nn.Dropout(config.Dropout),
        )
        self.norm = nn.LayerNorm(width, eps=EPS)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of ``x`` (N, T, D), each (N, heads, T, D / heads)."""
        parts = rearrange(self.projections(x), "n t (p h d) -> p n h t d", p=3, h=self.heads)
        query, key, value = parts.unbind(0)
        return query, key, value

    def attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: (N, T, D) the block's input.
            query: (N, heads, T, D / heads).
            key, value: (N, heads, J, D / heads) of the steps that may be seen.
            mask: (N, T, J) bool, which of them each step sees; at least one.

        Returns:
            (N, T, D).
        """
        attended = F.scaled_dot_product_attention(
            query, key, value, mask.unsqueeze(1), self.rate if self.training else 0.0
        )
        projected = self.output(rearrange(attended, "n h t d -> n t (h d)"))
        y = self.attention_norm(self.output_dropout(projected) + x)
        return self.norm(self.feed_forward(y) + y)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """All steps of a window: (N, T, D), with ``mask`` (N, T, T) as in :meth:`attend`."""
        return self.attend(x, *self.project(x), mask)


@dataclass
class AttentionState:
    """The inputs of the last steps of N episodes.

    Attributes:
        inputs: (N, W, D) outputs of the input layer; the newest is the last. Unused ones are zeros.
        count: (N,) int64, how many of them belong to the episode.
    """

    inputs: Tensor
    count: Tensor

    def advance(self, model: Attention, u: Tensor) -> Tensor:
        """Take ``u`` (N, D) in and return the last block's output (N, D)."""
        window = self.inputs.shape[1]
        self.inputs = torch.cat([self.inputs[:, 1:], u.unsqueeze(1).to(self.inputs.dtype)], dim=1)
        self.count = (self.count + 1).clamp_max(window)
        place = torch.arange(window, 0, -1, device=u.device)  # 1 is the newest
        return model.attend(self.inputs, place <= self.count.unsqueeze(1))[:, -1]

    def reset(self, is_first: Tensor) -> AttentionState:
        """A copy that is zeros where ``is_first`` (N,) bool is set."""
        return AttentionState(
            self.inputs.masked_fill(is_first.view(-1, 1, 1), 0.0),
            self.count.masked_fill(is_first, 0),
        )

    def clone(self) -> AttentionState:
        """A copy that shares no memory."""
        return AttentionState(self.inputs.clone(), self.count.clone())

    def copy_(self, other: AttentionState) -> None:
        """Copy ``other``'s values into this state's own tensors."""
        self.inputs.copy_(other.inputs)
        self.count.copy_(other.count)

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name."""
        return {"inputs": self.inputs, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; the tensors keep their place in memory."""
        self.copy_(AttentionState(state["inputs"], state["count"]))


class ImaginationState:
    """A cache of keys and values: of the steps before N starts, and of the steps imagined since.

    It has room for all of them from the start. A compiled step reads all of it, and a mask hides
    what is still free: so its shapes are the same however many steps there are, and it is compiled
    once. A step that is not compiled reads only the filled part of the cache.

    Args:
        model: computes the keys and values.
        inputs: (N, C, D) outputs of the input layer at the last C steps up to each start.
        held: (N, C) bool, which of them the start sees.
        horizon: largest number of imagined steps (H).
    """

    def __init__(self, model: Attention, inputs: Tensor, held: Tensor, horizon: int) -> None:
        self._length = inputs.shape[1]  # steps in the cache
        self._place = torch.full((1,), self._length, device=inputs.device)  # the same, compiled
        self._held = F.pad(held, (0, horizon), value=False)  # (N, C + H) what the next step sees
        self._count = held.sum(1)  # (N,) steps that the next one sees
        self._caches: list[tuple[Tensor, Tensor]] = []  # keys and values of each block
        mask = visible(held)
        x = model.embed(inputs, mask)
        for block in model.blocks:
            query, key, value = block.project(x)
            room = (0, 0, 0, horizon)  # after the C steps, for H more
            self._caches.append((F.pad(key, room), F.pad(value, room)))  # (N, heads, C + H, d)
            if block is not model.blocks[-1]:  # nothing reads the last block's output
                x = block.attend(x, query, key, value, mask)

    def advance(self, model: Attention, u: Tensor) -> Tensor:
        """Take ``u`` (N, D) in and return the last block's output (N, D)."""
        position = model.position(self._count)
        x = model.norm(u + position).unsqueeze(1)
        self._count = self._count + 1
        if torch.compiler.is_compiling():
            at, read = self._place, self._held.shape[1]
            self._place = self._place + 1
        else:
            at, read = slice(self._length, self._length + 1), self._length + 1
            self._length = read
        self._held[:, at] = True
        for block, (keys, values) in zip(model.blocks, self._caches, strict=True):
            query, key, value = block.project(x)
            keys[:, :, at] = key
            values[:, :, at] = value
            seen = keys[:, :, :read], values[:, :, :read]
            x = block.attend(x, query, *seen, self._held[:, None, :read])
        return x.squeeze(1)


class AttentionHistory(NamedTuple):
    """What imagination needs of B replayed sequences.

    Attributes:
        model: the sequence model.
        inputs: (B, T, D) outputs of the input layer.
        episode: (B, T) int64, equal for the steps of one episode.
    """

    model: Attention
    inputs: Tensor
    episode: Tensor

    def start(self, steps: slice, zero: Tensor, horizon: int) -> ImaginationState:
        """The state after ``steps`` of every sequence; see :class:`SequenceHistory`.

        A start sees the last ``ImagineWindow`` steps of its episode.

        Raises:
            UserError: that window and the horizon are together longer than the table of positions.
        """
        window = self.model.imagine_window
        if window + horizon > self.model.position.num_embeddings:
            raise UserError(
                f"Models.WorldModel.ImagineWindow = {window} and {horizon} imagined steps are more "
                f"than Models.WorldModel.Positions = {self.model.position.num_embeddings}"
            )
        inputs = F.pad(self.inputs, (0, 0, window - 1, 0)).unfold(1, window, 1)  # (B, T, D, C)
        inputs = rearrange(inputs[:, steps], "b s d c -> (b s) c d")
        episode = F.pad(self.episode, (window - 1, 0), value=-1).unfold(1, window, 1)  # (B, T, C)
        episode = episode[:, steps].flatten(0, 1)
        held = (episode == episode[:, -1:]) & ~zero.unsqueeze(1)
        return ImaginationState(self.model, inputs, held, horizon)


class Attention(SequenceModel):
    """Input layer, learned positions and attention blocks: (z_t, a_t) -> deter_t."""

    def __init__(self, models: Models, action: int) -> None:
        super().__init__()
        config, width = models.WorldModel, models.Hidden
        self.input_layer = LatentNet(
            action, models, nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=NORM_EPS)
        )
        self.position = nn.Embedding(config.Positions, width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.blocks = nn.ModuleList(AttentionBlock(models) for _ in range(config.Blocks))
        self.acting_window, self.imagine_window = config.ActingWindow, config.ImagineWindow
        self.output_tanh = config.OutputTanh

    def embed(self, u: Tensor, mask: Tensor) -> Tensor:
        """The first block's input for ``u`` (N, T, D), whose steps see each other as in ``mask``
        (N, T, T)."""
        return self.norm(u + self.position(mask.sum(-1) - 1))

    def attend(self, u: Tensor, episode: Tensor) -> Tensor:
        """The last block's output (N, T, D) for ``u`` (N, T, D) and its episodes (N, T)."""
        mask = visible(episode)
        x = self.embed(u, mask)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def forward(
        self, latent: Tensor, action: Tensor, is_first: Tensor, *, return_history: bool = False
    ) -> tuple[Tensor, AttentionHistory | None]:
        """All T steps at once; see :class:`SequenceModel`.

        Raises:
            UserError: the sequence is longer than the table of positions.
        """
        if is_first.shape[1] > self.position.num_embeddings:
            raise UserError(
                f"a sequence of {is_first.shape[1]} steps is longer than "
                f"Models.WorldModel.Positions = {self.position.num_embeddings}"
            )
        u = self.input_layer(action, latent)  # (B, T, D)
        episode = is_first.long().cumsum(1)
        deter = self._output(self.attend(u, episode))
        return deter, AttentionHistory(self, u, episode) if return_history else None

    def step(
        self, latent: Tensor, action: Tensor, state: AttentionState | ImaginationState
    ) -> Tensor:
        """One step: a latent and an action (N, A) -> deter (N, D).

        ``state`` is updated in place.
        """
        return self._output(state.advance(self, self.input_layer(action, latent)))

    def _output(self, hidden: Tensor) -> Tensor:
        return hidden.tanh() if self.output_tanh else hidden

    def initial_state(self, count: int, device: torch.device) -> AttentionState:
        """Empty windows for ``count`` episodes, in the dtype of the parameters."""
        weight = self.position.weight
        shape = (count, self.acting_window, weight.shape[1])
        inputs = torch.zeros(shape, dtype=weight.dtype, device=device)
        return AttentionState(inputs, torch.zeros(count, dtype=torch.int64, device=device))
