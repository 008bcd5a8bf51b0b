"""The number of kernels of a full-size step on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.fake_cuda import DEVICE, FakeCuda, can_count_gradients, cuda_autocast
from benchmarks.kernels import PARTS, Counter, count_step

STEPS = {
    "atari": ((1001, 227, 1233, 358, 72), (6.4, 1.56, 5.16, 2.55, 0.836)),
    "atari, compiled": ((352, 61, 580, 123, 72), (4.36, 0.777, 3.26, 2.91, 0.836)),
    "dmc-proprio": ((957, 219, 1275, 295, 72), (1.73, 0.389, 4.62, 1.83, 0.729)),
    "dmc-proprio, compiled": ((351, 61, 581, 97, 72), (1.1, 0.169, 2.67, 2.37, 0.729)),
    "storm": ((594, 113, 1672, 378, 92), (6.48, 10.4, 14.5, 4.28, 1.13)),
}
"""Kernels and GB of each part of a full-size step. A change that launches fewer kernels, or moves
less, should lower them here."""
CLOSE = 0.05


@pytest.mark.skipif(not can_count_gradients(), reason="a CUDA build of torch without a GPU")
@pytest.mark.parametrize("step", STEPS)
def test_a_step_launches_and_moves_as_much_as_written_here(step: str) -> None:
    case, _, compiled = step.partition(", ")
    counts = count_step(case, compiled=bool(compiled))
    kernels, gigabytes = STEPS[step]
    assert [counts[part].kernels for part in PARTS] == pytest.approx(kernels, rel=CLOSE, abs=3)
    assert [counts[part].gigabytes for part in PARTS] == pytest.approx(gigabytes, rel=CLOSE)


@pytest.mark.skipif(not can_count_gradients(), reason="a CUDA build of torch without a GPU")
@pytest.mark.slow
def test_any_config_is_counted() -> None:
    """Files are laid over the full config of the case's domain, and ``overrides`` over them."""
    files = "config_files/dmc_tiny.yaml,config_files/ablations/no_token_mixing.yaml"
    horizons = [
        count_step("dmc-proprio", [f"JointTrainAgent.ImagineHorizon={steps}"], files=files)
        for steps in (4, 8)
    ]
    kernels = [counts["imagination"].kernels for counts in horizons]
    assert 1.7 < kernels[1] / kernels[0] < 2
    full = count_step("dmc-proprio")
    for part in PARTS[:-1]:
        assert horizons[1][part].gigaflops < full[part].gigaflops / 10


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
