"""Steps per second of a real ``train.py``, including environment and logging::

    python -m benchmarks.end_to_end --save cpu                       # Pong, tiny config on a CPU
    python -m benchmarks.end_to_end --domain dmc --task walker_walk --config config_files/dmc.yaml

A temporary run trains for ``--steps`` agent steps. They follow the warm-up and ``--skip`` further
steps (for compilation, capture and caches). The time is measured between the moments at which two
lines of the run's ``metrics.jsonl`` appear, and the time of 100k steps is extrapolated from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from pwm_core.commands.cli import run_command
from pwm_core.config_file import load_config
from pwm_core.paths import REPOSITORY, find_logdir
from pwm_core.runtime import find_device

TASKS = {"atari": "ALE/Pong-v5", "dmc": "walker_walk"}
LOG_EVERY = 10


def _arrivals(process: subprocess.Popen[bytes], metrics: Path) -> list[tuple[int, float]]:
    """(step, time in seconds) of every line of training metrics at the moment it appears."""
    seen: list[tuple[int, float]] = []
    offset = 0
    while process.poll() is None:
        time.sleep(0.005)
        if not metrics.exists():
            continue
        with open(metrics, "rb") as file:
            file.seek(offset)
            text = file.read()
        now = time.monotonic()
        whole = text[: text.rfind(b"\n") + 1]
        offset += len(whole)
        records = [json.loads(line) for line in whole.splitlines()]
        seen += [(record["step"], now) for record in records if "frames" in record]
    return seen


def measure_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and time it.

    Raises:
        RuntimeError: the training failed; the message holds the end of its output.
    """
    defaults = f"config_files/{arguments.domain}.yaml"
    config = load_config(arguments.config, defaults=defaults, overrides=arguments.set)
    settings = config.JointTrainAgent
    total = settings.BufferWarmUp + arguments.skip + arguments.steps + 2 * LOG_EVERY
    overrides = [f"SampleMaxSteps={total}", f"LogEverySteps={LOG_EVERY}"]
    overrides += [f"{key}={10 * total}" for key in ("SaveEverySteps", "VideoLogStep")]
    name = f"benchmark-{os.getpid()}"
    command = [sys.executable, "-u", "-O", f"pwm_{arguments.domain}/train.py", "-n", name]
    command += ["-env_name", arguments.task, "-config_path", arguments.config, "-logger", "none"]
    command += ["-device", arguments.device]
    for override in [*(f"JointTrainAgent.{text}" for text in overrides), *arguments.set]:
        command += ["-set", override]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        try:
            seen = _arrivals(process, find_logdir().runs / name / "metrics.jsonl")
        finally:
            process.kill()
            shutil.rmtree(find_logdir().runs / name, ignore_errors=True)
        output.seek(0)
        if process.returncode or not seen:
            raise RuntimeError(output.read().decode(errors="replace")[-2000:])
    begin = settings.BufferWarmUp + arguments.skip
    timed = [(step, moment) for step, moment in seen if step >= begin]
    (first, began), (last, ended) = timed[0], timed[-1]
    rate = (last - first) / (ended - began)
    return {
        "task": arguments.task,
        "config": arguments.config,
        "changes": " ".join(arguments.set),
        "steps": last - first,
        "steps/s": rate,
        "100k steps (h)": 100_000 / rate / 3600,
    }


def main() -> None:
    """Print the row; with ``--save NAME`` also write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--domain", choices=list(TASKS), default="atari")
    parser.add_argument("--task", default=None)
    parser.add_argument("--config", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="Section.Key=value")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--skip", type=int, default=50)
    parser.add_argument("--save", metavar="NAME", help="benchmarks/results/end_to_end_NAME.json")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    arguments.task = arguments.task or TASKS[arguments.domain]
    size = "" if device.type == "cuda" else "_tiny"
    arguments.config = arguments.config or f"config_files/{arguments.domain}{size}.yaml"
    rows = [measure_run(arguments)]
    print(measure.table(rows))
    if arguments.save:
        print(f"\nsaved {measure.save(f'end_to_end_{arguments.save}', rows, device)}")


if __name__ == "__main__":
    run_command(main)
