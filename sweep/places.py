"""The folders of runs and results, and which files of a run exist already.

A :class:`Places` is made where torch is imported anyway; jobs get it with their work.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm_core.paths import LOGDIR_VARIABLE, find_logdir
from pwm_core.runs.files import numbers, write_text


@dataclass(frozen=True)
class Places:
    """The folders that everything of a sweep lies in.

    Attributes:
        runs: folder of the run folders, such as ``ckpt``.
        results: folder of the score files, such as ``eval_result``.
    """

    runs: Path
    results: Path

    @property
    def records(self) -> Path:
        """The folder of the records that sweeps keep of runs."""
        return self.runs / ".sweeps" / "runs"

    def sweep(self, name: str) -> Path:
        """The folder of one sweep."""
        return self.runs / ".sweeps" / name

    def log(self, run: str) -> Path:
        """The log of everything that a run's commands print."""
        return self.runs / "logs" / f"{run}.log"

    def run(self, name: str) -> Path:
        """A run's folder."""
        return self.runs / name

    def checkpoints(self, run: str) -> list[int]:
        """The steps of all saved weights, ascending."""
        return numbers(self.run(run) / "checkpoints", ".pt")

    def points(self, run: str) -> list[int]:
        """The steps that the run could continue from, ascending."""
        return numbers(self.run(run) / "resume", ".json")

    def trained(self, run: str, steps: int) -> bool:
        """Whether the run has trained ``steps`` steps and written its last checkpoint."""
        done, points = self.checkpoints(run), self.points(run)
        return bool(done) and done[-1] >= steps and (not points or points[-1] >= steps)

    def scored(self, run: str, steps: int) -> bool:
        """Whether there is a score of the run's last step, and the JSON that explains it.

        Where the run's folder is here, the scores must be those of that training, not of another
        of the same name.
        """
        trained = self.scores(run).get("training") or {}
        own, theirs = self.tracker_id(run), trained.get("tracker_id")
        return self.has_score(run, steps) and (None in (own, theirs) or own == theirs)

    def has_score(self, run: str, steps: int) -> bool:
        """Whether there is a score of ``steps`` steps or more, of whichever training."""
        try:
            with open(self.results / f"{run}.csv", newline="", encoding="utf-8") as file:
                rows = [row[0] for row in csv.reader(file) if row and row[0].isdigit()]
        except (OSError, ValueError):
            return False
        return any(int(row) >= steps for row in rows) and bool(self.scores(run))

    def scores(self, run: str) -> dict[str, Any]:
        """The JSON object beside the scores, which is empty where there is no file."""
        return read_json(self.results / f"{run}.json")

    def tracker_id(self, run: str) -> str | None:
        """The id of the training in the run's folder; None where there is no folder."""
        return read_json(self.run(run) / "run.json").get("tracker_id")

    def collected(self, run: str) -> bool:
        """Whether this run's metrics and settings lie beside the scores, or their source is gone.

        An earlier run of the same name may have left its own, and so may this run before it was
        extended.
        """
        settings = self.results / f"{run}.training.json"
        kept = settings.is_file() and (self.results / f"{run}.metrics.jsonl").is_file()
        about, reached = read_json(settings), max([0, *self.checkpoints(run)])
        same = self.tracker_id(run) == about.get("tracker_id")
        whole = about.get("step", reached) >= reached
        return (kept and same and whole) or not self.run(run).is_dir()

    def done(self, run: str, steps: int) -> bool:
        """Whether nothing is left to do, as the results tell."""
        return self.scored(run, steps) and self.collected(run)


def project_places() -> Places:
    """Return the folders that the commands of this project write to."""
    folder = find_logdir()
    return Places(folder.runs, folder.scores)


def child_environment(places: Places) -> dict[str, str]:
    """Return the variables that tell the commands of this project where to write."""
    return {LOGDIR_VARIABLE: str(places.runs.parent)}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, which is empty where the file is missing or incomplete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` in one move, so that a reader finds the old object or the new one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def last_metrics(path: Path, block: int = 1 << 16) -> Iterator[dict[str, Any]]:
    """The last records of a metrics file, the newest first; those in its last ``block`` bytes."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - block))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # the line that the block begins in the middle of
            continue
        if isinstance(record, dict) and "step" in record:
            yield record
