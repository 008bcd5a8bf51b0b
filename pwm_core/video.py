"""What the world model sees and dreams, as frames."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from pwm_core.agent import Agent
from pwm_core.distributions import sample_index
from pwm_core.world_model import Batch

ROWS = 4
"""Sequences shown side by side."""


def _tile(frames: Tensor, rows: int) -> np.ndarray:
    """(R*T, H, W, C) uint8 -> (T, H, R*W, 3), sequences side by side."""
    tiled = rearrange(frames, "(r t) h w c -> t h (r w) c", r=rows)
    return tiled.expand(*tiled.shape[:3], 3).contiguous().cpu().numpy()


@torch.no_grad()
def log_videos(agent: Agent, batch: Batch) -> dict[str, np.ndarray]:
    """The three videos of a replayed batch, each (T, H, R*W, 3) uint8; none for vectors.

    ``Observation`` and ``Reconstruction`` show the same replayed steps, ``Imagination`` the
    rollouts that the policy imagines from the last of them.
    """
    count = min(ROWS, len(batch.is_first), agent.config.JointTrainAgent.ImagineBatchSize)
    rows = Batch(*(field[:count] for field in batch))
    model = agent.world_model.eval()
    prepared = model.codec.prepare(rows.obs.flatten(0, 1))
    observed = model.codec.frames(prepared)
    if observed is None:
        return {}
    with agent.autocast():
        reconstructed = model.codec.frames(model.decode(sample_index(model.encode(prepared))))
        trajectory = agent.imagine(rows)
        last = trajectory.latent.unflatten(0, (count, -1))[:, -1]  # (R, H+1, S)
        dreamt = model.codec.frames(model.decode(last.flatten(0, 1)))
    return {
        "Video/Observation": _tile(observed, count),
        "Video/Reconstruction": _tile(reconstructed, count),
        "Video/Imagination": _tile(dreamt, count),
    }
