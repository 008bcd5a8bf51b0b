"""LayerNorm with SiLU as one Triton kernel against torch's in float64.

With CUDA it runs compiled. Without, test_scan_backends.py runs this file in a process of its own,
where Triton interprets it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pwm_core.models.fused_norm import FusedNorm, fuse_norms
from pwm_core.models.networks import mlp
from pwm_core.models.scan import available_backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if "triton" not in available_backends(DEVICE):
    reason = "no kernel runs in this process; test_scan_backends.py runs them in another"
    pytest.skip(reason, allow_module_level=True)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def norm_and_gradients(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> list[Tensor]:
    """The result and the gradients of its sum of squares."""
    from pwm_core.models.norm_triton import fused_norm

    leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
    if x.dtype == torch.float64:
        y = nn.functional.layer_norm(leaves[0], weight.shape, *leaves[1:], eps=1e-5)
        y = nn.functional.silu(y) if silu else y
    else:
        y = fused_norm(*leaves, 1e-5, silu=silu, dtype=x.dtype)
    return [y, *torch.autograd.grad(y.double().square().sum(), leaves)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 20), (7, 64), (1, 1)])
def test_values_and_gradients(shape: tuple[int, ...], silu: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape) + 1).to(dtype)
    weight, bias = 1 + torch.randn(shape[-1]), torch.randn(shape[-1])
    found = norm_and_gradients(*(value.to(DEVICE) for value in (x, weight, bias)), silu)
    expected = norm_and_gradients(x.double(), weight.double(), bias.double(), silu)
    for one, other in zip(found, expected, strict=True):
        error, size = (one.cpu().double() - other).norm(), other.norm()
        assert error <= TOLERANCE[dtype] * size + 1e-6


def test_rows_shared_by_few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the weights is a sum over several rows of each program."""
    monkeypatch.setattr("pwm_core.models.norm_triton.GROUPS", 3)
    test_values_and_gradients((8, 5), True, torch.float32)


def test_what_torch_compile_relies_on() -> None:
    from pwm_core.models.norm_triton import _norm

    x = torch.randn(2, 6, device=DEVICE, requires_grad=True)
    weight, bias = (torch.randn(6, device=DEVICE, requires_grad=True) for _ in range(2))
    torch.library.opcheck(_norm, (x, weight, bias, 1e-5, True, torch.float32))


def test_a_network_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters keep their names, and their gradients their values."""
    torch.manual_seed(0)
    network, x = mlp(5, 6, 2, "SiLU").to(DEVICE), torch.randn(3, 5, device=DEVICE)
    names = list(network.state_dict())
    expected = network(x)
    gradients = torch.autograd.grad(expected.sum(), network.parameters())
    monkeypatch.setattr("pwm_core.models.fused_norm.fuses", lambda kernels, device: True)
    fuse_norms(network, "auto")
    assert sum(isinstance(part, FusedNorm) for part in network) == 2
    assert list(network.state_dict()) == names
    found = network(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), network.parameters()), gradients)
