"""The machine and the process: devices, threads, memory, seeds, versions."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pwm_core.config import BasicSettings
from pwm_core.errors import UserError
from pwm_core.paths import IN_CHECKOUT, REPOSITORY

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "dm_control", "mujoco", "pydantic", "wandb")


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:N``. ``auto`` is CUDA if there is a device, else the CPU.

    A CUDA device becomes the current one, because CUDA graphs use its streams.

    Raises:
        UserError: this machine has no such device.
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
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every tensor.

    A CPU step allocates and frees gigabytes. Fresh pages must be zeroed and faulted in each time,
    which costs about a tenth of the step. Without glibc nothing happens.
    """
    mmap_max, trim_threshold, forever = -4, -1, 2**31 - 1  # mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, forever)


def free_bytes(device: torch.device) -> int:
    """The free memory of a CUDA device or of the host, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        entries = dict(line.split(":", 1) for line in lines)
        free = int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, _container_bytes())


def _container_bytes() -> int:
    """The bytes left under a container's own limit (cgroup v2). The number is very large if there
    is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
        # the kernel frees it when memory is needed
        cached = int(stat[stat.index("inactive_file") + 1])
        return limit - used + cached
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a failed allocation into one line.

    Args:
        advice: what to do about it, the end of that line.

    Raises:
        UserError: torch had no memory left.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
            "allocate memory" not in text
        ):
            raise
        wanted = re.search(r"(?:allocate|buy) [\d.]+ ?\w+|\d+ bytes", text)
        raise UserError(
            f"out of memory{f' (tried to {wanted[0]})' if wanted else ''}: {advice}"
        ) from None


def refuse_too_many_envs(count: int, bytes_each: int, key: str = "NumEnvs") -> None:
    """Refuse environments that do not fit, before the first of them is made.

    Args:
        count: the number of environments.
        bytes_each: memory that one of them takes.
        key: the config key of ``count``.

    Raises:
        UserError: they need more than the free memory.
    """
    needed, free = count * bytes_each, free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"JointTrainAgent.{key} = {count} is too many: the environments need about "
            f"{needed / 1e9:.0f} GB, and {free / 1e9:.1f} GB of memory are free"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. Emulation would only be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 does not have it
    if found.get("architecture", "").startswith("x86"):
        # oneDNN also takes bfloat16 from an AVX-512 that has to emulate it.
        supported &= any(found[name] for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert"))
    return supported


def to_device(value: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """``value`` on ``device``. A copy to CUDA goes through pinned memory and is queued behind
    earlier work. The host does not wait, and may overwrite ``value`` at once unless ``value``
    itself is pinned. If ``value`` is already on ``device``, it is returned without a copy."""
    tensor = torch.as_tensor(value)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def use_tensor_float(enabled: bool) -> None:
    """Set whether float32 products and convolutions on CUDA round their factors to TF32 (10 bits of
    mantissa). Sums stay float32."""
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled


def use_precision(settings: BasicSettings, device: torch.device) -> None:
    """Set what float32 products on CUDA compute in.

    Where products are bfloat16, TF32 stays off: what is left in float32 (the scan, the values) is
    left so because it needs the precision. TF32 takes the place of bfloat16, it does not add to it.
    """
    use_tensor_float(settings.TF32 and not (settings.UseAmp and has_bfloat16(device)))


def available_cores() -> int:
    """CPU cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Let torch compute on ``count`` CPU threads, but on no more than there are cores. With 0,
    torch's default of one per core is kept."""
    cores = available_cores()
    if count > cores:
        print(f"note: BasicSettings.Threads is {count}; this machine has {cores} cores, all used")
    if count:
        torch.set_num_threads(min(count, cores))


def seed_everything(seed: int) -> np.random.Generator:
    """Seed torch (all devices), Python and NumPy. Returns a generator for our own draws."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def random_state(rng: np.random.Generator, device: torch.device) -> dict[str, Any]:
    """The states of all random generators: torch's on the CPU and on ``device``, Python's, NumPy's
    and ``rng``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "rng": rng.bit_generator.state,
    }


def set_random_state(state: dict[str, Any], rng: np.random.Generator, device: torch.device) -> None:
    """The inverse of :func:`random_state`. The state of one CUDA device fits any other."""
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state.get("device") is not None:
        torch.cuda.set_rng_state(state["device"].cpu(), device)
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    rng.bit_generator.state = state["rng"]


def make_deterministic() -> None:
    """Use algorithms that repeat exactly on one machine. Call this before CUDA is used.

    On a CPU, results repeat in any case if the number of threads is the same.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    torch.backends.cudnn.benchmark = False


PLAIN_FLAGS = re.compile(r"-[bBdEiIOPqRsSuvx]+")
"""A word of Python's command line that holds flags without a value, such as ``-uO``."""


def restart_without_optimisation() -> None:
    """Start this command anew without Python's ``-O``, if it runs with it.

    torch's compiler (2.13, ``CppScheduling.fuse``) changes its loops inside an ``assert``. Under
    ``-O`` the change is left out, and compiling ends with an error or with wrong code.
    """
    if __debug__:
        return
    count = len(sys.orig_argv) - len(sys.argv[1:])  # Python, its flags, and the script
    words = [
        word.replace("O", "") if PLAIN_FLAGS.fullmatch(word) else word
        for word in sys.orig_argv[1:count]
    ]
    command = [sys.executable, *(word for word in words if word != "-"), *sys.argv[1:]]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONOPTIMIZE"}
    print("note: torch's compiler needs Python without -O: starting again without it", flush=True)
    os.execve(sys.executable, command, environment)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


OWN_OUTPUT = ("eval_result", "benchmarks/results")
"""Tracked folders that the project itself writes. Changes there do not count as changed code."""


def git_commit() -> str | None:
    """The repository's commit, marked ``-dirty`` if tracked code differs from it. It is None
    outside a checkout and without git."""
    if not IN_CHECKOUT:
        return None

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
        code = [".", *(f":(exclude){folder}" for folder in OWN_OUTPUT)]
        return commit + "-dirty" if git("status", "--porcelain", "-uno", "--", *code) else commit
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """The device type, its name and the number of CPU threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}
