"""The replay buffer: one ring per environment, from which sequences are sampled uniformly.

A sampled sequence never crosses the position that is written next.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pwm_core.errors import UserError
from pwm_core.models.types import Batch
from pwm_core.runtime import free_bytes, to_device

HEADROOM = 0.2
"""Fraction of the free memory that ``auto`` leaves to the networks and their activations."""


class Field(NamedTuple):
    """Shape and dtype of one stored value."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TransitionSpec:
    """The fields of a domain's transition in addition to reward, done and is_first."""

    obs: Field
    action: Field

    def fields(self) -> dict[str, Field]:
        """All fields by the names of :class:`Batch`."""
        return {
            "obs": self.obs,
            "action": self.action,
            "reward": Field((), torch.float32),
            "done": Field((), torch.bool),
            "is_first": Field((), torch.bool),
        }

    def nbytes(self, transitions: int) -> int:
        """The size of that many transitions in bytes."""
        sizes = (
            int(np.prod(field.shape)) * torch.empty((), dtype=field.dtype).element_size()
            for field in self.fields().values()
        )
        return transitions * sum(sizes)


def _refuse_what_does_not_fit(needed: int, free: int, place: str) -> None:
    if needed > free:
        raise UserError(
            f"the replay needs {needed / 1e9:.2f} GB but only {free / 1e9:.2f} GB are free on "
            f"{place}: lower JointTrainAgent.BufferMaxLength or choose another "
            "JointTrainAgent.BufferStorage (device, memory or disk)"
        )


def _place(storage: str, needed: int, device: torch.device) -> torch.device:
    """The device to allocate on.

    Raises:
        UserError: the replay does not fit there.
    """
    if storage == "auto":
        fits = needed < (1 - HEADROOM) * free_bytes(device)
        storage = "device" if fits else "memory"
    target = device if storage == "device" else torch.device("cpu")
    _refuse_what_does_not_fit(needed, free_bytes(target), str(target))
    return target


