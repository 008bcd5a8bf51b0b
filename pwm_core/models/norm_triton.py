"""LayerNorm and SiLU as one Triton kernel, with another one for the gradient.

Under autocast, torch casts a LayerNorm's input to float32, normalises, applies the activation, and
casts the result for the next product: four kernels, and the backward pass as many. Here all of it
happens on chip in float32, and the numbers are the same::

    n = (x - mean(x)) / sqrt(var(x) + eps),   z = w n + b,   y = z sigmoid(z)  or  z

    dz = dy sigmoid(z) (1 + z (1 - sigmoid(z)))  or  dy,   dw = sum dz n,   db = sum dz
    dx = (w dz - mean(w dz) - n mean(w dz n)) / sqrt(var(x) + eps)

This module imports triton, so only where ``pwm_core.models.scan.fuses`` is true may it be imported.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUPS = 264
"""Largest number of programs of the backward pass; each sums the gradients of its rows."""


@triton.jit
def _forward_kernel(
    x, weight, bias, y, mean, inverse, eps, width: tl.constexpr, block: tl.constexpr,
    silu: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    middle = tl.sum(values, axis=0) / width
    distance = tl.where(inside, values - middle, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(distance * distance, axis=0) / width + eps)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    z = distance * scale * w + b
    if silu:
        z = z * tl.sigmoid(z)
    tl.store(y + row * width + columns, z, mask=inside)
    tl.store(mean + row, middle)
    tl.store(inverse + row, scale)


@triton.jit
def _backward_kernel(
    x, weight, bias, mean, inverse, d_y, d_x, d_weights, rows, width: tl.constexpr,
    block: tl.constexpr, silu: tl.constexpr,
):  # fmt: skip
    group, groups = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, block)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    d_w = tl.zeros([block], tl.float32)
    d_b = tl.zeros([block], tl.float32)
    for row in range(group, rows, groups):
        places = row * width + columns
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + row)
        n = tl.where(inside, (values - tl.load(mean + row)) * scale, 0.0)
        d_z = tl.load(d_y + places, mask=inside, other=0.0).to(tl.float32)
        if silu:
            z = n * w + b
            gate = tl.sigmoid(z)
            d_z = d_z * gate * (1.0 + z * (1.0 - gate))
        d_w += d_z * n
        d_b += d_z
        d_n = d_z * w
        shift = tl.sum(d_n, axis=0) / width
        tilt = tl.sum(d_n * n, axis=0) / width
        tl.store(d_x + places, (d_n - shift - n * tilt) * scale, mask=inside)
    tl.store(d_weights + group * width + columns, d_w, mask=inside)
    tl.store(d_weights + (groups + group) * width + columns, d_b, mask=inside)


def _sizes(width: int, silu: bool) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    warps = 1 if block <= 256 else 4 if block <= 2048 else 8
    return {"width": width, "block": block, "silu": silu, "num_warps": warps}


# torch.compile treats the operators as opaque, but it never meets them; see ``FusedNorm``.
@torch.library.custom_op("pamorl::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The result (N, W) in ``dtype``, and the mean and 1 / sqrt(var + eps) of each row, (N,)."""
    y, mean, inverse = _norm_shapes(x, weight, bias, eps, silu, dtype)
    with torch.cuda.device_of(x):
        _forward_kernel[(len(x),)](
            *(x, weight, bias, y, mean, inverse, eps), **_sizes(x.shape[1], silu)
        )
    return y, mean, inverse


@_norm.register_fake
def _norm_shapes(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(2, len(x), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), torch.empty_like(rows[0]), torch.empty_like(rows[1])


@torch.library.custom_op("pamorl::norm_backward", mutates_args=())
def _norm_backward(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, d_y: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x (N, W), and of weight and bias, (2, W) float32."""
    d_x = torch.empty_like(x)
    groups = min(GROUPS, len(x))
    d_weights = mean.new_empty(2, groups, x.shape[1])
    with torch.cuda.device_of(x):
        _backward_kernel[(groups,)](
            *(x, weight, bias, mean, inverse, d_y, d_x, d_weights, len(x)),
            **_sizes(x.shape[1], silu),
        )
    return d_x, d_weights.sum(1)


@_norm_backward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, d_y: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), mean.new_empty(2, x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.silu, _ = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.set_materialize_grads(False)  # avoid making zeros for the statistics


def _differentiate(ctx: Any, d_y: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if d_y is None:
        return (None,) * 6
    x, weight, bias, mean, inverse = ctx.saved_tensors
    d_x, d_weights = _norm_backward(x, weight, bias, mean, inverse, d_y.contiguous(), ctx.silu)
    d_weight, d_bias = d_weights.to(weight.dtype).unbind()
    return d_x, d_weight, d_bias, None, None, None


_norm.register_autograd(_differentiate, setup_context=_save)


def fused_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, silu: bool, dtype: torch.dtype
) -> Tensor:
    """LayerNorm over the last dimension, and SiLU if ``silu``; differentiable once.

    Args:
        x: (..., W) in any floating dtype; computed in float32.
        weight, bias: (W,).
        dtype: of the result.

    Returns:
        (..., W).
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return _norm(rows, weight, bias, eps, silu, dtype)[0].view(x.shape)
