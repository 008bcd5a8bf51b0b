"""Linear attention: every backend against ``sequential``, and that against a plain loop.

The backend that needs a GPU is tested in test_scan_triton.py.
"""

from __future__ import annotations

import functools
import itertools
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.scan import full_operands
from pwm_core.models.scan import (
    States,
    available_backends,
    linear_attention,
)
from pwm_core.models.sequence_models.memory import ImaginedMemory, RecurrentMemory
from pwm_core.runtime import keep_freed_memory
from tests.helpers import dense
from tests.helpers_scan import DECAYS, RESETS, TOLERANCE, B, E, Inputs, V, make_inputs, make_reset

LENGTHS = (1, 2, 7, 16, 63, 64, 100)
VARIANTS = [(name, 1) for name in available_backends(torch.device("cpu")) if name != "chunked"]
VARIANTS += [("chunked", chunk) for chunk in (1, 3, 16, 64, 1000)]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def attend(
    inputs: Inputs,
    reset: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    chunk: int,
    *,
    kept: bool = True,
) -> dict[str, Tensor]:
    """Results and gradients of linear attention by name.

    The results are the outputs and, with ``kept``, every state. The gradients are those of a random
    weighting of all results.
    """
    leaves = Inputs(*(x.to(dtype).requires_grad_() for x in inputs))
    found = linear_attention(
        *leaves[:4], reset, leaves[4], backend=backend, chunk=chunk, return_states=kept
    )
    values = {"output": found.output, "final_state": found.final_state}
    if kept:
        assert found.states is not None
        values["states"] = dense(found.states)
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
        for x in values.values()
    )
    gradients = torch.autograd.grad(total, leaves)
    names = (f"gradient of {name}" for name in Inputs._fields)
    return values | dict(zip(names, gradients, strict=True))


@functools.cache
def oracle(length: int, reset: str, decay: str, *, kept: bool = True) -> dict[str, Tensor]:
    inputs = make_inputs(length, decay)
    return attend(inputs, make_reset(reset, length), torch.float64, "sequential", 1, kept=kept)


def check(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in expected.items():
        assert found[name].dtype == dtype, name
        assert torch.isfinite(found[name]).all(), name
        error = (found[name].double() - value).abs().max() / value.abs().max().clamp_min(1)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("backend", "chunk"), VARIANTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length: int, backend: str, chunk: int, dtype: torch.dtype) -> None:
    reset = make_reset("per_row", length)
    for kept in (False, True):
        found = attend(make_inputs(length), reset, dtype, backend, chunk, kept=kept)
        check(found, oracle(length, "per_row", "mixed", kept=kept), dtype)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("backend", "chunk"), VARIANTS)
def test_resets(backend: str, chunk: int, reset: str) -> None:
    inputs = make_inputs(19), make_reset(reset, 19), torch.float32
    for kept in (False, True):
        found = attend(*inputs, backend, chunk, kept=kept)
        check(found, oracle(19, reset, "mixed", kept=kept), torch.float32)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("backend", "chunk"), VARIANTS)
def test_decays(backend: str, chunk: int, decay: str) -> None:
    for reset, kept in itertools.product(("none", "per_row"), (False, True)):
        inputs = make_inputs(33, decay), make_reset(reset, 33), torch.float32
        found = attend(*inputs, backend, chunk, kept=kept)
        check(found, oracle(33, reset, decay, kept=kept), torch.float32)


def test_an_extreme_decay_does_not_blur_the_moderate_ones_after_it() -> None:
    inputs = make_inputs(33)
    inputs.log_decay[:, ::5] = -1e4
    for kept in (False, True):
        expected = attend(inputs, None, torch.float64, "sequential", 1, kept=kept)
        for backend, chunk in VARIANTS:
            found = attend(inputs, None, torch.float32, backend, chunk, kept=kept)
            check(found, expected, torch.float32)


