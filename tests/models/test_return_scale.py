"""The scale that advantages are divided by."""

from __future__ import annotations

import numpy as np
import torch

from pwm_core.models.actor_critic import ReturnScale


def test_the_return_scale_is_a_moving_average_from_zero_and_at_least_1() -> None:
    scale = ReturnScale(0.05, 0.95, 0.99)
    assert scale.percentiles.tolist() == [0.0, 0.0]
    torch.manual_seed(0)
    low = high = 0.0
    seen = []
    for update in range(400):
        returns = 5 + (10 if update < 200 else 0.1) * torch.randn(6, 15)
        found = scale(returns.requires_grad_())
        low = 0.99 * low + 0.01 * np.quantile(returns.detach().numpy(), 0.05)
        high = 0.99 * high + 0.01 * np.quantile(returns.detach().numpy(), 0.95)
        torch.testing.assert_close(found.item(), max(1.0, high - low), rtol=1e-4, atol=1e-4)
        assert not found.requires_grad
        seen.append(found.item())
    assert seen[0] == 1.0
    assert seen[199] > 20
    assert set(scale.state_dict()) == {"percentiles"}
