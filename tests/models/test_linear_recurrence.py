"""Every backend of the generic linear recurrence against a plain loop."""

from __future__ import annotations

import pytest
import torch

from pwm_core.models.scan import (
    linear_attention,
    linear_recurrence,
)
from tests.helpers_scan import B, E, V, make_inputs

LENGTHS = (1, 2, 7, 16, 63, 64, 100)
SERIAL = ("sequential", "odd_even", "kogge_stone")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_initial", [False, True])
@pytest.mark.parametrize("backend", SERIAL)
@pytest.mark.parametrize("length", LENGTHS)
def test_linear_recurrence_is_the_plain_loop(
    length: int, backend: str, with_initial: bool, reverse: bool
) -> None:
    torch.manual_seed(length)
    decay = torch.rand(B, length).double()
    decay[0, length // 2] = 0.0
    update, initial = torch.randn(B, length).double(), torch.randn(B).double()
    expected = torch.zeros(B, length).double()
    for b in range(B):
        value = initial[b] if with_initial else 0.0
        for t in reversed(range(length)) if reverse else range(length):
            value = decay[b, t] * value + update[b, t]
            expected[b, t] = value
    found = linear_recurrence(
        decay, update, initial if with_initial else None, reverse=reverse, backend=backend
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", SERIAL)
def test_linear_recurrence_broadcasts_the_decay(backend: str) -> None:
    decay, update = torch.rand(B, 9, E, 1).double(), torch.randn(B, 9, E, V).double()
    narrow = linear_recurrence(decay, update, backend=backend)
    wide = linear_recurrence(decay.expand_as(update), update, backend="sequential")
    torch.testing.assert_close(narrow, wide)


def test_an_unknown_backend_is_refused() -> None:
    q, k, v, log_decay, _ = make_inputs(2)
    with pytest.raises(ValueError, match=r"'brent'.*chunked"):
        linear_attention(q, k, v, log_decay, backend="brent")
    for backend in ("brent", "chunked"):  # chunked is for attention only
        with pytest.raises(ValueError, match=rf"'{backend}'.*odd_even"):
            linear_recurrence(q, q, backend=backend)
