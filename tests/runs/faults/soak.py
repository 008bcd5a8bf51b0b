"""A long run of the tiny config, watched: memory, open files and threads must stay flat.

    python tests/runs/faults/soak.py                              # two hours of Pong
    python tests/runs/faults/soak.py --steps 200000               # until so many steps
    python tests/runs/faults/soak.py --domain dmc --seconds 600

Starts a real ``train.py`` as a process of its own and samples /proc every few seconds, over that
process and its children: resident memory, open files, threads, processes. Writes
``<out>/<run>.csv`` and ``<out>/<run>.png`` and ends with exit status 1 where something grew.

Flat means, after the warm-up (the first quarter of the samples, in which the replay fills and every
part runs for the first time): the median of the last tenth is not above the median of the tenth
that follows the warm-up by more than 2 % and 8 MB of memory, one open file, no thread and no
process. A leak of 1 kB a step would be 200 MB in 200,000 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
TASKS = {"atari": "ALE/Pong-v5", "dmc": "cartpole_balance"}
PAGE = os.sysconf("SC_PAGE_SIZE") / 1e6
WARM_UP, PART = 0.25, 0.1
"""Shares of the samples: left out at the beginning, and compared after that and at the end."""
GROWTH = {"memory": 8.0, "files": 1.0, "threads": 0.0, "processes": 0.0}
"""What may be added, beside 2 % of the memory."""


class Sample(NamedTuple):
    """The process and its children at one moment."""

    seconds: float
    step: int
    memory: float
    """Resident, MB; a page that two of them share counts twice."""
    files: int
    threads: int
    processes: int


def family(pid: int) -> list[int]:
    """``pid`` and everything that descends from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def sample(pid: int, seconds: float, step: int) -> Sample:
    """Of a process that lives."""
    memory, files, threads, processes = 0.0, 0, 0, 0
    for one in family(pid):
        proc = Path(f"/proc/{one}")
        with contextlib.suppress(OSError):  # it may leave meanwhile
            resident = int((proc / "statm").read_text().split()[1]) * PAGE
            opened, running = len(os.listdir(proc / "fd")), len(os.listdir(proc / "task"))
            memory, files = memory + resident, files + opened
            threads, processes = threads + running, processes + 1
    return Sample(round(seconds, 1), step, round(memory, 1), files, threads, processes)


def last_step(metrics: Path) -> int:
    """Read from the file's end, however long it is."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError, KeyError),
        open(metrics, "rb") as file,
    ):
        file.seek(max(0, metrics.stat().st_size - 20_000))
        return json.loads(file.read().split(b"\n")[-2])["step"]
    return 0


def command(arguments: argparse.Namespace, name: str) -> list[str]:
    """``train.py`` with the tiny config, and steps without end where time decides."""
    steps = arguments.steps or 100_000_000
    loop = f"{{SampleMaxSteps: {steps}, SaveEverySteps: 2000, VideoLogStep: 10000}}"
    return [
        sys.executable, "-u", "-O", str(ROOT / f"pwm_{arguments.domain}" / "train.py"),
        "-n", name, "-env_name", TASKS[arguments.domain], "-device", "cpu", "-logger", "none",
        "-config_path", f"config_files/{arguments.domain}_tiny.yaml", "-keep", "2",
        "-set", f"JointTrainAgent={loop}", *(part for o in arguments.set for part in ("-set", o)),
    ]  # fmt: skip


def watch(arguments: argparse.Namespace, name: str) -> list[Sample]:
    """Run the command to its end, or to the end of the time; the samples."""
    samples: list[Sample] = []
    metrics = ROOT / "ckpt" / name / "metrics.jsonl"
    path, log = arguments.out / f"{name}.csv", arguments.out / f"{name}.log"
    with open(path, "w", newline="") as file, open(log, "w") as output:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        process = subprocess.Popen(command(arguments, name), stdout=output, stderr=output)
        began = time.monotonic()
        while process.poll() is None:
            seconds = time.monotonic() - began
            if arguments.seconds and seconds > arguments.seconds:
                process.send_signal(signal.SIGTERM)  # a checkpoint, and exit status 75
                process.wait(timeout=120)
                break
            samples.append(sample(process.pid, seconds, last_step(metrics)))
            writer.writerow(samples[-1])
            file.flush()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=arguments.every)
    print(f"exit status {process.returncode}; its output is in {log}, the samples in {path}")
    if process.returncode not in (0, 75):
        sys.exit(log.read_text()[-2000:])
    return [one for one in samples if one.processes and one.memory]


def growth(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Of each quantity: the medians after the warm-up and at the end."""
    begin, part = int(len(samples) * WARM_UP), max(1, int(len(samples) * PART))
    ends = samples[begin : begin + part], samples[-part:]
    return {
        key: tuple(statistics.median(getattr(one, key) for one in end) for end in ends)
        for key in GROWTH
    }


def plot(samples: list[Sample], path: Path) -> None:
    """Everything against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(16, 3.2))
    hours = [one.seconds / 3600 for one in samples]
    panels = {"memory": "MB resident", "files": "open files", "threads": "threads", "step": "steps"}
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        axis.plot(hours, [getattr(one, key) for one in samples])
        axis.axvspan(hours[0], hours[int(len(hours) * WARM_UP)], color="0.92")
        axis.set(title=title, xlabel="hours", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"curve: {path}")


def main() -> None:
    """Parse the flags, watch, say what grew."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--domain", choices=TASKS, default="atari")
    parser.add_argument("--seconds", type=float, default=None, help="7200 unless --steps is given")
    parser.add_argument("--steps", type=int, default=None, help="agent steps to stop after")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "runs" / "faults" / "results")
    parser.add_argument("--set", action="append", default=[], help="handed to train.py as -set")
    parser.add_argument("--keep-run", action="store_true", help="leave ckpt/<run> where it is")
    arguments = parser.parse_args()
    if arguments.seconds is None and arguments.steps is None:
        arguments.seconds = 7200.0
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"soak-{arguments.domain}-{time.strftime('%Y%m%d-%H%M%S')}"
    samples = watch(arguments, name)
    if not arguments.keep_run:
        shutil.rmtree(ROOT / "ckpt" / name, ignore_errors=True)
    if len(samples) < 20:
        sys.exit(f"{len(samples)} samples are too few to judge")
    plot(samples, arguments.out / f"{name}.png")
    grew = False
    for key, (before, after) in growth(samples).items():
        allowed = GROWTH[key] + (0.02 * before if key == "memory" else 0.0)
        bad = after - before > allowed
        grew |= bad
        print(f"{key}: {before:g} -> {after:g}{'  GREW' if bad else ''}")
    last = samples[-1]
    print(f"{'NOT ' * grew}flat over {last.seconds:.0f} s and {last.step} steps")
    sys.exit(int(grew))


if __name__ == "__main__":
    main()
