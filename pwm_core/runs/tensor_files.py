"""Reading and writing files of tensors, which are torch archives."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwm_core.errors import UserError
from pwm_core.runs.files import replacing


def write_tensors(path: Path, content: Any, *, compress: bool = False) -> str:
    """Replace ``path`` with a torch archive. Returns its SHA-256.

    Args:
        compress: whether to deflate the archive. torch can read it either way.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if compress:
        buffer = _deflated(buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _deflated(archive: io.BytesIO) -> io.BytesIO:
    """The same zip archive with its entries deflated at the fastest level."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(archive) as stored, zipfile.ZipFile(smaller, "w") as packed:
        for name in stored.namelist():
            entry = zipfile.ZipInfo(name)  # without a time of day: equal content, equal bytes
            packed.writestr(entry, stored.read(name), zipfile.ZIP_DEFLATED, compresslevel=1)
    return smaller


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read what :func:`write_tensors` wrote: tensors and plain values. No code in it is executed.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError:  # torch's own message explains how to load it unsafely
        raise UserError(
            f"{path} cannot be read: it is no checkpoint, for it holds something other than "
            "tensors and plain values; nothing in it was executed"
        ) from None
    except Exception as error:  # damaged bytes can raise any exception
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from None


def check_archive(path: Path) -> None:
    """Compare the content of a torch archive with the checksums in it.

    Raises:
        UserError: the file is missing, is not an archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except Exception:  # damaged bytes can raise any exception
        raise UserError(f"{path} cannot be read: it is damaged or no checkpoint") from None
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it differs")


def to_tensors(tree: Any) -> Any:
    """Turn the NumPy arrays in nested dicts and lists into tensors, which load without running
    code."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if isinstance(tree, dict):
        return {key: to_tensors(value) for key, value in tree.items()}
    return [to_tensors(value) for value in tree] if isinstance(tree, list) else tree


def copied(tree: Any) -> Any:
    """A copy of nested dicts and lists in which every tensor lies in host memory of its own."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def to_arrays(tree: Any) -> Any:
    """The inverse of :func:`to_tensors`."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy()
    if isinstance(tree, dict):
        return {key: to_arrays(value) for key, value in tree.items()}
    return [to_arrays(value) for value in tree] if isinstance(tree, list) else tree
