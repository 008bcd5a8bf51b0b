"""Gather what is worth keeping of a finished run beside its scores::

    python -m sweep.collect <run name>

``eval_result/<run>.metrics.jsonl`` holds its metrics, averaged over equal shares of the run so
that it stays below 200 KB. ``<run>.training.json`` holds hardware, versions, time and the step
that the run had reached. The newest
video of each kind is copied where it is below 1 MB.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict

from pwm_core.errors import UserError
from pwm_core.runs.files import write_text
from sweep import times
from sweep.places import Places, project_places, read_json, write_json

METRICS_BYTES, VIDEO_BYTES = 200_000, 1_000_000
VIDEOS = {"imagination": "imagination", "openloop": "openloop", "evaluation": "evaluation0"}
"""The prefix of the file names of each kind of video. Of evaluations it is the first episode's."""

COUNTERS = ("step", "frames", "episodes", "skipped_updates", "worker_restarts")
"""The last parts of the names of metrics that count from the beginning of the run."""

Record = dict[str, float]


def downsample(records: list[Record], limit: int = METRICS_BYTES) -> str:
    """Return JSON lines of at most ``limit`` bytes.

    All records are kept where they fit. Otherwise each line is the mean over an equal share of the
    steps, at the last step of that share, and there are as many shares as fit.
    """
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
    """Take counters (steps, frames, and what is counted since the run began) from the last record,
    and average everything else."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            if value is not None:
                values[key].append(value)
    return {
        key: found[-1] if key.rpartition("/")[2] in COUNTERS else _rounded(sum(found) / len(found))
        for key, found in values.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def collect(name: str, places: Places) -> None:
    """Collect the files of the run called ``name`` beside its scores.

    Raises:
        UserError: there is no such run, or its files are damaged.
    """
    folder, results = places.run(name), places.results
    about = read_json(folder / "run.json")
    if not about:
        raise UserError(f"there is no run named {name} in {places.runs}, or its run.json is gone")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{folder}: metrics.jsonl is damaged: {error}") from None
    write_text(results / f"{name}.metrics.jsonl", downsample(records))
    for kind, begin in VIDEOS.items():
        kept = results / f"{name}.{kind}.mp4"
        kept.unlink(missing_ok=True)  # it may be an earlier training's
        found = sorted((folder / "videos").glob(f"{begin}_*.mp4"))
        if found and found[-1].stat().st_size <= VIDEO_BYTES:
            shutil.copyfile(found[-1], kept)
    steps, time = places.checkpoints(name), times.trained(places, name)
    if steps:
        about["step"] = steps[-1]
    if time and steps and time.step >= steps[-1]:
        about["seconds"] = time.seconds
    write_json(results / f"{name}.training.json", about)  # last: it says that all is there


def main() -> None:
    """Parse the flags, collect the runs and print where the files are."""
    from pwm_core.commands.cli import Parser  # here: it loads torch, which jobs do without

    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    places = project_places()
    for name in parser.parse_args().runs:
        collect(name, places)
        print(f"{name}: collected into {places.results}")


if __name__ == "__main__":
    from pwm_core.commands.cli import run_command

    run_command(main)
