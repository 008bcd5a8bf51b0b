"""Linear recurrences over a sequence, computed in parallel.

Two recurrences appear in PaMoRL, and both are scans of the associative operator
``(g_i, x_i) . (g_j, x_j) = (g_i g_j, g_j x_i + x_j)``:

- linear attention, ``S_t = diag(g_t) S_{t-1} + k_t^T v_t`` with ``o_t = q_t S_t``
  (:func:`linear_attention`; PaMoRL, section 3.1);
- eligibility traces and lambda-returns, ``y_t = g_t y_{t-1} + x_t`` (:func:`linear_recurrence`).

All backends give the same values and gradients:

=============== =========================================== ================== ===============
backend         how                                         depth              extra memory
=============== =========================================== ================== ===============
``sequential``  one step after the other: the reference     T                  T states
``odd_even``    Brent-Kung, the paper's                     2 log2 T           3 T states
``kogge_stone`` Hillis-Steele doubling                      log2 T             2 T log T states
``chunked``     matrix products between halves of chunks,   T / chunk +        T / chunk states
                one state per chunk                         log2 chunk
``triton``      one kernel with the state on chip, step     T, on chip         2 sqrt T + T / 5
                after step; attention on CUDA only                             states
=============== =========================================== ================== ===============
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pwm_core.errors import UserError

BACKENDS = ("sequential", "odd_even", "kogge_stone", "chunked", "triton")
"""The backends of :func:`linear_attention`."""
KEPT_CHUNK = 16
"""Largest chunk length when states are kept. Reading a state reads all keys of its chunk."""
HAS_TRITON = importlib.util.find_spec("triton") is not None


def available_backends(device: torch.device) -> tuple[str, ...]:
    """The members of :data:`BACKENDS` that run on ``device``.

    ``triton`` needs CUDA and Triton's driver, or ``TRITON_INTERPRET=1`` for Triton's (slow)
    interpreter.
    """
    runs = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cuda" and HAS_TRITON:
        runs = runs or torch.compiler.is_compiling() or _driver_loads()
    return BACKENDS if HAS_TRITON and runs else BACKENDS[:-1]


@functools.cache
def _driver_loads() -> bool:
    """Whether Triton can launch kernels. It compiles its driver with the machine's C compiler."""
    if not torch.cuda.is_available():
        return True  # CUDA tensors are fake ones then, and nothing is launched
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # whichever it is, torch's operations compute the same
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"note: torch's kernels are used, because Triton's driver does not load: {reason}")
        return False
    return True


def fuses(kernels: str, device: torch.device) -> bool:
    """Whether to use the Triton kernels of the networks on ``device``.

    Args:
        kernels: ``Models.WorldModel.Kernels``.
    """
    if kernels != "auto" or device.type != "cuda" or not HAS_TRITON:
        return False
    # What torch compiles for CUDA are Triton's kernels in any case; it need not trace the attempt.
    return torch.compiler.is_compiling() or _driver_loads()


