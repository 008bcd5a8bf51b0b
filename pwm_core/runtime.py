"""Device, seeds, versions: what a run stands on."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import platform
import random
import subprocess
from typing import Any

import numpy as np
import torch

from pwm_core.config import REPOSITORY
from pwm_core.errors import UserError

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "dm_control", "mujoco", "pydantic", "wandb")


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA when there is a device, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = device is not None and (device.type == "cuda" or str(device) in ("cpu", "cpu:0"))
    if not known:
        raise UserError(f"-device {name} is not valid: write cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"-device {name}: this machine has {count} CUDA devices that torch can use; "
                "use -device cpu"
            )
    else:
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back to the kernel after every tensor.

    A CPU step allocates and frees gigabytes; fresh pages must be zeroed and faulted in each time,
    which costs about a tenth of the step. Elsewhere than on glibc nothing happens.
    """
    mmap_max, trim_threshold, forever = -4, -1, 2**31 - 1  # mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, forever)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself; emulated, it would only be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_threads(count: int) -> None:
    """Let torch compute on ``count`` CPU threads; 0 leaves its default, one per core."""
    if count:
        torch.set_num_threads(count)


def seed_everything(seed: int) -> np.random.Generator:
    """Seed torch (all devices), Python and NumPy; returns a generator for our own draws."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numbers enter a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The repository's commit, marked ``-dirty`` with uncommitted changes; None outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + "-dirty" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were computed on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}
