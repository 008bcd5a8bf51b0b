"""Convert a trajectory that STORM pickled into an ``.npz`` file, without running code in it::

    python -m pwm_core.commands.convert_recording OLD.pkl NEW.npz

A pickle is a program that may call any function. Here it may call only what is defined below, which
rebuilds NumPy arrays of numbers from their bytes. Anything else is refused before it runs.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.runs.recording import make_recording, write_recording


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something else than arrays of numbers."""


class _Dtype:
    """Takes the place of ``numpy.dtype``, whose own unpickling trusts the file."""

    def __init__(self, text: Any, *_flags: Any) -> None:
        if not isinstance(text, str) or text[:1] not in "biuf":
            raise _RefusedError(f"the dtype {str(text)[:40]!r} is not one of numbers")
        self._text, self._order = text, "|"

    def __setstate__(self, state: Any) -> None:
        self._order = str(state[1])

    def make(self) -> np.dtype:
        """NumPy's dtype."""
        return np.dtype(self._order.replace("|", "") + self._text)


class _Array:
    """Takes the place of an array until its content is known."""

    def __init__(self, *_arguments: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.array = _rebuild(content, dtype, shape, "F" if fortran else "C")


def _rebuild(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array from its bytes."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise _RefusedError("an array does not hold numbers")
    kind = dtype.make()
    if len(content) != math.prod(shape) * kind.itemsize:
        raise _RefusedError(f"an array of the shape {shape} holds {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _rebuild(content, dtype, (1,), "C")[0]


def _bytes(text: Any, encoding: Any) -> bytes:
    """How old protocols write bytes: as text in which each character is a byte."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("bytes are not written as such")
    return text.encode("latin1")


ALLOWED: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _Array,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _rebuild,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _bytes,
}
"""What the names that NumPy writes into a pickle stand for here."""


class _Arrays(pickle.Unpickler):
    """Reads numbers, texts, lists, dictionaries and arrays of numbers."""

    def find_class(self, module: str, name: str) -> Any:
        for package in ("numpy.core.", "numpy._core."):  # of NumPy 1 and of NumPy 2
            module = module.removeprefix(package)
        found = ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise _RefusedError(f"it asks for {module[:60]}.{name[:60]}")
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("it refers to objects outside of it")


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dictionary, by name.

    Raises:
        UserError: the file is missing, is damaged, or holds anything else than numbers and arrays.
    """
    try:
        with open(path, "rb") as file:
            content = _Arrays(file).load()
        return {str(name): _as_array(value) for name, value in content.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}; only arrays of numbers are read") from None
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no pickled trajectory: {reason}") from None


def _as_array(value: Any) -> np.ndarray:
    """An array, or a list of numbers or arrays, as one array."""
    if isinstance(value, list | tuple):
        value = np.array([_as_array(entry) for entry in value])
    return np.asarray(value.array if isinstance(value, _Array) else value)


def main() -> None:
    """Parse the flags and convert one file."""
    parser = cli.Parser(description="Convert a pickled trajectory into an .npz file.")
    parser.add_argument("old", type=Path, help="a pickled dictionary: obs, action, reward, done")
    parser.add_argument("new", type=Path, help="the .npz file to write")
    arguments = parser.parse_args()
    if arguments.new.exists():
        raise UserError(f"{arguments.new} exists already")
    recording = make_recording(read_pickle(arguments.old), str(arguments.old))
    write_recording(arguments.new, recording)
    print(f"{len(recording.obs)} steps: {arguments.new}")


if __name__ == "__main__":
    cli.run_command(main)
