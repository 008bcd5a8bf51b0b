"""Linear attention as two Triton kernels, one forward and one backward: the backend ``triton``.

A program computes one sequence and a block of the V columns. It loops over the T steps and keeps
its (E, block) part of the state in registers::

    S_t = diag(g_t) S_{t-1} + k_t^T v_t,    o_t = q_t S_t

Only one state every ``stride`` steps is written to memory, and only if a gradient is needed.

``dS_t`` is the gradient with respect to ``S_t`` of everything from step t on. At a reset ``g_t`` is
0::

    dS_t = q_t^T do_t + diag(g_{t+1}) dS_{t+1}
    dq_t = S_t do_t,    dk_t = dS_t v_t,    dv_t = k_t dS_t,    dg_t = (dS_t * S_{t-1}) 1

``dg_t`` needs the state and its gradient at the same time, so the backward kernel recomputes the
states between the kept ones. The alternative without states is that ``g_t dg_t`` is a running sum
of ``q_i dq_i - k_i dk_i`` from the end. That sum loses its precision by cancellation: in float32
the error of the gradient of ``log g`` was 2 % of its norm at decays around e^-10, and forty times
its norm around e^-20 (T = 1024). With the equations above it was at most 1e-6.

This module imports triton, so only the backend ``triton`` may import it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 16
"""Largest number of a state's columns that one program holds."""


@triton.jit
def _forward_kernel(
    q,
    k,
    v,
    decay,
    initial,
    output,
    final,
    kept,
    length,
    stride,
    width: tl.constexpr,
    columns: tl.constexpr,
    key_block: tl.constexpr,
    value_block: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    keys = tl.arange(0, key_block)
    values = tl.program_id(1) * value_block + tl.arange(0, value_block)
    in_keys, in_values = keys < width, values < columns
    tile = keys[:, None] * columns + values[None, :]
    in_tile = in_keys[:, None] & in_values[None, :]

    count = tl.cdiv(length, stride)
    state = tl.load(initial + batch * width * columns + tile, mask=in_tile, other=0.0)
    for part in range(count):
        if kept is not None:
            tl.store(kept + (batch * count + part) * width * columns + tile, state, mask=in_tile)
        begin = part * stride
        for t in range(begin, tl.minimum(begin + stride, length)):
            row = batch * length + t
            q_t = tl.load(q + row * width + keys, mask=in_keys, other=0.0)
            k_t = tl.load(k + row * width + keys, mask=in_keys, other=0.0)
            g_t = tl.load(decay + row * width + keys, mask=in_keys, other=0.0)
            v_t = tl.load(v + row * columns + values, mask=in_values, other=0.0)
            state = g_t[:, None] * state + k_t[:, None] * v_t[None, :]
            o_t = tl.sum(q_t[:, None] * state, axis=0)
            tl.store(output + row * columns + values, o_t, mask=in_values)
    tl.store(final + batch * width * columns + tile, state, mask=in_tile)


@triton.jit
def _backward_kernel(
    q,
    k,
    v,
    decay,
    kept,
    scratch,
    d_output,
    d_final,
    d_q,
    d_k,
    d_decay,
    d_v,
    d_initial,
    length,
    stride,
    width: tl.constexpr,
    columns: tl.constexpr,
    key_block: tl.constexpr,
    value_block: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    keys = tl.arange(0, key_block)
    values = tl.program_id(1) * value_block + tl.arange(0, value_block)
    in_keys, in_values = keys < width, values < columns
    tile = keys[:, None] * columns + values[None, :]
    in_tile = in_keys[:, None] & in_values[None, :]
    # d_q, d_k and d_decay are sums over V. Each block of columns writes its own partial sum.
    rows = (tl.program_id(1) * tl.num_programs(0) + batch) * length

    count = tl.cdiv(length, stride)
    d_state = tl.load(d_final + batch * width * columns + tile, mask=in_tile, other=0.0)
    for back in range(count):
        part = count - 1 - back
        begin = part * stride
        end = tl.minimum(begin + stride, length)

        state = tl.load(
            kept + (batch * count + part) * width * columns + tile, mask=in_tile, other=0.0
        )
        for t in range(begin, end):
            before = scratch + (batch * stride + t - begin) * width * columns
            tl.store(before + tile, state, mask=in_tile)
            row = batch * length + t
            k_t = tl.load(k + row * width + keys, mask=in_keys, other=0.0)
            g_t = tl.load(decay + row * width + keys, mask=in_keys, other=0.0)
            v_t = tl.load(v + row * columns + values, mask=in_values, other=0.0)
            do_t = tl.load(d_output + row * columns + values, mask=in_values, other=0.0)
            state = g_t[:, None] * state + k_t[:, None] * v_t[None, :]
            dq_t = tl.sum(state * do_t[None, :], axis=1)
            tl.store(d_q + (rows + t) * width + keys, dq_t, mask=in_keys)
        tl.debug_barrier()  # another thread of this program may read what one has written

        for i in range(end - begin):
            t = end - 1 - i
            before = scratch + (batch * stride + t - begin) * width * columns
            state = tl.load(before + tile, mask=in_tile, other=0.0)  # S_{t-1}
            row = batch * length + t
            q_t = tl.load(q + row * width + keys, mask=in_keys, other=0.0)
            k_t = tl.load(k + row * width + keys, mask=in_keys, other=0.0)
            g_t = tl.load(decay + row * width + keys, mask=in_keys, other=0.0)
            v_t = tl.load(v + row * columns + values, mask=in_values, other=0.0)
            do_t = tl.load(d_output + row * columns + values, mask=in_values, other=0.0)
            d_state += q_t[:, None] * do_t[None, :]
            dk_t = tl.sum(d_state * v_t[None, :], axis=1)
            dg_t = tl.sum(d_state * state, axis=1)
            dv_t = tl.sum(d_state * k_t[:, None], axis=0)
            tl.store(d_k + (rows + t) * width + keys, dk_t, mask=in_keys)
            tl.store(d_decay + (rows + t) * width + keys, dg_t, mask=in_keys)
            tl.store(d_v + row * columns + values, dv_t, mask=in_values)
            d_state *= g_t[:, None]
        tl.debug_barrier()  # all have read before the next part overwrites
    tl.store(d_initial + batch * width * columns + tile, d_state, mask=in_tile)


def _layout(k: Tensor, v: Tensor) -> tuple[int, tuple[int, int], dict[str, int]]:
    """The number of steps between kept states, the grid, and the kernels' compile-time sizes."""
    (batch, length, width), columns = k.shape, v.shape[-1]
    # About sqrt(T) states are kept, and as many are recomputed at a time.
    stride = math.isqrt(length - 1) + 1
    sizes = {"width": width, "columns": columns}
    rows = sizes["key_block"] = triton.next_power_of_2(width)
    block = sizes["value_block"] = min(MOST_COLUMNS, triton.next_power_of_2(columns))
    sizes["num_warps"] = 4 if rows * block >= 1024 else 1
    return stride, (batch, triton.cdiv(columns, block)), sizes


# torch.compile treats these operators as opaque. Nothing in them waits for the device.
@torch.library.custom_op("pamorl::recurrence", mutates_args=())
def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, T, V), final states (B, E, V) and kept states (B, T / stride, E, V).

    Without ``keep`` the last has the shape (B, 0, E, V). All tensors must be contiguous.
    """
    output, final, kept = _recurrence_shapes(q, k, v, decay, initial, keep)
    stride, grid, sizes = _layout(k, v)
    with torch.cuda.device_of(q):
        _forward_kernel[grid](
            *(q, k, v, decay, initial, output, final, kept if keep else None),
            *(k.shape[1], stride),
            **sizes,
        )
    return output, final, kept


@_recurrence.register_fake
def _recurrence_shapes(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = k.shape
    count = -(-length // _layout(k, v)[0]) if keep else 0
    kept = v.new_empty(batch, count, width, v.shape[-1])
    return torch.empty_like(v), torch.empty_like(initial), kept


@torch.library.custom_op("pamorl::recurrence_backward", mutates_args=())
def _recurrence_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    kept: Tensor,
    d_output: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and g, stacked (3, B, T, E), of v (B, T, V) and of S_0 (B, E, V)."""
    stride, grid, sizes = _layout(k, v)
    parts = k.new_empty(3, grid[1], *k.shape)
    d_v, d_initial = torch.empty_like(v), torch.empty_like(d_final)
    scratch = v.new_empty(k.shape[0], stride, *d_final.shape[1:])
    with torch.cuda.device_of(q):
        _backward_kernel[grid](
            *(q, k, v, decay, kept, scratch, d_output, d_final, *parts, d_v, d_initial),
            *(k.shape[1], stride),
            **sizes,
        )
    return parts.sum(1), d_v, d_initial


@_recurrence_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    kept: Tensor,
    d_output: Tensor,
    d_final: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return k.new_empty(3, *k.shape), torch.empty_like(v), torch.empty_like(d_final)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[2])
    ctx.set_materialize_grads(False)  # avoid allocating zero gradients


