"""Videos of what the world model reconstructs, imagines and predicts."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pwm_core.models.distributions import sample_index
from pwm_core.models.imagination import imagine
from pwm_core.models.types import Batch
from pwm_core.models.world_model import WorldModel
from pwm_core.training.agent import Agent

ROWS = 4
"""Number of sequences shown side by side (B)."""
CONTEXT = 0.25
"""Fraction of a sequence whose real frames an open-loop prediction is given."""
GIVEN, PREDICTED = (0, 200, 0), (220, 0, 0)
"""Colours of the line above a frame of an open-loop prediction."""


def _tile(frames: Tensor, rows: int) -> np.ndarray:
    """Put the pictures of ``rows`` sequences side by side.

    Args:
        frames: (B*T, height, width, channels) uint8.
        rows: B.

    Returns:
        (T, height, B*width, 3) uint8.
    """
    tiled = rearrange(frames, "(b t) h w c -> t h (b w) c", b=rows)
    return tiled.expand(*tiled.shape[:3], 3).contiguous().cpu().numpy()


def _stack(*panels: np.ndarray) -> np.ndarray:
    """Put n videos (T, height, width, 3) below each other: (T, n*height, width, 3)."""
    return np.concatenate(panels, axis=1)


@torch.no_grad()
def log_videos(agent: Agent, batch: Batch) -> dict[str, np.ndarray]:
    """The videos of a replayed batch by name, each (steps, height, width, 3) uint8.

    There are none if observations are vectors. ``Observation`` and ``Reconstruction`` show T
    replayed steps. ``Imagination`` shows the last of them and the H steps that the policy imagines
    after it, H + 1 frames. ``Comparison`` shows the last steps in three rows: observed,
    reconstructed, and imagined by the policy from the first of these steps. ``OpenLoop`` shows T
    steps in three rows: truth, prediction and absolute error; see :func:`open_loop`.
    """
    count = min(ROWS, len(batch.is_first), agent.config.JointTrainAgent.ImagineBatchSize)
    rows = Batch(*(field[:count] for field in batch))
    model = agent.world_model.eval()
    prepared = model.codec.prepare(rows.obs.flatten(0, 1))
    observed = model.codec.frames(prepared)
    if observed is None:
        return {}
    with agent.autocast():
        latent = sample_index(model.encode(prepared))  # (B*T, S)
        reconstructed = model.codec.frames(model.decode(latent))
        imagined = _imagined(agent, rows)  # (B, starts, H+1, S)
        predicted, given = open_loop(model, latent.unflatten(0, (count, -1)), rows)
        videos = {
            "Video/Observation": _tile(observed, count),
            "Video/Reconstruction": _tile(reconstructed, count),
            "Video/Imagination": _decoded(model, imagined[:, -1]),
        }
        starts = imagined.shape[1]
        from_first = _decoded(model, imagined[:, 0])[:starts]
        prediction = _decoded(model, predicted)
    seen, rebuilt = videos["Video/Observation"], videos["Video/Reconstruction"]
    error = np.abs(seen.astype(np.int16) - prediction).astype(np.uint8)
    mark(prediction, given.cpu().numpy())
    videos["Video/Comparison"] = _stack(seen[-starts:], rebuilt[-starts:], from_first)
    videos["Video/OpenLoop"] = _stack(seen, prediction, error)
    return videos


def _decoded(model: WorldModel, latent: Tensor) -> np.ndarray:
    """Class indices (B, T, S) -> their decoded pictures, (T, height, B*width, 3) uint8."""
    return _tile(model.codec.frames(model.decode(latent.flatten(0, 1))), len(latent))


def _imagined(agent: Agent, rows: Batch) -> Tensor:
    """Imagined latents (B, starts, H+1, S).

    The policy imagines from each of the last H + 1 steps of every sequence, or from all that have a
    state before them.
    """
    horizon, size = agent.config.JointTrainAgent.ImagineHorizon, len(rows.is_first)
    model = agent.world_model
    context = model.context(rows, horizon + 1)
    trajectory = imagine(model, agent.actor_critic, context, horizon, agent.config.discount)
    return trajectory.latent.unflatten(0, (size, -1))


@torch.no_grad()
def open_loop(
    model: WorldModel, latent: Tensor, rows: Batch, context: int | None = None
) -> tuple[Tensor, Tensor]:
    """The world model's prediction from some real frames and all real actions.

    Args:
        latent: (B, T, S) int64, classes of the posterior's ``z_t``.
        rows: the sequences; the world model takes their actions at all steps.
        context: number of first steps whose ``z_t`` is given; by default the fraction
            :data:`CONTEXT` of T.

    Returns:
        latents (B, T, S) and whether each is given, (B, T) bool. Latents are given in the context
        and where an episode begins, because no step before tells how it begins. All others are
        samples of the prior.
    """
    size, length = rows.is_first.shape
    given = rows.is_first.clone()
    given[:, : max(1, int(length * CONTEXT)) if context is None else context] = True
    action = model.policy.encode(rows.action)
    state = model.sequence.initial_state(size, latent.device)
    taken = [latent[:, 0]]
    for step in range(1, length):
        state = state.reset(rows.is_first[:, step - 1])
        deter = model.sequence.step(taken[-1], action[:, step - 1], state).float()
        predicted = sample_index(model.predict_latent(deter))
        taken.append(torch.where(given[:, step, None], latent[:, step], predicted))
    return torch.stack(taken, dim=1), given


def mark(frames: np.ndarray, given: np.ndarray) -> None:
    """Draw a line at the top of every sequence's picture, in place.

    Args:
        frames: (T, height, B*width, 3) uint8.
        given: (B, T) bool; the line is green where it is set and red elsewhere.
    """
    colours = np.where(given.T[..., None], GIVEN, PREDICTED).astype(np.uint8)  # (T, B, 3)
    width = frames.shape[2] // len(given)
    frames[:, : max(1, frames.shape[1] // 32)] = colours.repeat(width, axis=1)[:, None]
