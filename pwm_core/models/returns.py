"""Return targets by scan: lambda-returns and PETE (PaMoRL, section 3.2).

All tensors are (N, H) float32. ``reward[:, t]`` and ``discount[:, t]`` follow the action of step t;
the discount is gamma c_t, which is 0 where an episode ends. ``value`` is (N, H+1), and its last
entry is the bootstrap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pwm_core.models.scan import linear_recurrence


def lambda_return(
    reward: Tensor, discount: Tensor, value: Tensor, lambda_: float, *, scan: str = "odd_even"
) -> Tensor:
    """``R_t = r_t + d_t [(1 - lambda) v_{t+1} + lambda R_{t+1}]`` with ``R_H = v_H``: (N, H)."""
    update = reward + (1 - lambda_) * discount * value[:, 1:]
    return linear_recurrence(lambda_ * discount, update, value[:, -1], reverse=True, backend=scan)


def pete_return(
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    lambda_: float | Tensor,
    importance_ratio: Tensor | None = None,
    *,
    scan: str = "odd_even",
) -> Tensor:
    """Parallelised eligibility-trace estimation (PETE): (N, H).

    ``R_t = v_t + E_t`` with ``E_t = d_t lambda_t E_{t+1} + rho_t [r_t + d_t v_{t+1} - v_t]`` and
    ``E_H = 0``. With ``rho = 1`` and constant ``lambda`` it equals :func:`lambda_return`.

    Args:
        lambda_: a number, or (N, H) with one per step.
        importance_ratio: (N, H) ``rho_t`` = pi(a_t) / mu(a_t); 1 when None.
    """
    error = reward + discount * value[:, 1:] - value[:, :-1]
    if importance_ratio is not None:
        error = importance_ratio * error
    trace = linear_recurrence(discount * lambda_, error, reverse=True, backend=scan)
    return value[:, :-1] + trace


def step_weights(discount: Tensor) -> Tensor:
    """The product of the discounts before each step: (N, H), 1 at the first step."""
    before = torch.cat([torch.ones_like(discount[:, :1]), discount[:, :-1]], dim=1)
    return before.cumprod(dim=1)
