"""One imagined step of linear attention as one Triton kernel.

It computes what ``linear_attention.ImaginedMemory.step`` computes with about thirty of torch's
operations, from the raw outputs of a block's two projections. A program computes one of the N
starts. It goes through the key channels in blocks, and keeps the output on chip::

    q, k, v = 1 + ELU(q'), 1 + ELU(k'), sigmoid(r') v'        g = sigmoid(g')
    G <- g G,   K_j <- g K_j,   K_t <- k,   V_t <- v
    o = (q G) S_0 + sum_{j<=t} (q . K_j) V_j
    (q G) S_0 = (q G d_i) S_c + sum_{j<=i} (q G . C_ij) W_j

``S_c`` is the state at the start of the replayed chunk c, and start n lies after its step i. The
decays d, the keys C and the values W of the chunk are those of ``pwm_core.models.scan.States``.

This module imports triton, so only where ``pwm_core.models.scan.fuses`` is true may it be imported.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEY_BLOCK = 32
"""Key channels that a program holds at a time."""


@triton.jit
def _step_kernel(
    projected,
    gate,
    decay,
    keys,
    values,
    position,
    start,
    chunk_decay,
    chunk_keys,
    chunk_values,
    output,
    per_row,
    first,
    chunks,
    length: tl.constexpr,
    horizon: tl.constexpr,
    width: tl.constexpr,
    columns: tl.constexpr,
    key_block: tl.constexpr,
    value_block: tl.constexpr,
    length_block: tl.constexpr,
    horizon_block: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    t = tl.load(position)
    step = first + n % per_row
    chunk = (n // per_row) * chunks + step // length
    i = chunk * length + step % length
    slots, members = tl.arange(0, horizon_block), tl.arange(0, length_block)
    v = tl.arange(0, value_block)
    in_v = v < columns
    row = projected + n * (2 * width + 2 * columns)

    raw = tl.load(row + 2 * width + v, mask=in_v, other=0.0).to(tl.float32)
    sharp = tl.load(row + 2 * width + columns + v, mask=in_v, other=0.0).to(tl.float32)
    value = tl.sigmoid(sharp) * raw
    summed = tl.zeros([value_block], tl.float32)
    scores = tl.zeros([horizon_block], tl.float32)
    chunk_scores = tl.zeros([length_block], tl.float32)
    for begin in range(0, width, key_block):
        e = begin + tl.arange(0, key_block)
        in_e = e < width
        q = tl.load(row + e, mask=in_e, other=0.0).to(tl.float32)
        k = tl.load(row + width + e, mask=in_e, other=0.0).to(tl.float32)
        q = tl.where(in_e, 1.0 + tl.where(q > 0, q, tl.exp(tl.minimum(q, 0.0)) - 1.0), 0.0)
        k = 1.0 + tl.where(k > 0, k, tl.exp(tl.minimum(k, 0.0)) - 1.0)
        g = tl.sigmoid(tl.load(gate + n * width + e, mask=in_e, other=0.0).to(tl.float32))
        total = g * tl.load(decay + n * width + e, mask=in_e, other=0.0)
        tl.store(decay + n * width + e, total, mask=in_e)

        places = keys + (n * horizon + slots[:, None]) * width + e[None, :]
        kept = (slots[:, None] < t) & in_e[None, :]
        held = tl.load(places, mask=kept, other=0.0) * g[None, :]
        held = tl.where(slots[:, None] == t, k[None, :], held)
        tl.store(places, held, mask=(slots[:, None] <= t) & in_e[None, :])
        scores += tl.sum(q[None, :] * held, axis=1)

        query = q * total
        inside = query * tl.load(chunk_decay + i * width + e, mask=in_e, other=0.0)
        tile = (chunk * width + e[:, None]) * columns + v[None, :]
        state = tl.load(start + tile, mask=in_e[:, None] & in_v[None, :], other=0.0)
        summed += tl.sum(inside[:, None] * state, axis=0)
        if chunk_keys is not None:
            near = (i * length + members[:, None]) * width + e[None, :]
            known = (members[:, None] < length) & in_e[None, :]
            chunk_key = tl.load(chunk_keys + near, mask=known, other=0.0)
            chunk_scores += tl.sum(query[None, :] * chunk_key, axis=1)

    places = values + (n * horizon + slots[:, None]) * columns + v[None, :]
    held = tl.load(places, mask=(slots[:, None] < t) & in_v[None, :], other=0.0)
    held = tl.where(slots[:, None] == t, value[None, :], held)
    tl.store(values + (n * horizon + t) * columns + v, value, mask=in_v)
    summed += tl.sum(scores[:, None] * held, axis=0)
    if chunk_keys is not None:
        near = (chunk * length + members[:, None]) * columns + v[None, :]
        known = (members[:, None] < length) & in_v[None, :]
        chunk_value = tl.load(chunk_values + near, mask=known, other=0.0)
        summed += tl.sum(chunk_scores[:, None] * chunk_value, axis=0)
    tl.store(output + n * columns + v, summed, mask=in_v)


# torch.compile treats the operator as opaque. Nothing in it waits for the device.
@torch.library.custom_op("pamorl::imagined_step", mutates_args=("decay", "keys", "values"))
def imagined_step(
    projected: Tensor,
    gate: Tensor,
    decay: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    start: Tensor,
    chunk_decay: Tensor,
    chunk_keys: Tensor | None,
    chunk_values: Tensor | None,
    first: int,
) -> Tensor:
    """One step for N starts, in float32 whatever the dtype of the projections.

    Args:
        projected: (N, 2E + 2V) the raw projections q', k', v', r', one behind the other.
        gate: (N, E) the raw projection g'.
        decay: (N, E) float32 ``G``; updated in place.
        keys: (N, H, E) float32 ``K_j``, the first t of them valid; updated in place.
        values: (N, H, V) float32 ``V_j``; updated in place.
        position: int64 scalar tensor t, the number of steps taken so far, less than H.
        start, chunk_decay, chunk_keys, chunk_values: the fields of ``scan.States``, contiguous.
        first: the step of a sequence, counted from its first chunk, that its first start follows.

    Returns:
        (N, V) float32 ``o``.
    """
    count, horizon, width = keys.shape
    batch, chunks, length = chunk_decay.shape[:3]
    columns = values.shape[-1]
    output = values.new_empty(count, columns)
    with torch.cuda.device_of(projected):
        _step_kernel[(count,)](
            *(projected, gate, decay, keys, values, position, start, chunk_decay, chunk_keys),
            *(chunk_values, output, count // batch, first, chunks),
            length=length,
            horizon=horizon,
            width=width,
            columns=columns,
            key_block=min(KEY_BLOCK, triton.next_power_of_2(width)),
            value_block=triton.next_power_of_2(columns),
            length_block=triton.next_power_of_2(length),
            horizon_block=triton.next_power_of_2(horizon),
            num_warps=4,
        )
    return output


@imagined_step.register_fake
def _(
    projected: Tensor,
    gate: Tensor,
    decay: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    start: Tensor,
    chunk_decay: Tensor,
    chunk_keys: Tensor | None,
    chunk_values: Tensor | None,
    first: int,
) -> Tensor:
    return values.new_empty(values.shape[0], values.shape[-1])
