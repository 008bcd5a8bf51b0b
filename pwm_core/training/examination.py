"""What the parts of a trained agent know of the steps it takes: prediction, reward and value.

If an agent does not learn a task, these numbers tell which part to look at.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pwm_core.errors import UserError
from pwm_core.models.distributions import sample_index
from pwm_core.models.types import Batch
from pwm_core.runs.recording import Recording
from pwm_core.training.agent import Agent
from pwm_core.training.model_videos import open_loop

CHUNK = 16
"""Sequences that are predicted at once (B)."""
REMAINDER = 0.1
"""A return counts only if at most this share of the weights of its rewards lies after the last
recorded step of its episode."""


@dataclass(frozen=True)
class Ahead:
    """The world model's prediction some steps after the last real observation.

    Attributes:
        steps: how many.
        predicted: the squared error of the predicted observation, divided by that of the last real
            one: 1 is as good as predicting no change.
        reconstructed: the same of the observation that the decoder makes of its own latent. No
            prediction can be expected to be better.
        reward: the share of the reward's variance that the predicted reward explains; None if all
            rewards are equal.
    """

    steps: int
    predicted: float
    reconstructed: float
    reward: float | None


@dataclass(frozen=True)
class Mean:
    """A mean over sequences and its standard error, which is 0 for one sequence."""

    mean: float
    error: float


@dataclass(frozen=True)
class Rewards:
    """The mean reward of some of the steps after the last real observation.

    Attributes:
        first, last: which of them, counted from 1.
        real: as recorded.
        predicted: by the world model, with the recorded actions.
        imagined: by the world model, with actions that the policy takes in imagination. It starts
            from the last real observation, so its first step is one earlier than the others'.
    """

    first: int
    last: int
    real: Mean
    predicted: Mean
    imagined: Mean


@dataclass(frozen=True)
class Value:
    """The critic's value beside the discounted return that followed.

    Attributes:
        states: how many states were compared.
        correlation: between the two; None if one of them does not vary.
        value, observed: the means of both.
    """

    states: int
    correlation: float | None
    value: float
    observed: float


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` finds.

    Attributes:
        sequences: how many recorded sequences were examined.
        given: the number of real steps before each prediction.
        ahead: the predictions, by their distance.
        rewards: of the nearer and of the farther half of the predicted steps.
        value: None if no return is known well enough; see :data:`REMAINDER`.
        entropy: of the policy, a mean in nats; with continuous actions it may be negative.
        rewarded: the share of all recorded steps whose reward is not 0.
    """

    sequences: int
    given: int
    ahead: list[Ahead]
    rewards: list[Rewards]
    value: Value | None
    entropy: float
    rewarded: float


@torch.no_grad()
def examine(
    agent: Agent, recording: Recording, given: int, horizon: int, samples: int
) -> Examination:
    """Compare the agent's predictions with ``recording``.

    Args:
        agent: its weights are not changed.
        recording: at least ``given + horizon`` steps of some episode.
        given: real steps before each prediction, at least 2.
        horizon: predicted steps, which take the recorded actions.
        samples: predictions that are averaged.

    Raises:
        UserError: no episode of the recording is long enough.
    """
    starts = window_starts(recording.is_first, given + horizon, horizon)
    if not len(starts):
        raise UserError(
            f"no episode of the {len(recording.is_first)} steps has {given + horizon} steps; "
            "take more steps, or fewer given or predicted ones"
        )
    index = starts[:, None] + np.arange(given + horizon)  # (B, T)
    found = [
        _predict(agent, _rows(agent, recording, index[i : i + CHUNK]), given, samples)
        for i in range(0, len(index), CHUNK)
    ]
    parts = [torch.cat(part).cpu().numpy() for part in zip(*found, strict=True)]
    truth, rebuilt, predicted, reward, imagined, value, entropy = parts
    scale = truth.std(axis=(0, 1)) if truth.ndim == 3 else np.ones(1)  # coordinates of a vector
    scale = np.where(scale > 1e-6, scale, np.inf)
    last = truth[:, given - 1 : given]
    errors = [
        (((array - truth) / scale) ** 2)[:, given:].mean(axis=(0, *range(2, truth.ndim)))
        for array in (np.broadcast_to(last, truth.shape), predicted, rebuilt)
    ]  # (horizon,) each
    still = np.maximum(errors[0], 1e-12)
    real = recording.reward[index]
    ahead = [
        Ahead(
            step + 1,
            float(errors[1][step] / still[step]),
            float(errors[2][step] / still[step]),
            _explained(reward[:, given + step], real[:, given + step]),
        )
        for step in range(horizon)
    ]
    observed = observed_returns(recording, agent.config.discount)[index[:, given:]]
    return Examination(
        sequences=len(index),
        given=given,
        ahead=ahead,
        rewards=_halves(real[:, given:], reward[:, given:], imagined),
        value=_compare(value[:, given:].ravel(), observed.ravel()),
        entropy=float(entropy[:, given:].mean()),
        rewarded=float((recording.reward != 0).mean()),
    )


