"""Reading and writing files. A crash while writing leaves the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwm_core.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path. It replaces ``path`` if the block succeeds, and is removed
    otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        if not error.filename:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on ``folder``, which is created if it is missing. Wait until the lock is free.

    On file systems that cannot lock a folder (some network ones) nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in ``folder``."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Make a renamed file's new name survive a power failure, as its content does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` with ``text``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def numbers(folder: Path, suffix: str) -> list[int]:
    """The numbers N of all files ``<N, nine digits or more><suffix>`` in ``folder``, ascending."""
    stems = (path.stem for path in folder.glob(f"*{suffix}"))
    digits = (stem for stem in stems if stem.isascii() and stem.isdecimal())
    return sorted(int(stem) for stem in digits if f"{int(stem):09d}" == stem)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
