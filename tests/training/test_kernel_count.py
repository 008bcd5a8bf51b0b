"""The number of kernels of a full-size step on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.fake_cuda import DEVICE, FakeCuda, can_count_gradients, cuda_autocast
from benchmarks.kernels import PARTS, Counter, count_step

KERNELS = {
    "atari": (1001, 227, 1233, 350, 72),
    "dmc-proprio": (957, 219, 1275, 279, 72),
}
"""Kernels of each part of a step. A change that launches fewer should lower them here."""
CLOSE = 0.05


@pytest.mark.skipif(not can_count_gradients(), reason="a CUDA build of torch without a GPU")
@pytest.mark.parametrize("case", KERNELS)
def test_a_step_launches_as_many_kernels_as_written_here(case: str) -> None:
    counts = count_step(case)
    found = {part: counts[part].kernels for part in PARTS}
    assert found == {
        part: pytest.approx(expected, rel=CLOSE, abs=3)
        for part, expected in zip(PARTS, KERNELS[case], strict=True)
    }


def count(call: object) -> tuple[int, float, float]:
    counter = Counter()
    x, y = counter.on_cuda(torch.zeros(64, 32)), counter.on_cuda(torch.zeros(32, 16))
    with counter, counter.part("it"):
        call(x, y)
    found = counter.counts["it"]
    return found.kernels, found.gigabytes * 1e9, found.gigaflops * 1e9


def test_what_single_operations_count() -> None:
    """Kernels, bytes and FLOPs by hand: views are free, a product is 2 M N K."""
    size = {"x": 64 * 32 * 4, "y": 32 * 16 * 4, "x @ y": 64 * 16 * 4}
    assert count(lambda x, y: x + x) == (1, pytest.approx(2 * size["x"]), 0)
    assert count(lambda x, y: x.t().unsqueeze(0)[:, :3] * 2)[0] == 1
    assert count(lambda x, y: x.mul_(2)) == (1, pytest.approx(2 * size["x"]), 0)
    assert count(lambda x, y: x @ y) == (1, pytest.approx(sum(size.values())), 2 * 64 * 32 * 16)
    assert count(lambda x, y: torch.zeros(64, 32, device=DEVICE))[:2] == (
        1,
        pytest.approx(size["x"]),
    )


def test_autocast_is_that_of_cuda() -> None:
    """Products become bfloat16 with a cast of each operand; LayerNorm stays float32 on CUDA."""
    mode = FakeCuda()
    x, weight = mode.on_cuda(torch.zeros(4, 8)), mode.on_cuda(torch.zeros(8, 8))
    with mode, cuda_autocast(True):
        product = x @ weight
        assert (product.device, product.dtype) == (DEVICE, torch.bfloat16)
        assert torch.layer_norm(product, (8,)).dtype == torch.float32
    assert not torch.is_autocast_enabled("cuda")
