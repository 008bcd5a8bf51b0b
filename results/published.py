"""Published scores, with a source and a protocol for every column (``eval_result/published/``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
import yaml

from pwm_core.config import REPOSITORY
from pwm_core.errors import UserError

FOLDER = REPOSITORY / "eval_result" / "published"
REFERENCES = ("Random", "Human")
"""Columns that scores are normalised with; no method's."""


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """One column: where its numbers come from and how they were made.

    Attributes:
        source, protocol: in words.
        same: settings of our own protocols that it shares.
        runs: seeds per task, where known.
        printed: aggregates as its authors print them.
    """

    source: str
    protocol: str
    same: dict[str, Any] = {}
    runs: int | None = None
    printed: dict[str, float] = {}


class _About(_Model):
    benchmark: str
    unit: str
    columns: dict[str, Column]


class Table:
    """A published table: ``<name>.csv`` explained by ``<name>.yaml``.

    Attributes:
        name: of the files.
        benchmark: ``atari`` or ``dmc``.
        frames: per task, the budget in frames, the frame skip counted.
        scores: tasks x methods, NaN where nothing was published; references are left out.
        references: tasks x those of :data:`REFERENCES` that the table has.
        columns: by method.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        try:
            content = yaml.safe_load(path.with_suffix(".yaml").read_text(encoding="utf-8"))
            about = _About.model_validate(content)
            table = pd.read_csv(path, index_col="task", float_precision="round_trip")
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no published table: {reason}") from None
        self.frames = table.pop("frames")
        if set(table.columns) != set(about.columns):
            odd = ", ".join(sorted(set(table.columns) ^ set(about.columns)))
            raise UserError(f"{path} and its YAML do not describe the same columns: {odd}")
        self.benchmark, self.unit = about.benchmark, about.unit
        found = [name for name in REFERENCES if name in table]
        self.references, self.scores = table[found], table.drop(columns=found)
        self.columns = about.columns


def read_published(folder: Path = FOLDER) -> list[Table]:
    """All published tables, by name."""
    return [Table(path) for path in sorted(folder.glob("*.csv")) if path.stem != "training_time"]


def training_times(folder: Path = FOLDER) -> pd.DataFrame:
    """Published training times on Atari 100k: method, time, device, source."""
    return pd.read_csv(folder / "training_time.csv")


UNITS = {"atari": "human-normalised score", "dmc": "return / 1000"}
"""What :class:`Normaliser` gives."""


class Normaliser:
    """Scores that compare across tasks: human-normalised on Atari, of the most possible on DMC."""

    def __init__(self, tables: list[Table]) -> None:
        references = [t.references for t in tables if len(t.references.columns) == len(REFERENCES)]
        self._references = pd.concat(references) if references else pd.DataFrame()

    def __call__(self, benchmark: str, task: str, score: Any) -> Any:
        """``score`` (a number or an array) of one task; NaN for a game without references."""
        if benchmark == "dmc":
            return score / 1000
        if task not in self._references.index:
            return score * float("nan")
        random, human = self._references.loc[task, list(REFERENCES)]
        return (score - random) / (human - random)

    def table(self, table: Table) -> pd.DataFrame:
        """A published table normalised: tasks x methods."""
        rows = {t: self(table.benchmark, t, row) for t, row in table.scores.iterrows()}
        return pd.DataFrame(rows).T.reindex(table.scores.index)


def task_key(task: str) -> str:
    """A task's name in the published tables: ``ALE/Pong-v5`` -> ``Pong``, ``ball_in_cup_catch`` ->
    ``cup_catch``."""
    task = task.removeprefix("ALE/").removesuffix("-v5")
    return "cup_catch" if task == "ball_in_cup_catch" else task
