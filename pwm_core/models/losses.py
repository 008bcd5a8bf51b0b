"""Losses as named terms, which are checked for their shape, weighted and summed here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``values`` if they have ``shape``. A wrong shape could broadcast unnoticed.

    Args:
        name: of the term, for the message.

    Raises:
        ValueError: ``values`` have another shape.
    """
    if values.shape != shape:
        raise ValueError(f"the term {name} has the shape {tuple(values.shape)}, not {shape}")
    return values


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """``sum_i weight_i loss_i`` over the names of ``weights``, in their order.

    Returns:
        a scalar.

    Raises:
        ValueError: a term has no weight, a weight has no term, or a term is not a scalar.
    """
    if losses.keys() != weights.keys():
        raise ValueError(f"losses {sorted(losses)} do not match weights {sorted(weights)}")
    total: Tensor | None = None
    for name, weight in weights.items():
        term = weight * check_shape(name, losses[name], ())
        total = term if total is None else total + term
    if total is None:
        raise ValueError("there are no losses to sum")
    return total