def check_backend(backend: str, device: torch.device) -> None:
    """Refuse a backend that does not run on ``device``.

    Raises:
        ValueError: unknown backend.
        UserError: the backend needs another device, or a package that is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"scan backend {backend!r} is none of {', '.join(BACKENDS)}")
    if backend not in available_backends(device):
        reason = f"a CUDA device, not {device.type}" if HAS_TRITON else "the package triton"
        if HAS_TRITON and device.type == "cuda":
            reason = "Triton's driver, which does not load here"
        raise UserError(
            f"Models.WorldModel.Scan: {backend} needs {reason}; use "
            "-set Models.WorldModel.Scan=chunked, which computes the same numbers everywhere"
        )


class AttentionOutput(NamedTuple):
    """The result of :func:`linear_attention`.

    Attributes:
        output: (B, T, V) ``o_t``.
        final_state: (B, E, V) ``S_T``.
        states: every ``S_t``, or None without ``return_states``.
    """

    output: Tensor
    final_state: Tensor
    states: States | None


@dataclass(frozen=True)
class States:
    """Every ``S_t`` of a sequence, in factors where the backend does not compute them in full.

    A sequence is cut into M chunks of L steps. The state after step i of a chunk is the sum of the
    state at the chunk's start and of the updates up to step i, each decayed up to step i::

        S_i = diag(decay_i) start + sum_j keys_ij^T values_j

    Attributes:
        length: T; the last of the M * L >= T steps are padding.
        start: (B, M, E, V) the states at the starts of the chunks.
        decay: (B, M, L, E) the decay since the chunk's start.
        keys: (B, M, L, L, E) by i and j, 0 where j > i; None if ``start`` and ``decay`` are all.
        values: (B, M, L, V) by j; None with ``keys``.
    """

    length: int
    start: Tensor
    decay: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None

    def read(self, query: Tensor) -> Tensor:
        """``query_t S_t`` for a ``query`` (B, M, L, E): (B, M, L, V)."""
        output = (query * self.decay) @ self.start
        if self.keys is not None:
            # A row times a matrix: a matrix times a column is eight times slower on a CPU.
            scores = query.unsqueeze(-2) @ self.keys.transpose(-1, -2)  # (B, M, L, 1, L)
            output = output + scores.squeeze(-2) @ self.values
        return output


# ---------------------------------------------------------------------- generic scans over dim 1


def _scan_sequential(decay: Tensor, update: Tensor) -> Tensor:
    values: list[Tensor] = []
    # The gradient of unbind is one stack. That of update[:, t] would fill T steps for every t.
    for kept, gained in zip(decay.unbind(1), update.unbind(1), strict=True):
        values.append(gained + kept * values[-1] if values else gained)
    return torch.stack(values, dim=1)


def _scan_odd_even(decay: Tensor, update: Tensor) -> Tensor:
    """Combine neighbours, scan the half-length sequence, then fill in the even positions."""
    length = update.shape[1]
    if length == 1:
        return update
    paired = length // 2 * 2
    decay_even, decay_odd = decay[:, 0:paired:2], decay[:, 1:paired:2]
    update_even, update_odd = update[:, 0:paired:2], update[:, 1:paired:2]
    at_odd = _scan_odd_even(decay_even * decay_odd, decay_odd * update_even + update_odd)
    before = at_odd if length % 2 else at_odd[:, :-1]
    at_even = decay[:, 2::2] * before + update[:, 2::2]
    at_even = torch.cat([update[:, :1], at_even], dim=1)  # (B, ceil(T/2), ...)
    interleaved = torch.stack([at_even[:, : paired // 2], at_odd], dim=2).flatten(1, 2)
    return torch.cat([interleaved, at_even[:, paired // 2 :]], dim=1)  # (B, T, ...)


def _scan_kogge_stone(decay: Tensor, update: Tensor) -> Tensor:
    """After i doublings, every position holds the sum over the 2^i positions that end there."""
    length, distance = update.shape[1], 1
    while distance < length:
        shifted = decay[:, distance:] * update[:, :-distance] + update[:, distance:]
        update = torch.cat([update[:, :distance], shifted], dim=1)
        decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], dim=1)
        distance *= 2
    return update


_SCANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sequential": _scan_sequential,
    "odd_even": _scan_odd_even,
    "kogge_stone": _scan_kogge_stone,
}


def linear_recurrence(
    decay: Tensor,
    update: Tensor,
    initial: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "odd_even",
) -> Tensor:
    """``y_t = decay_t * y_{t-1} + update_t`` for all t at once.

    Args:
        decay: (B, T, ...) floating; it broadcasts against ``update`` after the first two dims.
        update: (B, T, ...) floating.
        initial: (B, ...) the value before the first step; zeros when None.
        reverse: run from the last step to the first: ``y_t`` follows from ``y_{t+1}``.
        backend: ``sequential``, ``odd_even`` or ``kogge_stone``.

    Returns:
        (B, T, ...) all ``y_t``.

    Raises:
        ValueError: unknown backend.
    """
    if backend not in _SCANS:
        raise ValueError(f"scan backend {backend!r} is none of {', '.join(_SCANS)}")
    if reverse:
        decay, update = decay.flip(1), update.flip(1)
    if initial is not None:
        first = update[:, :1] + decay[:, :1] * initial.unsqueeze(1)
        update = torch.cat([first, update[:, 1:]], dim=1)
    values = _SCANS[backend](decay, update)
    return values.flip(1) if reverse else values


# ------------------------------------------------------------------------------ linear attention


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    reset: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    backend: str = "chunked",
    chunk: int = 64,
    return_states: bool = False,
) -> AttentionOutput:
    """Linear attention with data-dependent decay (PaMoRL, section 3.1).

    ``S_t = diag(g_t) S_{t-1} + k_t^T v_t`` and ``o_t = q_t S_t``. Where ``reset_t`` is set, zeros
    take the place of ``S_{t-1}``.

    Args:
        q, k: (B, T, E) queries and keys.
        v: (B, T, V) values.
        log_decay: (B, T, E) ``log g_t``, at most 0.
        reset: (B, T) bool or 0/1, or None for no resets.
        initial_state: (B, E, V) ``S_0``; zeros when None.
        backend: one of :data:`BACKENDS`.
        chunk: chunk length L of ``chunked``, rounded up to a power of two; at most
            :data:`KEPT_CHUNK` with ``return_states``.
        return_states: also return every ``S_t``. ``triton`` cannot, so ``chunked`` then computes
            everything in its place.

    Raises:
        ValueError: unknown backend.
        UserError: the backend does not run on this device.
    """
    check_backend(backend, q.device)
    decay = log_decay.exp()
    if reset is not None:
        decay = decay.masked_fill(reset.bool().unsqueeze(-1), 0.0)
    if backend == "chunked" or (backend == "triton" and return_states):
        chunk = min(chunk, KEPT_CHUNK) if return_states else chunk
        return _chunked_attention(q, k, v, decay, initial_state, chunk, return_states)
    if backend == "triton":
        from pwm_core.models.scan_triton import fused_recurrence

        return AttentionOutput(*fused_recurrence(q, k, v, decay, initial_state), None)
    update = k.unsqueeze(-1) * v.unsqueeze(-2)  # (B, T, E, V)
    states = linear_recurrence(decay.unsqueeze(-1), update, initial_state, backend=backend)
    output = (q.unsqueeze(-2) @ states).squeeze(-2)  # (B, T, V)
    kept = None
    if return_states:
        kept = States(q.shape[1], states, torch.ones_like(decay).unsqueeze(2))
    return AttentionOutput(output, states[:, -1], kept)


class _Blocks(NamedTuple):
    """Blocks of J consecutive steps, each computed on its own: (B, M, L/J, ...).

    Attributes:
        scores: (..., J, J) by i and j, how much step i reads of step j: ``q_i . k_j`` with the
            decays in between; or (..., J, J, E), ``k_j`` with those decays. 0 where j > i.
        queries: (..., J, E) by i, ``q_i`` (or 1) with the decays from the block's start to step i.
        keys: (..., J, E) by j, ``k_j`` with the decays after step j up to the block's end.
        decay: (..., 1, E) the decay over the whole block.
    """

    scores: Tensor
    queries: Tensor
    keys: Tensor
    decay: Tensor


def _merge(blocks: _Blocks, product: Callable[[Tensor, Tensor], Tensor]) -> _Blocks:
    """Merge pairs of neighbouring blocks into blocks of 2J steps; the right one reads the left one.

    Decays are only multiplied, never divided: queries by the decays since the border and keys by
    the decays before it. Nothing overflows, a decay of 0 (a reset) needs no special case, and no
    precision is lost in differences of large logarithms.
    """
    (scores, right_scores), (queries, right), (left, keys), (decay, right_decay) = (
        x.unflatten(2, (-1, 2)).unbind(3) for x in blocks
    )
    across = product(right, left)  # (..., J, J) or (..., J, J, E)
    above = torch.cat([scores, torch.zeros_like(scores)], dim=4)
    below = torch.cat([across, right_scores], dim=4)
    return _Blocks(
        torch.cat([above, below], dim=3),
        torch.cat([queries, right * decay], dim=3),
        torch.cat([left * right_decay, keys], dim=3),
        decay * right_decay,
    )


def _read_keys(queries: Tensor, keys: Tensor) -> Tensor:
    """(..., J, E) and (..., J, E) -> (..., J, J)."""
    return queries @ keys.transpose(-1, -2)


def _decay_keys(decay: Tensor, keys: Tensor) -> Tensor:
    """(..., J, E) and (..., J, E) -> (..., J, J, E)."""
    return decay.unsqueeze(-2) * keys.unsqueeze(-3)


def _split(x: Tensor, chunks: int, chunk: int, fill: float = 0.0) -> Tensor:
    """Cut ``x`` (B, T, ...) into M chunks of L steps: (B, M, L, ...).

    Missing steps are filled with ``fill``, with which they change nothing.
    """
    padding = chunks * chunk - x.shape[1]
    if padding:
        x = torch.cat([x, x.new_full((x.shape[0], padding, *x.shape[2:]), fill)], 1)
    return x.reshape(x.shape[0], chunks, chunk, *x.shape[2:])


def _pass_states(update: Tensor, carry: Tensor, initial_state: Tensor | None) -> list[Tensor]:
    """The states (B, E, V) at the start of each chunk, and last that at the end.

    Args:
        update: (B, M, E, V) what each chunk adds to the state.
        carry: (B, M, 1, E) the decay over each chunk.
        initial_state: (B, E, V); zeros when None.
    """
    states = [update.new_zeros(update[:, 0].shape) if initial_state is None else initial_state]
    # The gradient of unbind is one stack. That of update[:, m] would fill M chunks for every m.
    for gained, kept in zip(update.unbind(1), carry.transpose(-1, -2).unbind(1), strict=True):
        states.append(torch.addcmul(gained, kept, states[-1]))
    return states


def _chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    chunk: int,
    return_states: bool,
) -> AttentionOutput:
    """Merge single steps into chunks of L steps, log2 L times, then pass a state along the chunks.

    ``G_ji`` is the product of the decays after step j up to step i, and 0 is the chunk's start::

        o_i = (q_i G_0i) S_0 + sum_{j<=i} (q_i . k_j G_ji) v_j
    """
    length = q.shape[1]
    chunk = 1 << (min(chunk, length) - 1).bit_length()  # the next power of two
    chunks = -(-length // chunk)
    q, k, v = (_split(x, chunks, chunk) for x in (q, k, v))
    decay = _split(decay, chunks, chunk, 1.0)
    if return_states:  # later queries need the keys, so they are kept instead of the scores
        scores, queries, product = k.unsqueeze(3), decay, _decay_keys
    else:
        scores, queries, product = (q * k).sum(-1, keepdim=True), q * decay, _read_keys
    blocks = _Blocks(*(x.unsqueeze(3) for x in (scores, queries, k, decay)))
    while blocks.scores.shape[3] < chunk:
        blocks = _merge(blocks, product)
    scores, queries, keys, carry = (x.squeeze(2) for x in blocks)

    update = keys.transpose(-1, -2) @ v  # (B, M, E, V)
    *starts, final_state = _pass_states(update, carry, initial_state)
    start = torch.stack(starts, dim=1)  # (B, M, E, V)
    if return_states:
        states = States(length, start, queries, scores, v)
        output = states.read(q)
    else:
        states, output = None, queries @ start + scores @ v
    return AttentionOutput(output.flatten(1, 2)[:, :length], final_state, states)