def loop(inputs: Inputs, reset: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (B, T, V) and states (B, T, E, V), one number at a time."""
    q, k, v, log_decay, initial = (x.numpy() for x in inputs)
    outputs, states = np.zeros((*q.shape[:2], V)), np.zeros((*q.shape[:2], E, V))
    for b in range(B):
        for i in range(E):
            for j in range(V):
                state = initial[b, i, j]
                for t in range(q.shape[1]):
                    decay = 0.0 if reset[b, t] else np.exp(log_decay[b, t, i])
                    state = decay * state + k[b, t, i] * v[b, t, j]
                    states[b, t, i, j] = state
                    outputs[b, t, j] += q[b, t, i] * state
    return outputs, states


@pytest.mark.parametrize("reset", RESETS[1:])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_sequential_is_the_plain_loop(length: int, reset: str) -> None:
    found = oracle(length, reset, "mixed")
    outputs, states = loop(make_inputs(length), make_reset(reset, length))
    for name, value in {"output": outputs, "states": states, "final_state": states[:, -1]}.items():
        np.testing.assert_allclose(found[name].detach(), value, rtol=1e-12, atol=1e-12)


def test_the_gradients_of_sequential_are_those_of_finite_differences() -> None:
    reset = make_reset("middle", 5)
    inputs = [x[:2].requires_grad_() for x in make_inputs(5)]

    def attention(*leaves: Tensor) -> tuple[Tensor, ...]:
        output, final_state, states = linear_attention(
            *leaves[:4], reset[:2], leaves[4], backend="sequential", return_states=True
        )
        return output, final_state, dense(states)

    assert torch.autograd.gradcheck(attention, inputs)


@pytest.mark.parametrize(("backend", "chunk"), VARIANTS)
def test_defaults_are_zero_states_no_resets_and_no_states_returned(
    backend: str, chunk: int
) -> None:
    q, k, v, log_decay, initial = make_inputs(19)
    found = linear_attention(q, k, v, log_decay, backend=backend, chunk=chunk)
    expected = linear_attention(
        *(q, k, v, log_decay, torch.zeros(B, 19), torch.zeros_like(initial)), backend="sequential"
    )
    assert found.states is None
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-12)


def test_the_benchmarks_baseline_computes_the_same() -> None:
    inputs, reset = make_inputs(19), make_reset("per_row", 19)
    found = full_operands(*inputs[:4], reset, inputs.initial_state, return_states=True)
    expected = oracle(19, "per_row", "mixed")
    check(
        {**found._asdict(), "states": dense(found.states)},
        {name: expected[name].detach() for name in ("output", "final_state", "states")},
        torch.float64,
    )


# ------------------------------------------------------------------------------- the kept states


def keep_states(inputs: Inputs, reset: Tensor, backend: str, chunk: int) -> States:
    found = linear_attention(
        *inputs[:4], reset, inputs.initial_state, backend=backend, chunk=chunk, return_states=True
    )
    assert found.states is not None
    return found.states


@pytest.mark.parametrize("length", [1, 7, 16, 33])
@pytest.mark.parametrize(("backend", "chunk"), VARIANTS)
def test_reading_states_is_the_query_times_the_states_written_out(
    backend: str, chunk: int, length: int
) -> None:
    states = keep_states(make_inputs(length), make_reset("per_row", length), backend, chunk)
    assert states.length == length
    query = torch.randn(states.decay.shape).double()  # (B, M, L, E)
    found = states.read(query).flatten(1, 2)[:, :length]
    written = oracle(length, "per_row", "mixed")["states"].detach()
    expected = torch.einsum("bte,btev->btv", query.flatten(1, 2)[:, :length], written)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("chunk", "inside", "count"), [(1, 1, 33), (3, 4, 9), (16, 16, 3), (32, 16, 3), (1000, 16, 3)]
)
def test_chunked_keeps_one_state_per_chunk(chunk: int, inside: int, count: int) -> None:
    """The chunk length is rounded up to a power of two and is at most 16."""
    states = keep_states(make_inputs(33), make_reset("none", 33), "chunked", chunk)
    shapes = [x.shape for x in (states.start, states.decay, states.keys, states.values)]
    assert shapes == [
        *((B, count, E, V), (B, count, inside, E)),
        *((B, count, inside, inside, E), (B, count, inside, V)),
    ]


STARTS = {
    "all": slice(0, 13),
    "all but the last": slice(0, 12),
    "the last few": slice(8, 13),
    "the last": slice(12, 13),
    "from the end": slice(-3, None),
    "the first": slice(0, 1),
    "inside one chunk": slice(5, 7),
    "across chunks": slice(2, 10),
}


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize(("backend", "chunk"), [*VARIANTS, ("chunked", 4)])
@torch.no_grad()
def test_imagined_memory_is_recurrent_memory(backend: str, chunk: int, starts: slice) -> None:
    """The float32 states of every backend give what float64 states of ``sequential`` give."""
    inputs, reset = make_inputs(13), make_reset("per_row", 13)
    states = keep_states(Inputs(*(x.float() for x in inputs)), reset, backend, chunk)
    kept = {name: x.clone() for name, x in vars(states).items() if isinstance(x, Tensor)}
    written = dense(keep_states(inputs, reset, "sequential", 1))[:, starts].flatten(0, 1)
    count = len(written)
    for zeros in (torch.zeros(count), torch.arange(count) % 3 == 1, torch.ones(count)):
        zero = zeros.bool()
        imagined = ImaginedMemory(states, starts, zero, 15)
        recurrent = RecurrentMemory(written.masked_fill(zero.view(-1, 1, 1), 0.0))
        for step in range(15):
            q, k, v = (torch.randn(count, width) for width in (E, E, V))
            log_decay = -torch.rand(count, E)
            log_decay[0], log_decay[1] = -1e4 if step == 7 else -0.0, -1e-8
            found = imagined.step(q, k, v, log_decay).double()
            expected = recurrent.step(*(x.double() for x in (q, k, v, log_decay)))
            torch.testing.assert_close(found, expected, **CLOSE)
    for name, value in kept.items():  # the replayed states are only read
        torch.testing.assert_close(getattr(states, name), value, rtol=0, atol=0)


# --------------------------------------------------------------------------- generic recurrences


def test_time_does_not_grow_with_the_length_at_a_fixed_number_of_tokens() -> None:
    """4096 tokens take at most 2.5 times longer as one sequence than as 64 sequences.

    The processor time of forward and backward is measured. The ratio was 1.1, and 7 with a gradient
    that fills all chunks for every chunk.
    """

    def seconds(length: int) -> float:
        shape = (4096 // length, length, 128)
        inputs = [torch.rand(shape).requires_grad_() for _ in range(3)]
        inputs.append(torch.rand(shape).log().requires_grad_())
        times = []
        for _ in range(4):
            began = time.process_time()
            linear_attention(*inputs, chunk=16).output.sum().backward()
            times.append(time.process_time() - began)
        return min(times)

    keep_freed_memory()  # as a training process does; page faults would hide the difference
    seconds(64)
    assert seconds(4096) < 2.5 * seconds(64)