def _differentiate(
    ctx: Any, d_output: Tensor | None, d_final: Tensor | None, _d_kept: None
) -> tuple[Tensor | None, ...]:
    v, kept = ctx.saved_tensors[2], ctx.saved_tensors[-1]
    d_output = torch.zeros_like(v) if d_output is None else d_output.contiguous()
    d_final = torch.zeros_like(kept[:, 0]) if d_final is None else d_final
    gradients = (d_output, d_final.contiguous())
    keyed, d_v, d_initial = _recurrence_backward(*ctx.saved_tensors, *gradients)
    d_q, d_k, d_decay = keyed.unbind()
    return d_q, d_k, d_v, d_decay, d_initial, None


_recurrence.register_autograd(_differentiate, setup_context=_save)


def fused_recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``o_t = q_t S_t`` with ``S_t = diag(g_t) S_{t-1} + k_t^T v_t``; differentiable once.

    All tensors have one dtype, and the state is computed in it.

    Args:
        q, k: (B, T, E).
        v: (B, T, V).
        decay: (B, T, E) ``g_t``, 0 where the state is reset.
        initial_state: (B, E, V) ``S_0``; zeros when None.

    Returns:
        (B, T, V) ``o_t`` and (B, E, V) ``S_T``.
    """
    if initial_state is None:
        initial_state = v.new_zeros(v.shape[0], k.shape[-1], v.shape[-1])
    inputs = [x.contiguous() for x in (q, k, v, decay, initial_state)]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    output, final_state, _ = _recurrence(*inputs, keep)
    return output, final_state