def window_starts(is_first: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Where sequences of ``length`` steps begin that lie in one episode each, (B,).

    Args:
        is_first: (N,) bool.
        stride: the least distance of two of them.
    """
    begins = np.flatnonzero(np.append(is_first, True))
    begins = begins if is_first[0] else np.append(0, begins)
    ranges = [
        np.arange(begin, end - length + 1, stride) for begin, end in itertools.pairwise(begins)
    ]
    return np.concatenate(ranges)


def observed_returns(recording: Recording, discount: float) -> np.ndarray:
    """The discounted sum of the rewards from each step on, (N,) float64.

    It is NaN where more than :data:`REMAINDER` of the weights of an endless sum lies after the last
    recorded step of an episode that was cut off.
    """
    returns = np.empty(len(recording.reward))
    total, left = 0.0, 1.0  # left: the share of the weights that lies after the recorded steps
    cut = np.append(recording.is_first[1:], True)
    for step in range(len(returns) - 1, -1, -1):
        if recording.done[step]:
            total, left = 0.0, 0.0
        elif cut[step]:
            total, left = 0.0, 1.0
        total, left = float(recording.reward[step]) + discount * total, discount * left
        returns[step] = total if left <= REMAINDER else np.nan
    return returns


def _rows(agent: Agent, recording: Recording, index: np.ndarray) -> Batch:
    """The recorded sequences (B, T) of the steps ``index``, on the agent's device."""
    arrays = {name: array[index] for name, array in recording.arrays().items()}
    return Batch(**{name: torch.from_numpy(a).to(agent.device) for name, a in arrays.items()})


def _predict(agent: Agent, rows: Batch, given: int, samples: int) -> tuple[Tensor, ...]:
    """Truth, reconstruction and prediction (B, T, ...), predicted rewards (B, T), those of the
    policy in imagination (B, H), the critic's values of the real states and the policy's entropy
    there, (B, T) each."""
    model, judge = agent.world_model.eval(), agent.actor_critic
    shape = rows.is_first.shape
    prepared = model.codec.prepare(rows.obs.flatten(0, 1))
    with agent.autocast():
        latent = sample_index(model.encode(prepared)).unflatten(0, shape)  # (B, T, S)
        action = model.policy.encode(rows.action)
        rebuilt = model.decode(latent.flatten(0, 1)).float()
        deter, _ = model.sequence(latent, action, rows.is_first)  # (B, T, D)
        before = torch.cat([torch.zeros_like(deter[:, :1]), deter[:, :-1]], dim=1).float()
        value = judge.two_hot.decode(judge.critic(before, latent))
        entropy = judge.policy.entropy(judge.actor(before, latent))
        decoded, reward = torch.zeros_like(rebuilt), torch.zeros(shape, device=agent.device)
        for _ in range(samples):
            taken, _ = open_loop(model, latent, rows, given)
            decoded += model.decode(taken.flatten(0, 1)).float() / samples
            follows, _ = model.sequence(taken, action, rows.is_first)
            reward += model.predict(follows)[0].float() / samples
    images = (array.float().unflatten(0, shape) for array in (prepared, rebuilt, decoded))
    imagined = _imagined_rewards(agent, Batch(*(field[:, :given] for field in rows)), samples)
    return *images, reward, imagined, value.float(), entropy.float()


def _imagined_rewards(agent: Agent, rows: Batch, samples: int) -> Tensor:
    """The mean rewards (B, H) of rollouts that start from the last step of ``rows``, as those that
    train the agent do."""
    size = agent.config.JointTrainAgent.ImagineBatchSize
    parts = []
    for begin in range(0, len(rows.is_first), size):
        part = Batch(*(field[begin : begin + size] for field in rows))
        drawn = [agent.imagine(part).reward for _ in range(samples)]
        mean = torch.stack(drawn).mean(0)  # (B * starts, H)
        parts.append(mean.unflatten(0, (len(part.is_first), -1))[:, -1])
    return torch.cat(parts).float()


def _halves(real: np.ndarray, predicted: np.ndarray, imagined: np.ndarray) -> list[Rewards]:
    """The rewards (B, H) of the nearer and of the farther steps, averaged."""
    horizon = real.shape[1]
    edges = sorted({0, (horizon + 1) // 2, horizon})
    return [
        Rewards(
            begin + 1,
            end,
            *(_mean(reward[:, begin:end].mean(1)) for reward in (real, predicted, imagined)),
        )
        for begin, end in itertools.pairwise(edges)
    ]


def _mean(values: np.ndarray) -> Mean:
    """The mean of ``values`` (B,)."""
    count = len(values)
    error = float(values.std(ddof=1)) / count**0.5 if count > 1 else 0.0
    return Mean(float(values.mean()), error)


def _explained(predicted: np.ndarray, real: np.ndarray) -> float | None:
    """The share of the variance of ``real`` that ``predicted`` explains."""
    if real.std() < 1e-8:
        return None
    return float(1 - ((predicted - real) ** 2).mean() / real.var())


def _compare(value: np.ndarray, observed: np.ndarray) -> Value | None:
    """The critic's values beside the returns; those that are NaN are left out."""
    known = np.isfinite(observed)
    value, observed = value[known], observed[known]
    if not len(value):
        return None
    varies = value.std() > 1e-8 and observed.std() > 1e-8
    correlation = float(np.corrcoef(value, observed)[0, 1]) if varies else None
    return Value(len(value), correlation, float(value.mean()), float(observed.mean()))
