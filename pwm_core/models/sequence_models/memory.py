"""What linear attention remembers between single steps: of acting, and of imagination."""

from __future__ import annotations

import torch
from torch import Tensor

from pwm_core.models.scan import States


class RecurrentMemory:
    """The attention state ``S_t`` (N, E, V) itself; every step replaces it."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory  # (N, E, V)

    def step(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        """Update the state with one step and read it.

        Args:
            q, k: (N, E).
            v: (N, V).
            log_decay: (N, E) ``log g_t``.

        Returns:
            (N, V) ``o_t = q_t S_t``.
        """
        decay = log_decay.exp().unsqueeze(-1)
        self.memory = torch.addcmul(k.unsqueeze(-1) * v.unsqueeze(-2), decay, self.memory)
        return (q.unsqueeze(-2) @ self.memory).squeeze(-2)


class ImaginedMemory:
    """Replayed attention states, and the keys and values of the steps imagined since.

    ``o_t = (q_t G_t) S_0 + sum_j (q_t . k_j G_t / G_j) v_j``, where ``G_t`` is the product of the
    decays up to step t. These are the numbers of :class:`RecurrentMemory`, but the states ``S_0``
    (E, V) are only read. With the chunked scan they are never computed in full. No gradient flows.

    Args:
        states: the states of B sequences.
        starts: the steps of each sequence after which imagination starts, N in all.
        zero: (N,) bool, the starts whose state is zeros.
        horizon: largest number of imagined steps.
        clock: the memory of another block that always takes its step first; it counts for both.
    """

    def __init__(
        self,
        states: States,
        starts: slice,
        zero: Tensor,
        horizon: int,
        clock: ImaginedMemory | None = None,
    ) -> None:
        batch, _chunks, chunk, width = states.decay.shape
        first, stop, _ = starts.indices(states.length)
        # Keep only the chunks that hold a start.
        begin, end = first // chunk, -(-stop // chunk)
        self._shape = (batch, end - begin, chunk, width)
        self._steps = slice(first - begin * chunk, stop - begin * chunk)
        fields = (states.start, states.decay, states.keys, states.values)
        kept = [None if x is None else x[:, begin:end] for x in fields]
        on_cpu = zero.device.type == "cpu"
        self._states = States(stop, *(kept if on_cpu else _contiguous(kept)))
        count, values = len(zero), states.start.shape[-1]
        # (N, E) G_t; it is 0 where the start's state is zeros
        self._decay = (~zero).to(states.start.dtype).unsqueeze(1).repeat(1, width)
        self._keys = states.start.new_zeros(count, horizon, width)  # k_j G_t / G_j
        self._values = states.start.new_zeros(count, horizon, values)
        self._length = 0
        # The current step as a tensor too: a compiled step must not depend on an int.
        self._clock = clock
        self._position = torch.full((), -1, device=zero.device)
        self._positions = torch.arange(horizon, device=zero.device)

    def step(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        """See :meth:`RecurrentMemory.step`; it can be called ``horizon`` times."""
        if torch.compiler.is_compiling() or q.device.type != "cpu":
            return self._padded_step(q, k, v, log_decay.exp())
        decay = log_decay.exp()
        self._decay.mul_(decay)
        self._keys[:, : self._length].mul_(decay.unsqueeze(1))
        self._keys[:, self._length] = k
        self._values[:, self._length] = v
        self._length += 1
        keys, values = self._keys[:, : self._length], self._values[:, : self._length]
        scores = torch.bmm(q.unsqueeze(1), keys.transpose(1, 2))  # (N, 1, steps imagined so far)
        return torch.baddbmm(self._read(q * self._decay).unsqueeze(1), scores, values).squeeze(1)

    def _padded_step(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        """:meth:`step` with the same shapes at every step: unused slots hold keys of zeros."""
        self._decay.mul_(decay)
        self._keys.mul_(decay.unsqueeze(1))
        slot = self._next().unsqueeze(0)
        self._keys.index_copy_(1, slot, k.unsqueeze(1))
        self._values.index_copy_(1, slot, v.unsqueeze(1))
        scores = torch.bmm(q.unsqueeze(1), self._keys.transpose(1, 2))  # (N, 1, H)
        read = self._read(q * self._decay).unsqueeze(1)
        return torch.baddbmm(read, scores, self._values).squeeze(1)

    def fused_step(self, projected: Tensor, gate: Tensor) -> Tensor:
        """:meth:`step` as one kernel, from the raw projections.

        Args:
            projected: (N, 2E + 2V) the raw q, k, v and r.
            gate: (N, E) the raw decay.

        Returns:
            (N, V).
        """
        from pwm_core.models.imagined_triton import imagined_step

        state = (self._decay, self._keys, self._values, self._next())
        kept = self._states
        chunks = _contiguous([kept.start, kept.decay, kept.keys, kept.values])  # on CUDA they are
        return imagined_step(projected, gate, *state, *chunks, self._steps.start)

    def _next(self) -> Tensor:
        """The number of steps taken before this one, an int64 scalar."""
        if torch.compiler.is_compiling():
            if self._clock is not None:
                return self._clock._position
            return self._position.add_(1)
        self._length += 1
        return self._positions[self._length - 1]

    def _read(self, query: Tensor) -> Tensor:
        """The product of ``query`` (N, E) and the replayed states: (N, V)."""
        batch, chunks, chunk, width = self._shape
        placed = query.new_zeros(batch, chunks * chunk, width)
        placed[:, self._steps] = query.view(batch, -1, width)
        output = self._states.read(placed.view(self._shape)).flatten(1, 2)
        return output[:, self._steps].flatten(0, 1)


def _contiguous(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]
