"""What the world model sees, dreams and predicts, as frames."""

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
"""Sequences shown side by side."""
CONTEXT = 0.25
"""Share of a sequence whose real frames an open-loop prediction is given."""
GIVEN, PREDICTED = (0, 200, 0), (220, 0, 0)
"""Colours of the line over a frame of an open-loop prediction."""


def _tile(frames: Tensor, rows: int) -> np.ndarray:
    """(R*T, H, W, C) uint8 -> (T, H, R*W, 3), sequences side by side."""
    tiled = rearrange(frames, "(r t) h w c -> t h (r w) c", r=rows)
    return tiled.expand(*tiled.shape[:3], 3).contiguous().cpu().numpy()


def _stack(*panels: np.ndarray) -> np.ndarray:
    """Videos (T, H, W, 3) of one size -> (T, n*H, W, 3), one under the other."""
    return np.concatenate(panels, axis=1)


@torch.no_grad()
def log_videos(agent: Agent, batch: Batch) -> dict[str, np.ndarray]:
    """The videos of a replayed batch, each (frames, height, width, 3) uint8; none for vectors.

    ``Observation`` and ``Reconstruction`` show the same T replayed steps, ``Imagination`` the
    rollouts of H steps that the policy imagines from the last of them. ``Comparison`` has the last
    steps again, one row each: observed, reconstructed, and imagined by the policy from the first of
    them on. ``OpenLoop`` has T steps: truth, prediction, absolute error; see :func:`open_loop`.
    """
    count = min(ROWS, len(batch.is_first), agent.config.JointTrainAgent.ImagineBatchSize)
    rows = Batch(*(field[:count] for field in batch))
    model = agent.world_model.eval()
    prepared = model.codec.prepare(rows.obs.flatten(0, 1))
    observed = model.codec.frames(prepared)
    if observed is None:
        return {}
    with agent.autocast():
        latent = sample_index(model.encode(prepared))  # (R*T, S)
        reconstructed = model.codec.frames(model.decode(latent))
        dreamt = _dreams(agent, rows)  # (R, K, H+1, S)
        predicted, given = open_loop(model, latent.unflatten(0, (count, -1)), rows)
        videos = {
            "Video/Observation": _tile(observed, count),
            "Video/Reconstruction": _tile(reconstructed, count),
            "Video/Imagination": _decoded(model, dreamt[:, -1]),
        }
        starts = dreamt.shape[1]
        imagined = _decoded(model, dreamt[:, 0])[:starts]
        prediction = _decoded(model, predicted)
    seen, rebuilt = videos["Video/Observation"], videos["Video/Reconstruction"]
    error = np.abs(seen.astype(np.int16) - prediction).astype(np.uint8)
    mark(prediction, given.cpu().numpy())
    videos["Video/Comparison"] = _stack(seen[-starts:], rebuilt[-starts:], imagined)
    videos["Video/OpenLoop"] = _stack(seen, prediction, error)
    return videos


def _decoded(model: WorldModel, latent: Tensor) -> np.ndarray:
    """Class indices (R, T, S) -> what they look like, (T, H, R*W, 3) uint8."""
    return _tile(model.codec.frames(model.decode(latent.flatten(0, 1))), len(latent))


def _dreams(agent: Agent, rows: Batch) -> Tensor:
    """Latents (R, K, H+1, S) that the policy imagines from the last K = H + 1 steps (or as many as
    there are) of every sequence."""
    horizon, size = agent.config.JointTrainAgent.ImagineHorizon, len(rows.is_first)
    model = agent.world_model
    context = model.context(rows, horizon + 1)
    dreamt = imagine(model, agent.actor_critic, context, horizon, agent.config.discount)
    return dreamt.latent.unflatten(0, (size, -1))


@torch.no_grad()
def open_loop(
    model: WorldModel, latent: Tensor, rows: Batch, context: int | None = None
) -> tuple[Tensor, Tensor]:
    """What the world model predicts when it sees real frames first and real actions only after.

    Args:
        latent: (R, T, S) int64, classes of the posterior's ``z_t``.
        rows: the sequences; their actions are taken throughout.
        context: steps whose ``z_t`` is given; by default the share :data:`CONTEXT` of T.

    Returns:
        latents (R, T, S): given ones in the context and where an episode begins, which nothing
        before it tells of; everywhere else a sample of the prior. And (R, T) bool, which are given.
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
    """Draw a line over every tile of ``frames`` (T, H, R*W, 3), in place: green where ``given``
    (R, T) bool, red where predicted."""
    colours = np.where(given.T[..., None], GIVEN, PREDICTED).astype(np.uint8)  # (T, R, 3)
    width = frames.shape[2] // len(given)
    frames[:, : max(1, frames.shape[1] // 32)] = colours.repeat(width, axis=1)[:, None]
