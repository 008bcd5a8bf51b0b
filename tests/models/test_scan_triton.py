"""The Triton kernels against the sequential scan in float64.

With CUDA the kernels run compiled. Without CUDA, test_scan_backends.py runs this file in a separate
process, where Triton interprets them. A process that has imported interpreted kernels cannot run
compiled ones.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pwm_core.models.scan import available_backends, linear_attention
from pwm_core.models.sequence_models.linear_attention import LinearAttention
from tests.helpers import ACTIONS, dense, disturb, load_small
from tests.helpers_scan import DECAYS, RESETS, TOLERANCE, B, Inputs, make_inputs, make_reset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if "triton" not in available_backends(DEVICE):
    reason = "no kernel runs in this process; test_scan_backends.py runs them in another"
    pytest.skip(reason, allow_module_level=True)

# Neither is a power of two, and the last block of columns is not full.
KEYS, COLUMNS = 6, 20


def attend(
    inputs: Inputs,
    reset: Tensor | None,
    *,
    backend: str = "triton",
    dtype: torch.dtype = torch.float32,
    initial: bool = True,
    weigh: tuple[str, ...] = ("output", "final_state"),
) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random weighting of the outputs in ``weigh``, by name."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    leaves = Inputs(*(x.to(device, dtype).requires_grad_() for x in inputs))
    reset = None if reset is None else reset.to(device)
    state = leaves.initial_state if initial else None
    found = linear_attention(*leaves[:4], reset, state, backend=backend)
    assert found.states is None
    values = {"output": found.output, "final_state": found.final_state}
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(x.shape, generator=generator) for name, x in values.items()}
    total = sum((values[name] * weights[name].to(device, dtype)).sum() for name in weigh)
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    names = (f"gradient of {name}" for name in Inputs._fields)
    found = values | dict(zip(names, gradients, strict=True))
    return {name: x.detach().cpu() for name, x in found.items()}


def check(
    inputs: Inputs, reset: Tensor | None, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Tensor]:
    """Compare by norm, so that a gradient that is small as a whole must be right too."""
    found = attend(inputs, reset, dtype=dtype, **options)
    expected = attend(inputs, reset, backend="sequential", dtype=torch.float64, **options)
    for name, value in expected.items():
        assert found[name].dtype == dtype, name
        error, size = (found[name].double() - value).norm(), value.norm()
        assert error <= TOLERANCE[dtype] * size, f"{name}: {error:.1e} of {size:.1e}"
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 5, 13])
def test_lengths(length: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(length, keys=KEYS, columns=COLUMNS)
    check(inputs, make_reset("per_row", length), dtype)


@pytest.mark.parametrize("reset", RESETS)
def test_resets(reset: str) -> None:
    """Inputs before a reset have a gradient of exactly zero."""
    resets = make_reset(reset, 4)
    found = check(make_inputs(4, keys=KEYS, columns=COLUMNS), resets)
    if resets is not None:
        assert not found["gradient of log_decay"][resets].any()
        assert not found["gradient of initial_state"][resets[:, 0]].any()


@pytest.mark.parametrize("decay", DECAYS)
def test_decays(decay: str) -> None:
    check(make_inputs(9, decay), make_reset("per_row", 9))


@pytest.mark.parametrize(("keys", "columns"), [(1, 1), (3, 16), (16, 33), (70, 16)])
def test_widths(keys: int, columns: int) -> None:
    check(make_inputs(5, keys=keys, columns=columns), make_reset("per_row", 5))


@pytest.mark.parametrize("reset", ["none", "middle"])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("weigh", ["output", "final_state"])
def test_either_output_alone(weigh: str, initial: bool, reset: str) -> None:
    check(make_inputs(4), make_reset(reset, 4), initial=initial, weigh=(weigh,))


def test_strided_inputs_and_gradients() -> None:
    """Inputs are slices of one wide projection, and the gradient of a plain sum is expanded."""
    inputs = make_inputs(5, keys=KEYS, columns=KEYS)
    gradients = []
    for backend, device in (("triton", DEVICE), ("sequential", torch.device("cpu"))):
        wide = torch.cat(inputs[:4], dim=-1).to(device, torch.float32).requires_grad_()
        q, k, v, log_decay = wide.transpose(0, 1).contiguous().transpose(0, 1).split(KEYS, dim=-1)
        linear_attention(q, k, v, log_decay, backend=backend).output.sum().backward()
        gradients.append(wide.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_states_are_kept_for_a_gradient_only_and_few() -> None:
    from pwm_core.models.scan_triton import _recurrence

    inputs = make_inputs(17, keys=KEYS, columns=COLUMNS)
    q, k, v, log_decay, initial = (x.to(DEVICE, torch.float32) for x in inputs)
    for keep, count in ((False, 0), (True, 4)):
        kept = _recurrence(q, k, v, log_decay.exp(), initial, keep)[2]
        assert kept.shape == (B, count, KEYS, COLUMNS)


def test_what_torch_compile_relies_on() -> None:
    """torch checks the operators' declared shapes, their gradient, and that they mutate nothing."""
    from pwm_core.models.scan_triton import _recurrence

    inputs = make_inputs(3, keys=2, columns=3)
    q, k, v, log_decay, initial = (x.to(DEVICE).requires_grad_() for x in inputs)
    decay = log_decay.detach().exp().requires_grad_()
    torch.library.opcheck(_recurrence, (q, k, v, decay, initial, True))


def test_the_states_are_those_of_chunked() -> None:
    inputs = [x.to(DEVICE) for x in make_inputs(19)]
    reset = make_reset("per_row", 19).to(DEVICE)
    for chunk in (3, 16):
        options = {"chunk": chunk, "return_states": True}
        found, expected = (
            linear_attention(*inputs[:4], reset, inputs[4], backend=backend, **options)
            for backend in ("triton", "chunked")
        )
        torch.testing.assert_close(dense(found.states), dense(expected.states), rtol=0, atol=0)
        torch.testing.assert_close(found.output, expected.output, rtol=0, atol=0)


def test_the_sequence_model_trains_on_it() -> None:
    outputs = []
    is_first = make_reset("per_row", 9).to(DEVICE)
    for name in ("triton", "chunked"):
        config = load_small(f"Models.WorldModel.Scan={name}")
        torch.manual_seed(0)
        model = LinearAttention(config.Models, ACTIONS).eval()
        disturb(model)
        model.to(DEVICE)
        latent = torch.randn(B, 9, config.Models.Stoch * config.Models.Discrete)
        deter, _ = model(latent.to(DEVICE), torch.ones(B, 9, ACTIONS, device=DEVICE), is_first)
        deter.square().sum().backward()
        outputs.append([deter, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
