"""The estimate of what torch.compile fuses, on a few operations by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.fusion import fuse
from benchmarks.kernels import Counter


def kernels(call: object, *shapes: tuple[int, ...]) -> list[tuple[int, int]]:
    """The number of operations and the bytes of each kernel that ``call`` becomes."""
    counter = Counter()
    inputs = [counter.on_cuda(torch.zeros(shape)) for shape in shapes]
    with counter, counter.part("it"):
        kept = counter.compiled(call)(*inputs)
    assert kept is not None
    return [(len(kernel.members), kernel.moved) for kernel in fuse(counter._compiled["it"])]


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * 2 + 1


def test_elementwise_operations_and_a_normalisation_are_one_kernel() -> None:
    """It reads its input once and writes its result once; what is in between stays on chip."""
    size = 8 * 4 * 4
    assert kernels(lambda x: (x * 2).exp() + x, (8, 4)) == [(3, 2 * size)]
    assert kernels(lambda x: normalised(x).sigmoid(), (8, 4)) == [(5, 2 * size)]


def test_a_product_stays_alone_and_parts_what_is_around_it() -> None:
    x, w, y = 8 * 4 * 4, 4 * 4 * 4, 8 * 4 * 4
    found = kernels(lambda x, w: ((x * 2) @ w).exp() + 1, (8, 4), (4, 4))
    assert found == [(1, 2 * x), (1, x + w + y), (2, 2 * y)]


def test_nothing_is_fused_across_a_product() -> None:
    """The sum needs the product, and the product needs the first kernel."""

    def call(x: Tensor, w: Tensor) -> Tensor:
        doubled = x * 2
        return doubled @ w + doubled

    assert [count for count, _ in kernels(call, (8, 4), (4, 4))] == [1, 1, 1]


def test_constants_cost_nothing() -> None:
    assert [count for count, _ in kernels(lambda x: x + torch.ones_like(x), (8, 4))] == [1]


@pytest.mark.parametrize("repeat", [1, 3])
def test_two_compiled_functions_are_not_fused(repeat: int) -> None:
    counter = Counter()
    x = counter.on_cuda(torch.zeros(8, 4))
    double = counter.compiled(lambda x: (x * 2).exp())
    with counter, counter.part("it"):
        for _ in range(repeat):
            x = double(x)
    counter.finish()
    assert counter.counts["it"].kernels == repeat


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 5e14), (torch.float32, 2.5e14)])
def test_a_compiled_product_computes_at_the_rate_of_its_dtype(
    dtype: torch.dtype, rate: float
) -> None:
    counter, size = Counter(), 4096
    x = counter.on_cuda(torch.zeros(size, size, dtype=dtype))
    with counter, counter.part("it"):
        counter.compiled(lambda x: x @ x)(x)
    counter.finish()
    assert counter.counts["it"].seconds == pytest.approx(2 * size**3 / rate)
