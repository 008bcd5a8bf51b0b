"""Published scores, with a source and a protocol for every column (``eval_result/published/``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
import yaml

from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY

FOLDER = REPOSITORY / "eval_result" / "published"
REFERENCES = ("Random", "Human")
"""The columns that scores are normalised with; they belong to no method."""


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """One column of a published table: the source of its numbers and how they were obtained.

    Attributes:
        source, protocol: in words.
        same: the settings of our own protocols that the column shares.
        runs: the number of seeds per task, if known.
        seeds: a table in the same folder with the score of every seed: task, one column per seed.
        printed: aggregates as the authors print them.
        label: the name in the report, if it differs from the column's name.
    """

    source: str
    protocol: str
    same: dict[str, Any] = {}
    runs: int | None = None
    seeds: str = ""
    printed: dict[str, float] = {}
    label: str = ""


class _About(_Model):
    benchmark: str
    unit: str
    title: str
    only: dict[str, Any] = {}
    panel: str = ""
    headline: list[str] = []
    normalised: str = ""
    columns: dict[str, Column]


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, index_col="task", float_precision="round_trip")


class Table:
    """A published table: ``<name>.csv``, explained by ``<name>.yaml``.

    Attributes:
        name: the name of both files, without the suffix.
        benchmark: ``atari`` or ``dmc``.
        frames: the budget of each task in frames; skipped frames are counted.
        scores: tasks x methods, NaN where nothing was published. References are left out.
        references: tasks x those of :data:`REFERENCES` that the table has.
        columns: by method.
        seeds: method -> tasks x seeds, for the methods whose single runs are published.
        title: the source of the numbers, in a few words.
        only: settings of our protocols that runs must have to be compared with this table.
        panel: the name of those settings in a heading.
        headline: the methods drawn in figures. The first is also a line in learning curves.
        normalised: the name of a score that is normalised with the references.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        try:
            content = yaml.safe_load(path.with_suffix(".yaml").read_text(encoding="utf-8"))
            about = _About.model_validate(content)
            table = _read_csv(path)
            self.seeds = {
                method: _read_csv(path.parent / column.seeds)
                for method, column in about.columns.items()
                if column.seeds
            }
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no published table: {reason}") from None
        self.frames = table.pop("frames")
        if set(table.columns) != set(about.columns):
            odd = ", ".join(sorted(set(table.columns) ^ set(about.columns)))
            raise UserError(f"{path} and its YAML do not describe the same columns: {odd}")
        self.benchmark, self.unit, self.title = about.benchmark, about.unit, about.title
        self.only, self.panel, self.normalised = about.only, about.panel, about.normalised
        self.headline = about.headline
        found = [name for name in REFERENCES if name in table]
        self.references, self.scores = table[found], table.drop(columns=found)
        self.columns = about.columns

    def label(self, method: str) -> str:
        """The name of a method in the report."""
        return self.columns[method].label or method


def read_published(folder: Path = FOLDER) -> list[Table]:
    """All published tables. Those with more methods in the figures come first."""
    paths = [path for path in sorted(folder.glob("*.csv")) if path.stem != "training_time"]
    return sorted(map(Table, paths), key=lambda table: (table.benchmark, -len(table.headline)))


def training_times(folder: Path = FOLDER) -> pd.DataFrame:
    """Published training times: benchmark, method, time, device, source."""
    return pd.read_csv(folder / "training_time.csv")


class Normaliser:
    """Normalises scores so that they can be compared across tasks. Scores are divided by the
    largest possible score if the domain gives one. Otherwise a published table with both references
    sets random play to 0 and human play to 1."""

    def __init__(self, tables: list[Table]) -> None:
        self._references: dict[str, pd.DataFrame] = {}
        self._units: dict[str, str] = {}
        for table in tables:
            if len(table.references.columns) == len(REFERENCES):
                self._references[table.benchmark] = table.references
                self._units[table.benchmark] = table.normalised or "normalised score"

    def unit(self, benchmark: str) -> str:
        """The name of a normalised score."""
        domain = find_domain(benchmark)
        if domain.benchmark.full_score is not None:
            return f"{domain.benchmark.score_name} / {domain.benchmark.full_score:g}"
        return self._units.get(benchmark, "normalised score")

    def __call__(self, benchmark: str, task: str, score: Any) -> Any:
        """Normalise ``score`` (a number or an array) of one task. The result is NaN if no
        references are known."""
        full = find_domain(benchmark).benchmark.full_score
        if full is not None:
            return score / full
        references = self._references.get(benchmark)
        if references is None or task not in references.index:
            return score * float("nan")
        random, human = references.loc[task, list(REFERENCES)]
        return (score - random) / (human - random)

    def table(self, table: Table) -> pd.DataFrame:
        """A normalised published table: tasks x methods."""
        rows = {t: self(table.benchmark, t, row) for t, row in table.scores.iterrows()}
        return pd.DataFrame(rows).T.reindex(table.scores.index)

    def seeds(self, table: Table, method: str) -> pd.DataFrame:
        """The normalised score of every seed of a published method: tasks x seeds."""
        seeds = table.seeds[method]
        rows = {task: self(table.benchmark, str(task), row) for task, row in seeds.iterrows()}
        return pd.DataFrame(rows).T.reindex(seeds.index)


class RandomPlay:
    """The returns of random actions. Measured ones (``random/<domain>.csv`` in the folder of
    scores) are used first, then published ones."""

    def __init__(self, folder: Path, tables: list[Table], problems: list[str]) -> None:
        self._measured: dict[str, pd.DataFrame] = {}
        self._sources: dict[str, str] = {}
        for path in sorted((folder / "random").glob("*.csv")):
            try:
                table = pd.read_csv(path)[["task", "frame_skip", "episodes", "mean"]]
                self._measured[path.stem] = table.astype({"frame_skip": int, "mean": float})
                self._sources[path.stem] = (
                    f"uniform actions, {table.episodes.min()} episodes of each task at the nearest "
                    "action repeat measured"
                )
            except (OSError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
                problems.append(f"random/{path.name}: random play is left out: {reason}")
        self._published = [t for t in tables if "Random" in t.references]

    def source(self, benchmark: str) -> str:
        """How the numbers of a benchmark were obtained; empty if there are none."""
        published = (
            table.columns["Random"].source
            for table in self._published
            if table.benchmark == benchmark
        )
        return self._sources.get(benchmark) or next(published, "")

    def __call__(self, benchmark: str, task: str, frame_skip: int) -> float:
        """Mean return of a task at the nearest action repeat that was measured; NaN if unknown."""
        if benchmark in self._measured:
            rows = self._measured[benchmark]
            rows = rows[rows.task == task]
            if len(rows):
                nearest = (rows.frame_skip - frame_skip).abs().argmin()
                return float(rows["mean"].iloc[nearest])
        for table in self._published:
            if table.benchmark == benchmark and task in table.references.index:
                return float(table.references.loc[task, "Random"])
        return float("nan")