def _allocate(path: Path, size: int) -> None:
    """Reserve the file's blocks. Without that, a disk that fills up later causes a bus error."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise UserError(f"the replay cannot be laid out in {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


class ReplayBuffer:
    """Transitions of N environments in rings of ``capacity / N`` steps each.

    Args:
        spec: the fields of a transition.
        num_envs: N.
        capacity: number of transitions, summed over all environments.
        device: the device of sampled batches.
        storage: ``auto``, ``device``, ``memory`` or ``disk``.
        directory: the folder for the files of ``disk``.

    Attributes:
        total: steps of each environment stored since the run began, including overwritten ones.

    Raises:
        UserError: the buffer does not fit.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        num_envs: int,
        capacity: int,
        device: torch.device,
        *,
        storage: str = "auto",
        directory: Path | None = None,
    ) -> None:
        self.num_envs, self.length = num_envs, capacity // num_envs
        self.device = device
        needed = spec.nbytes(num_envs * self.length)
        shapes = {
            name: ((num_envs, self.length, *field.shape), field.dtype)
            for name, field in spec.fields().items()
        }
        if storage == "disk":
            self._data = self._on_disk(directory, shapes, needed)
        else:
            place = _place(storage, needed, device)
            self._data = {
                name: torch.zeros(shape, dtype=dtype, device=place)
                for name, (shape, dtype) in shapes.items()
            }
        self.place = self._data["obs"].device
        self.total = 0
        # Oldest position and size on the device, so that sampling does not wait for the host.
        self._window = torch.zeros(2, dtype=torch.int64, device=self.place)

    @staticmethod
    def _on_disk(
        directory: Path | None,
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]],
        needed: int,
    ) -> dict[str, Tensor]:
        """The fields as memory-mapped files.

        Raises:
            ValueError: there is no directory.
            UserError: the files do not fit on the disk.
        """
        if directory is None:
            raise ValueError("storage 'disk' needs a directory")
        directory.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_blocks * 512 for path in directory.glob("*.bin"))
        free = shutil.disk_usage(directory).free + present
        _refuse_what_does_not_fit(needed, free, str(directory))
        for name, (shape, dtype) in shapes.items():
            _allocate(directory / f"{name}.bin", math.prod(shape) * dtype.itemsize)
        return {
            name: torch.from_file(
                str(directory / f"{name}.bin"), shared=True, size=math.prod(shape), dtype=dtype
            ).view(shape)
            for name, (shape, dtype) in shapes.items()
        }

    @property
    def head(self) -> int:
        """The ring position that is written next."""
        return self.total % self.length

    @property
    def size(self) -> int:
        """Number of steps that the ring of each environment holds."""
        return min(self.total, self.length)

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        is_first: np.ndarray,
    ) -> None:
        """Store one step of all N environments; every argument is (N, ...).

        ``action`` was taken at ``obs``; ``reward`` and ``done`` followed it.
        """
        values = {
            "obs": obs,
            "action": action,
            "reward": reward,
            "done": done,
            "is_first": is_first,
        }
        for name, stored in self._data.items():
            stored[:, self.head] = to_device(values[name], stored.device)
        self.total += 1
        self._move_window()

    def _move_window(self) -> None:
        oldest = (self.total - self.size) % self.length
        self._window.copy_(to_device(torch.tensor([oldest, self.size]), self.place))

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """The steps [first, last) of every environment, counted from the run's first step.

        Returns:
            every field by name, (N, last - first, ...) in host memory.

        Raises:
            ValueError: the ring does not hold all of these steps.
        """
        if not self.total - self.size <= first <= last <= self.total:
            raise ValueError(f"the replay holds the steps {self.total - self.size}:{self.total}")
        steps = torch.arange(first, last, device=self.place) % self.length
        return {name: stored[:, steps].cpu() for name, stored in self._data.items()}

    def write(self, first: int, fields: dict[str, Tensor]) -> None:
        """Store steps that :meth:`read` returned; they become the newest steps of the ring.

        If there are more than the ring holds, only the last ones are stored. Several parts must be
        written in their order.

        Args:
            first: the first step, counted from the run's first step.
            fields: every field by name, (N, steps, ...).
        """
        last = first + fields["obs"].shape[1]
        kept = max(first, last - self.length)
        steps = torch.arange(kept, last, device=self.place) % self.length
        for name, stored in self._data.items():
            stored[:, steps] = fields[name][:, kept - first :].to(stored.device)
        self.total = last
        self._move_window()

    def count_not_finite(self) -> dict[str, int]:
        """For each floating-point field, the number of stored values that are NaN or infinite."""
        return {
            name: int((~torch.isfinite(stored[:, : self.size])).sum())
            for name, stored in self._data.items()
            if stored.is_floating_point()
        }

    def sample_indices(self, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
        """Sample B sequences of T = ``length`` steps.

        Starts are uniform over the stored steps, and the environments have equal shares.

        Returns:
            environments (B,) and ring positions (B, T), both int64.

        Raises:
            ValueError: fewer than ``length`` steps are stored.
        """
        if self.size < length:
            raise ValueError(f"{self.size} steps are stored, a sequence needs {length}")
        rows = torch.arange(batch_size, device=self.place)
        shift = torch.randint(self.num_envs, (1,), device=self.place)
        env = (rows + shift) % self.num_envs
        oldest, size = self._window[0], self._window[1]
        fraction = torch.rand(batch_size, dtype=torch.float64, device=self.place)
        start = oldest + (fraction * (size - length + 1)).long()
        steps = torch.arange(length, device=self.place)
        return env, (start.unsqueeze(1) + steps) % self.length

    def sample(self, batch_size: int, length: int) -> Batch:
        """``batch_size`` sequences of ``length`` steps on the training device."""
        return self._read_sequences(*self.sample_indices(batch_size, length))

    def sample_contexts(self, batch_size: int, length: int) -> Batch:
        """Sequences as :meth:`sample` draws them, each followed by a step of the same episode.

        Where the step after a sequence begins an episode, the sequence is moved on by one step, so
        that it ends in the first step of that episode.
        """
        env, steps = self.sample_indices(batch_size, length + 1)
        begins = self._data["is_first"][env, steps[:, -1]].unsqueeze(1)  # (B, 1)
        return self._read_sequences(env, torch.where(begins, steps[:, 1:], steps[:, :-1]))

    def _read_sequences(self, env: Tensor, steps: Tensor) -> Batch:
        """The steps at environments (B,) and ring positions (B, T), on the training device."""
        picked = {name: stored[env.unsqueeze(1), steps] for name, stored in self._data.items()}
        return Batch(**{name: to_device(value, self.device) for name, value in picked.items()})
