"""Score files of ``eval_result/``: what was evaluated, and under which settings.

What cannot be read is never dropped in silence: every reader adds a line to ``problems``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm_core.errors import UserError
from results.names import config_name
from results.published import task_key

FIRST_COLUMNS = ["step", "frames", "mean", "std"]


@dataclass(frozen=True, order=True)
class Conditions:
    """How a run was trained: task, seed and length of training apart.

    Attributes:
        benchmark: ``atari`` or ``dmc``.
        protocol: the protocol's settings, its name first.
        config: the config's name, see :mod:`results.names`.
    """

    benchmark: str
    protocol: tuple[tuple[str, str], ...]
    config: str

    @property
    def protocol_label(self) -> str:
        """All of the protocol's settings in one line."""
        (_, name), *settings = self.protocol
        return f"{name} ({', '.join(f'{k} {v}' for k, v in settings)})" if settings else name


@dataclass(frozen=True, order=True)
class Setting:
    """What scores must share to be averaged."""

    conditions: Conditions
    frames: int
    episodes: int
    greedy: bool

    @property
    def label(self) -> str:
        """Short, and different for different settings of one protocol."""
        conditions = self.conditions
        shown = dict(conditions.protocol)
        protocol = " ".join(filter(None, (shown["name"], shown.get("obs_type"))))
        policy = ", greedy" if self.greedy else ""
        return (
            f"{conditions.config}, {protocol}, {self.frames:,} frames, {self.episodes} "
            f"episode{'s' * (self.episodes > 1)}{policy}"
        )


@dataclass(frozen=True)
class Row:
    """The evaluation of one checkpoint."""

    step: int
    frames: int
    mean: float
    std: float


@dataclass(frozen=True)
class Score:
    """The evaluations of one run.

    Attributes:
        task: as the published tables write it.
        seed: of training.
        rows: one per checkpoint, by step; the last is the run's score.
    """

    run: str
    task: str
    seed: int
    setting: Setting
    rows: tuple[Row, ...]

    @property
    def final(self) -> Row:
        """The newest checkpoint's."""
        return self.rows[-1]


def protocol_of(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """A protocol's settings in a fixed order, its name first."""
    names = sorted(settings, key=lambda key: (key != "name", key))
    return tuple((name, f"{settings[name]}") for name in names)


def read_scores(folder: Path, problems: list[str]) -> list[Score]:
    """Every ``<run>.csv`` of ``folder`` with its JSON, by run."""
    found = [score for path in sorted(folder.glob("*.csv")) if (score := _read(path, problems))]
    problems += [
        f"{path.name}: no {path.stem}.csv beside it, so there are no scores of that run"
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith(".training.json") and not path.with_suffix(".csv").exists()
    ]
    if aside := sorted((folder / "set_aside").glob("*.csv")):
        problems.append(f"set_aside/ holds {len(aside)} earlier score files, which are not read")
    return found


def _read(path: Path, problems: list[str]) -> Score | None:
    """The scores of one run, or None and a line in ``problems``."""
    try:
        rows, episodes = read_rows(path, problems)
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        training, config = about["training"], about["config"]
        total = config["JointTrainAgent"]["SampleMaxSteps"]
        conditions = Conditions(
            about["domain"],
            protocol_of(about["protocol_settings"]),
            config_name(about["domain"], config),
        )
        setting = Setting(conditions, rows[-1].frames, episodes, bool(about["greedy"]))
        score = Score(path.stem, task_key(about["task"]), training["seed"], setting, rows)
    except FileNotFoundError:
        problems.append(
            f"{path.name}: left out: no {path.stem}.json beside it tells its task and protocol"
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        problems.append(f"{path.name}: left out: its JSON cannot be used: {reason}")
    except UserError as error:
        problems.append(f"{path.name}: left out: {error}")
    else:
        if score.final.step < total:
            problems.append(
                f"{path.name}: the newest checkpoint evaluated is of step {score.final.step:,} of "
                f"{total:,}, so its score stands apart from finished runs"
            )
        return score
    return None


def read_rows(path: Path, problems: list[str]) -> tuple[tuple[Row, ...], int]:
    """The rows of a score file, by step, and the episodes in each.

    Raises:
        UserError: there is no row to read.
    """
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise UserError("the file is empty")
    header, *lines = text.splitlines()
    columns = header.split(",")
    episodes = len(columns) - len(FIRST_COLUMNS)
    if columns[:4] != FIRST_COLUMNS or episodes < 1:
        raise UserError(f"the header is not {','.join(FIRST_COLUMNS)},return_0,...")
    rows: dict[int, Row] = {}
    for number, line in enumerate(lines, start=2):
        whole = number <= len(lines) or text.endswith("\n")
        try:
            values = [float(cell) for cell in line.split(",")]
            if len(values) != len(columns) or not whole:
                raise ValueError
        except ValueError:
            what = "is cut short" if number > len(lines) else "cannot be read"
            problems.append(f"{path.name}: line {number} {what} and is left out")
            continue
        rows[int(values[0])] = Row(int(values[0]), int(values[1]), values[2], values[3])
    if not rows:
        raise UserError("there is no row to read")
    return tuple(rows[step] for step in sorted(rows)), episodes


def by_setting(scores: list[Score]) -> dict[Setting, list[Score]]:
    """Scores that may be averaged, together; by benchmark, more frames first."""
    groups: dict[Setting, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.setting].append(score)
    return dict(sorted(groups.items(), key=_rank))


def _rank(item: tuple[Setting, list[Score]]) -> tuple[str, int, Setting]:
    return item[0].conditions.benchmark, -item[0].frames, item[0]


def check_groups(groups: dict[Setting, list[Score]], problems: list[str]) -> None:
    """Say where scores do not stand beside each other: protocols, seeds."""
    for benchmark in sorted({setting.conditions.benchmark for setting in groups}):
        settings = [s for s in groups if s.conditions.benchmark == benchmark]
        protocols = sorted({s.conditions.protocol_label for s in settings})
        if len(protocols) > 1:
            problems.append(
                f"{benchmark}: runs under {len(protocols)} protocols, which are kept apart: "
                + "; ".join(protocols)
            )
    for setting, scores in groups.items():
        problems += _seed_problems(setting, scores)


def _seed_problems(setting: Setting, scores: list[Score]) -> list[str]:
    """Seeds that a task lacks and others have, and seeds that were trained twice."""
    lines, every = [], sorted({score.seed for score in scores})
    for task in sorted({score.task for score in scores}):
        seeds = [score.seed for score in scores if score.task == task]
        for seed in every:
            runs = [s.run for s in scores if (s.task, s.seed) == (task, seed)]
            if not runs:
                lines.append(f"{task}: seed {seed} is missing ({setting.label})")
            if len(runs) > 1:
                lines.append(
                    f"{task}: {len(runs)} runs of seed {seed} ({', '.join(runs)}); all are listed, "
                    f"only {runs[0]} counts in means and aggregates"
                )
        if len(set(seeds)) == 1:
            lines.append(f"{task}: one seed only, so no interval ({setting.label})")
    return lines


def counted(scores: list[Score]) -> dict[str, dict[int, float]]:
    """Per task, by seed: the final scores that count, one per seed."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for score in sorted(scores, key=lambda s: (s.task, s.seed, s.run)):
        found[score.task].setdefault(score.seed, score.final.mean)
    return dict(found)
