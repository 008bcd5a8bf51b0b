"""Gather what is worth keeping of a finished run beside its scores::

    python -m scripts.collect <run name>

``eval_result/<run>.metrics.jsonl`` holds its metrics, averaged over equal shares of the run so
that it stays below 200 KB; ``<run>.training.json`` hardware, versions and time; the newest
imagination and open-loop videos come along where they are below 1 MB.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict

from pwm_core.cli import Parser, run_command
from pwm_core.paths import find_logdir
from pwm_core.runs.files import write_text
from pwm_core.runs.run_folder import RunFolder

METRICS_BYTES, VIDEO_BYTES = 200_000, 1_000_000
VIDEOS = ("imagination", "openloop")

Record = dict[str, float]


def downsample(records: list[Record], limit: int = METRICS_BYTES) -> str:
    """JSON lines of at most ``limit`` bytes: means over equal shares of the steps, each at its
    share's last step. As many shares as fit; all records as they are where those fit."""
    count = len(records)
    while True:
        lines = "".join(json.dumps(record) + "\n" for record in _averaged(records, count))
        if len(lines) <= limit or count <= 1:
            return lines
        count = min(count - 1, int(count * limit / len(lines)))


def _averaged(records: list[Record], count: int) -> list[Record]:
    if count >= len(records):
        return records
    shares: dict[int, list[Record]] = defaultdict(list)
    last = max(record["step"] for record in records)
    for record in records:
        shares[min(int(record["step"] * count / last), count - 1)].append(record)
    return [_mean(share) for _, share in sorted(shares.items())]


def _mean(records: list[Record]) -> Record:
    """Counters (step, frames, episodes) of the last record, means of everything else."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            if value is not None:
                values[key].append(value)
    counters = ("step", "frames", "Rollout/episodes")
    return {
        key: found[-1] if key in counters else float(f"{sum(found) / len(found):.6g}")
        for key, found in values.items()
    }


def collect(name: str) -> None:
    """Of the run called ``name``, into ``eval_result/``.

    Raises:
        UserError: there is no such run.
    """
    folder = RunFolder.open(name)
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    write_text(find_logdir().scores / f"{name}.metrics.jsonl", downsample(records))
    about = folder.metadata()
    times = folder.path / "seconds"
    if times.is_file():
        about["seconds"] = sum(map(int, times.read_text(encoding="utf-8").split()))
    write_text(find_logdir().scores / f"{name}.training.json", json.dumps(about, indent=2) + "\n")
    for kind in VIDEOS:
        found = sorted(folder.videos.glob(f"{kind}_*.mp4"))
        if found and found[-1].stat().st_size <= VIDEO_BYTES:
            shutil.copyfile(found[-1], find_logdir().scores / f"{name}.{kind}.mp4")


def main() -> None:
    """Parse the flags, collect, say where."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    for name in parser.parse_args().runs:
        collect(name)
        print(f"{name}: collected into {find_logdir().scores}")


if __name__ == "__main__":
    run_command(main)
