"""Reading and writing files without torch. A crash while writing leaves the old file or the new
one, whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path. It replaces ``path`` if the block succeeds, and is removed
    otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = f"{os.uname().nodename}.{os.getpid()}"  # several machines may share a folder
    temporary = path.with_name(f".{path.name}.{process}.tmp")
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


def numbers(folder: Path, suffix: str) -> list[int]:
    """The numbers N of all files ``<N, nine digits or more><suffix>`` in ``folder``, ascending."""
    stems = (path.stem for path in folder.glob(f"*{suffix}"))
    digits = (stem for stem in stems if stem.isascii() and stem.isdecimal())
    return sorted(int(stem) for stem in digits if f"{int(stem):09d}" == stem)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
