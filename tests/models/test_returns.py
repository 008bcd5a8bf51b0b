"""Return targets against loops that run backward in time."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pwm_core.models.returns import lambda_return, pete_return, step_weights

SCANS = ("sequential", "odd_even", "kogge_stone")
HORIZONS = (1, 2, 15, 16)


class Rollout(NamedTuple):
    reward: Tensor
    discount: Tensor
    value: Tensor


def make_rollout(horizon: int, rows: int = 4) -> Rollout:
    """A random rollout with predicted ends in the middle, at the first and at the last step."""
    torch.manual_seed(horizon)
    discount = 0.5 + 0.5 * torch.rand(rows, horizon)
    discount[0, horizon // 2], discount[1, 0], discount[2, -1] = 0.0, 0.0, 0.0
    return Rollout(torch.randn(rows, horizon), discount, 3 * torch.randn(rows, horizon + 1))


def loop_lambda(rollout: Rollout, lambda_: float) -> Tensor:
    reward, discount, value = rollout
    returns = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        after = value[b, -1]
        for t in reversed(range(reward.shape[1])):
            blend = (1 - lambda_) * value[b, t + 1] + lambda_ * after
            after = returns[b, t] = reward[b, t] + discount[b, t] * blend
    return returns


def loop_pete(rollout: Rollout, lambda_: Tensor, rho: Tensor) -> Tensor:
    reward, discount, value = rollout
    returns = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        trace = torch.zeros(())
        for t in reversed(range(reward.shape[1])):
            error = reward[b, t] + discount[b, t] * value[b, t + 1] - value[b, t]
            trace = discount[b, t] * lambda_[b, t] * trace + rho[b, t] * error
            returns[b, t] = value[b, t] + trace
    return returns


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("horizon", HORIZONS)
def test_lambda_return_is_the_loop_and_pete_equals_it_at_ratio_1(
    horizon: int, lambda_: float, scan: str
) -> None:
    rollout = make_rollout(horizon)
    expected = loop_lambda(rollout, lambda_)
    ones = torch.ones_like(rollout.reward)
    for found in (
        lambda_return(*rollout, lambda_, scan=scan),
        pete_return(*rollout, lambda_, scan=scan),
        pete_return(*rollout, lambda_ * ones, ones, scan=scan),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("horizon", HORIZONS)
def test_pete_with_ratios_and_a_lambda_per_step_is_the_loop(horizon: int, scan: str) -> None:
    rollout = make_rollout(horizon)
    rho, lambda_ = 2 * torch.rand_like(rollout.reward), torch.rand_like(rollout.reward)
    found = pete_return(*rollout, lambda_, rho, scan=scan)
    torch.testing.assert_close(found, loop_pete(rollout, lambda_, rho), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, pete_return(*rollout, lambda_, scan=scan))


def test_unknown_scans_are_refused() -> None:
    for estimator in (lambda_return, pete_return):
        with pytest.raises(ValueError, match="brent"):
            estimator(*make_rollout(3), 0.95, scan="brent")


def test_nothing_after_an_end_reaches_the_return_before_it() -> None:
    reward, discount, value = make_rollout(6)
    discount[:, 2] = 0.0
    later = Rollout(reward.clone(), discount, value.clone())
    later.reward[:, 3:] += 100
    later.value[:, 3:] -= 100
    for estimator in (lambda_return, pete_return):
        before, after = estimator(reward, discount, value, 0.95), estimator(*later, 0.95)
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert (before[:, 3:] != after[:, 3:]).all()


def test_step_weights_are_a_running_product_that_an_end_zeroes_for_good() -> None:
    """An imagined step after a predicted end never counts again."""
    discount = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.0, 0.9, 0.9], [0.0, 0.9, 0.9, 0.9]])
    expected = torch.tensor([[1, 0.9, 0.72, 0.504], [1, 0.9, 0, 0], [1, 0, 0, 0]])
    torch.testing.assert_close(step_weights(discount), expected)
