"""The values that the parts of the agent exchange.

The letters of the shapes are explained in ``docs/tensor_shapes.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pwm_core.models.sequence_models.base import SequenceHistory

Metrics = dict[str, Tensor]
"""Scalars by name; they stay on the device."""


class Batch(NamedTuple):
    """Replayed sequences, on the training device.

    Attributes:
        obs: (B, T, *observation_shape) as stored.
        action: (B, T) int64 or (B, T, A) float32, taken at ``obs``.
        reward: (B, T) float32, the reward that followed the action.
        done: (B, T) bool, whether the action led to an end.
        is_first: (B, T) bool, whether ``obs`` begins an episode.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor
    is_first: Tensor


def concatenate(first: Batch, second: Batch) -> Batch:
    """The sequences of both batches; their lengths are equal."""
    return Batch(*(torch.cat(pair) for pair in zip(first, second, strict=True)))


class Context(NamedTuple):
    """The N replayed states from which imagination starts.

    Attributes:
        latent: (N, S) int64, classes of ``z_{t+1}``, drawn from the posterior, or with STORM from
            the prior.
        deter: (N, D) ``deter_t``, zeros where step t+1 begins an episode.
        begins: (N,) bool, whether step t+1 begins an episode. Imagination then starts from zero
            states of the sequence model.
        steps: the steps t of every sequence; N is B times their number.
        history: the sequence model's states after every step of the sequences.
    """

    latent: Tensor
    deter: Tensor
    begins: Tensor
    steps: slice
    history: SequenceHistory


class Trajectory(NamedTuple):
    """N imagined rollouts of H steps.

    Attributes:
        deter: (N, H+1, D) float32; the first entry is the start.
        latent: (N, H+1, S) int64; the first entry is the start.
        action: (N, H) int64 or (N, H, A) float32, as the policy drew it (not clipped).
        log_prob: (N, H) float32, log-probability of ``action`` under the policy that drew it.
        reward: (N, H) float32.
        discount: (N, H) float32, gamma, or 0 where the world model predicts an end.
    """

    deter: Tensor
    latent: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    discount: Tensor
