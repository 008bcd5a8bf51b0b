"""Timing, peak memory, tables and result files of the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pwm_core.errors import UserError
from pwm_core.runtime import git_commit, versions

RESULTS = Path(__file__).parent / "results"


def seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median wall time of ``function`` in seconds after one warm-up call.

    A call ends when the device has finished its work.
    """
    return statistics.median(turn_by_turn([function], device, repeats)[0])


def turn_by_turn(
    functions: list[Callable[[], Any]], device: torch.device, repeats: int
) -> list[list[float]]:
    """``repeats`` wall times of each function in seconds.

    The functions are called in turn, after one warm-up call of each.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            synchronize(device)
            began = time.perf_counter()
            function()
            synchronize(device)
            taken.append(time.perf_counter() - began)
    return [taken[1:] for taken in times]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(function: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and convolutions in one call.

    A multiply-add counts as two operations. Other operations are not counted.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square product, the fastest of ten."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(turn_by_turn([lambda: left @ right], device, 10)[0])


def peak_gigabytes(device: torch.device) -> float:
    """Peak memory so far in GB, of torch on CUDA and of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Of this program alone: getrusage also counts what its parent held when it was started.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def in_own_process(module: str, *arguments: str) -> dict[str, Any]:
    """The row that ``python -m benchmarks.<module> arguments`` prints last, as JSON.

    A separate process measures it, so that its peak memory is that of the row alone. What else it
    prints goes to stderr.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    for line in lines if done.returncode else lines[:-1]:
        print(line, file=sys.stderr)
    if done.returncode:
        raise UserError(f"benchmarks.{module} {' '.join(arguments)} failed (see above)")
    print("measured", module, *arguments, file=sys.stderr)
    return json.loads(lines[-1])


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions that a number was measured with."""
    about = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": git_commit(),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def hardware_name(device: torch.device) -> str:
    """Text for the title of a figure: ``2 threads, AMD EPYC 9B14``, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads, {_cpu_name()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table. Numbers have three significant digits."""

    def show(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(show(row.get(name, "")) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def save(name: str, rows: list[dict[str, Any]], device: torch.device) -> Path:
    """Write ``benchmarks/results/<name>.json``; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=2) + "\n")
    return path
