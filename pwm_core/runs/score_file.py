"""Score files: ``eval_result/<run>.csv``, or ``<run>--<setting>.csv`` for other settings.

The setting of the run's own config has no name. The name of any other setting says what differs,
such as ``greedy-1ep`` or ``frameskip3``. A JSON of the same name beside each CSV holds its
provenance.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwm_core.config import Config
from pwm_core.errors import UserError
from pwm_core.paths import LogDir, find_logdir
from pwm_core.runs.files import locked, write_text

DECISIVE = ("protocol_settings", "training")
"""Entries of a score file's provenance that must be equal for all rows of one file."""
NEUTRAL = ("UseAmp", "TF32", "Compile", "GraphCheck", "Threads")
"""Keys of BasicSettings that affect how numbers are computed, but not what is evaluated."""
NAME_BYTES = 30
"""The longest name of a setting. With the run's name it must fit into a file name."""


@dataclass(frozen=True)
class Settings:
    """What the rows of a score file have in common."""

    task: str
    protocol: str
    episodes: int
    envs: int
    greedy: bool
    seed: int


def setting_name(own: Config, config: Config, *, episodes: int, greedy: bool) -> str:
    """A short name for how an evaluation differs from the run's config; "" if it does not.

    Args:
        own: the run's own config.
        config: the config of the evaluation.
        episodes: the number of episodes.
        greedy: whether actions are the policy's mode.
    """
    parts = ["greedy"] if greedy else []
    if episodes != own.JointTrainAgent.EvalEpisodes:
        parts.append(f"{episodes}ep")
    before, now = own.BasicSettings.model_dump(), config.BasicSettings.model_dump()
    for key, value in now.items():
        if value != before[key] and key not in NEUTRAL:
            parts.append(str(value) if key == "Protocol" else f"{key.lower()}{value}")
    envs = config.JointTrainAgent.EvalEnvs
    if min(envs, episodes) != min(own.JointTrainAgent.EvalEnvs, episodes):
        parts.append(f"{envs}envs")
    name = re.sub(r"[^\w.+=-]", "", "-".join(parts))
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{digest}"


class ScoreFile:
    """One row per checkpoint of a run, evaluated under one setting.

    Scores of an earlier training run of the same name are never mixed in. The files that hold them,
    under whatever setting, move to ``eval_result/set_aside/`` when the first new row is written.

    Args:
        run: the run's name.
        setting: the name of the evaluation setting; see :func:`setting_name`.
        settings: what the rows have in common.
        provenance: the other content of the JSON.
        logdir: holds ``eval_result/``; by default the one that :func:`find_logdir` finds.

    Raises:
        UserError: the existing CSV is damaged.
    """

    def __init__(
        self,
        run: str,
        setting: str,
        settings: Settings,
        provenance: dict[str, Any],
        logdir: LogDir | None = None,
    ) -> None:
        self.folder = (logdir or find_logdir()).scores
        stem = f"{run}--{setting}" if setting else run
        self.csv, self.json = self.folder / f"{stem}.csv", self.folder / f"{stem}.json"
        self._about = {"run": run, "setting": setting, **asdict(settings), **provenance}
        self._decisive = {**asdict(settings), **{key: provenance.get(key) for key in DECISIVE}}
        self._header = ["step", "frames", "mean", "std"]
        self._header += [f"return_{i}" for i in range(settings.episodes)]
        if self._is_ours():
            self._read()

    def _is_ours(self) -> bool:
        """Whether there is a CSV to which new rows may be added."""
        try:
            before = json.loads(self.json.read_text(encoding="utf-8"))
            same = all(before.get(key) == value for key, value in self._decisive.items())
        except (OSError, ValueError, AttributeError):
            return False
        return same and self.csv.exists()

    def _others(self) -> list[Path]:
        """The CSVs of this run's name that belong to another training run."""
        run, training = self._about["run"], self._about.get("training")
        found = []
        for path in [self.folder / f"{run}.csv", *sorted(self.folder.glob(f"{run}--*.csv"))]:
            try:
                about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                if path.exists() and about["training"] != training:
                    found.append(path)
            except (OSError, ValueError, LookupError, TypeError):
                continue  # whose scores they are is not known
        return found

    def _set_aside(self, path: Path) -> None:
        """Move the CSV ``path`` and its JSON to another folder, and print where they are."""
        folder = self.folder / "set_aside"
        folder.mkdir(exist_ok=True)
        number = 1
        while (folder / f"{path.stem}-{number}.csv").exists():
            number += 1
        for file in (path, path.with_suffix(".json")):
            if file.exists():
                file.rename(folder / f"{file.stem}-{number}{file.suffix}")
        print(
            f"note: the earlier scores in {path.name} belong to another training run or to other "
            f"rules; they are now {folder / f'{path.stem}-{number}.csv'}"
        )

    def _read(self) -> dict[int, list[str]]:
        """The rows by their step."""
        with open(self.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        try:
            if not rows or rows[0] != self._header:
                raise ValueError
            return {int(row[0]): row for row in rows[1:] if row}
        except ValueError:
            raise UserError(
                f"{self.csv} is damaged: it does not hold what {self.json.name} says"
            ) from None

    def add(self, step: int, frames: int, returns: list[float]) -> None:
        """Write the row of ``step``. It replaces an earlier row of the same step.

        Other processes may add rows to the same file at the same time.

        Args:
            step: agent steps of training.
            frames: frames of training.
            returns: the returns of the evaluated episodes.
        """
        values = [float(np.mean(returns)), float(np.std(returns)), *returns]
        row = [str(step), str(frames), *(f"{value:.10g}" for value in values)]
        with locked(self.folder):
            rows = {}
            if self._is_ours():
                rows = self._read()
            elif self.csv.exists():
                self._set_aside(self.csv)
            for path in self._others():
                self._set_aside(path)
            new = not rows
            rows[step] = row
            lines = [self._header, *(rows[key] for key in sorted(rows))]
            texts = {
                self.csv: "".join(",".join(line) + "\n" for line in lines),
                self.json: json.dumps(self._about, indent=2) + "\n",
            }
            # A CSV without its JSON would be set aside, so a new one comes last.
            for path in (self.json, self.csv) if new else (self.csv, self.json):
                write_text(path, texts[path])


def last_mean(scores: Path) -> float:
    """The mean return of the newest checkpoint in the CSV ``scores``."""
    with open(scores, newline="", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["mean"])
