"""The Triton kernel of an imagined step against the recurrent attention in float64.

With CUDA it runs compiled. Without, test_scan_backends.py runs this file in a process of its own,
where Triton interprets it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pwm_core.models.scan import States, available_backends, linear_attention
from pwm_core.models.sequence_models.memory import ImaginedMemory, RecurrentMemory
from tests.helpers import dense
from tests.helpers_scan import B, make_inputs, make_reset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if "triton" not in available_backends(DEVICE):
    reason = "no kernel runs in this process; test_scan_backends.py runs them in another"
    pytest.skip(reason, allow_module_level=True)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""The sums of float32 products over the key channels and the steps are in another order."""


def make_states(length: int, width: int, backend: str) -> States:
    inputs = make_inputs(length, keys=width, columns=width)
    given = [x.to(DEVICE, torch.float32) for x in inputs[:4]]
    reset = make_reset("per_row", length).to(DEVICE)
    return linear_attention(*given, reset, backend=backend, return_states=True).states


def activated(projected: Tensor, gate: Tensor) -> list[Tensor]:
    """What ``LinearAttentionBlock._project`` makes of the raw projections, in float64."""
    q, k, v, r = projected.double().chunk(4, dim=-1)
    values = torch.sigmoid(r) * v
    return [1 + F.elu(q), 1 + F.elu(k), values, F.logsigmoid(gate.double())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["chunked", "odd_even"])
@pytest.mark.parametrize(
    ("length", "width", "steps", "horizon"),
    [(19, 40, slice(17, 19), 3), (3, 6, slice(1, 3), 1)],
)
def test_it_is_the_recurrent_attention(
    length: int, width: int, steps: slice, horizon: int, backend: str, dtype: torch.dtype
) -> None:
    """``dtype`` is that of the projections."""
    states = make_states(length, width, backend)
    starts = B * (steps.stop - steps.start)
    zero = torch.arange(starts, device=DEVICE) % 3 == 1
    memory = ImaginedMemory(states, steps, zero, horizon)
    kept = dense(states)[:, steps].flatten(0, 1).double()
    reference = RecurrentMemory(kept.masked_fill(zero.view(-1, 1, 1), 0.0))
    for step in range(horizon):
        generator = torch.Generator().manual_seed(step)
        projected = 2 * torch.randn(starts, 4 * width, generator=generator)
        gate = 3 * torch.randn(starts, width, generator=generator)
        projected, gate = projected.to(DEVICE, dtype), gate.to(DEVICE, dtype)
        found = memory.fused_step(projected, gate)
        expected = reference.step(*activated(projected, gate)).float()
        torch.testing.assert_close(found, expected, **CLOSE)


def test_extreme_projections_stay_finite() -> None:
    """Gates that shut and keys that vanish or grow by a thousand."""
    states = make_states(5, 4, "chunked")
    memory = ImaginedMemory(states, slice(1, 5), torch.zeros(4 * B, device=DEVICE).bool(), 2)
    for size in (1e3, -1e3):
        projected = torch.full((4 * B, 16), size, device=DEVICE)
        found = memory.fused_step(projected, torch.full((4 * B, 4), -1e4, device=DEVICE))
        assert torch.isfinite(found).all()


def test_all_steps_share_one_compiled_graph() -> None:
    """The first step finds the memory as later ones do, also where it begins within the states."""
    memory = ImaginedMemory(
        make_states(40, 4, "chunked"), slice(20, 30), torch.zeros(10 * B, device=DEVICE).bool(), 3
    )
    graphs = []

    def keep(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(memory.fused_step, backend=keep, dynamic=False, fullgraph=True)
    inputs = torch.randn(10 * B, 16, device=DEVICE), torch.randn(10 * B, 4, device=DEVICE)
    for _ in range(3):
        step(*inputs)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_what_torch_compile_relies_on() -> None:
    """torch checks the operator's declared shapes, and which of its arguments it changes."""
    from pwm_core.models.imagined_triton import imagined_step

    memory = ImaginedMemory(
        make_states(5, 4, "chunked"), slice(0, 4), torch.zeros(4 * B, device=DEVICE).bool(), 2
    )
    states = memory._states
    arguments = (
        *(torch.randn(4 * B, 16, device=DEVICE), torch.randn(4 * B, 4, device=DEVICE)),
        *(memory._decay, memory._keys, memory._values, memory._positions[0]),
        *(x.contiguous() for x in (states.start, states.decay, states.keys, states.values)),
        0,
    )
    torch.library.opcheck(imagined_step, arguments)
