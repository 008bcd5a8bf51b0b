"""Recorded trajectories: one environment's steps in an ``.npz`` file without pickles.

Reading such a file runs no code. Its arrays are ``obs`` (N, *observation_shape), ``action`` (N,) or
(N, A), ``reward`` (N,), ``done`` (N,), and, where episodes were cut off, ``is_first`` (N,).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pwm_core.errors import UserError
from pwm_core.runs.files import replacing

REQUIRED = ("obs", "action", "reward", "done")
CONVERT = "python -m pwm_core.commands.convert_recording OLD.pkl NEW.npz"


@dataclass(frozen=True)
class Recording:
    """N steps of one environment in their order.

    Attributes:
        obs: (N, *observation_shape).
        action: (N,) int64 or (N, A) float32, taken at ``obs``.
        reward, done: (N,) float32 and bool, which followed the action.
        is_first: (N,) bool, whether ``obs`` begins an episode.
        about: where the steps are from; may be empty.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    is_first: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in (*REQUIRED, "is_first")}


def make_recording(
    arrays: Mapping[str, Any], source: str, about: dict[str, Any] | None = None
) -> Recording:
    """Check the arrays of a trajectory, and bring them to the dtypes of :class:`Recording`.

    Without ``is_first``, an episode begins at the first step and after every ``done``.

    Args:
        source: the file's name, for messages.

    Raises:
        UserError: an array is missing, or its shape, dtype or values are not possible.
    """
    missing = [name for name in REQUIRED if not isinstance(arrays.get(name), np.ndarray)]
    if missing:
        raise UserError(f"{source} has no array {' and no '.join(missing)}")
    obs, action, reward, done = (arrays[name] for name in REQUIRED)
    count = len(obs) if obs.ndim else 0
    is_first = arrays.get("is_first")
    if is_first is None:
        is_first = np.concatenate([[True], done.astype(bool)[:-1]]) if done.ndim == 1 else done
    for name, array, most in (
        ("obs", obs, 9), ("action", action, 2), ("reward", reward, 1), ("done", done, 1),
        ("is_first", is_first, 1),
    ):  # fmt: skip
        if array.dtype.kind not in "biuf" or not 1 <= array.ndim <= most or len(array) != count:
            raise UserError(
                f"{source}: {name} has the shape {array.shape} and the dtype {array.dtype}, "
                f"which is no array of numbers for {count} steps"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{source}: {name} holds values that are not finite")
    for name, array in (("done", done), ("is_first", is_first)):
        if not np.isin(array, (0, 1)).all():
            raise UserError(f"{source}: {name} holds other values than 0 and 1")
    return Recording(
        obs,
        action.astype(np.int64 if action.ndim == 1 else np.float32),
        reward.astype(np.float32),
        done.astype(bool),
        is_first.astype(bool),
        about or {},
    )


def write_recording(path: Path, recording: Recording) -> None:
    """Replace ``path`` with the compressed ``recording``."""
    about = np.array(json.dumps(recording.about))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **recording.arrays(), about=about)


def read_recording(path: Path) -> Recording:
    """Read what :func:`write_recording` wrote, or another ``.npz`` with the same arrays.

    Raises:
        UserError: the file is missing, is no such archive, or :func:`make_recording` refuses it.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is not an .npz archive")
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about", "{}")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can raise any exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no recorded trajectory (.npz): {reason}; pickles are not read, "
            f"convert an old one with {CONVERT}"
        ) from None
    return make_recording(arrays, str(path), about if isinstance(about, dict) else {})


def fingerprint(path: Path) -> str:
    """The first 16 hexadecimal digits of the file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
