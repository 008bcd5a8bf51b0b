"""Reading score files of ``eval_result/``: what was trained, how, and how it was evaluated.

Nothing unreadable is dropped silently: every reader adds a line to ``problems``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from results.names import config_name

FIRST_COLUMNS = ["step", "frames", "mean", "std"]
SEPARATOR = "--"
"""Separates a run's name from the name of an evaluation setting other than the default."""


@dataclass(frozen=True, order=True)
class Conditions:
    """How runs were trained, except for the task, the seed and the length of training.

    Attributes:
        benchmark: the domain's name.
        protocol: the protocol's settings without the action repeat. Its name comes first.
        config: the config's short name, see :mod:`results.names`.
        repeat: the action repeat (frame skip); 0 if every task has its own.
    """

    benchmark: str
    protocol: tuple[tuple[str, str], ...]
    config: str
    repeat: int = 0

    @property
    def protocol_label(self) -> str:
        """All of the protocol's settings in one line."""
        (_, name), *settings = self.protocol
        return f"{name} ({', '.join(f'{k} {v}' for k, v in settings)})" if settings else name


@dataclass(frozen=True, order=True)
class Evaluation:
    """What the scores of one task and one way of training must share to be averaged.

    Attributes:
        frames: frames of training; skipped frames are counted.
        frame_skip: the action repeat.
        label: the label of the evaluation setting in the file's name; empty for the default
            setting.
    """

    frames: int
    frame_skip: int
    episodes: int
    greedy: bool
    label: str

    @property
    def plain(self) -> bool:
        """Whether the run's own setting was evaluated. The number of episodes may differ."""
        return not self.greedy and re.fullmatch(r"(\d+ep)?-?(\d+envs)?", self.label) is not None

    @property
    def text(self) -> str:
        """A description such as ``50 episodes, sampled``. Here actions were sampled, and the
        policy's mode was not used."""
        actions = "greedy" if self.greedy else "sampled"
        return f"{self.episodes} episode{'s' * (self.episodes != 1)}, {actions}"


@dataclass(frozen=True)
class Row:
    """The evaluation of one checkpoint."""

    step: int
    frames: int
    mean: float
    std: float


@dataclass(frozen=True)
class Score:
    """The evaluations of one run under one evaluation setting.

    Attributes:
        task: spelled as in the published tables.
        seed: the seed of training.
        rows: one per checkpoint, sorted by step. The last is the run's score.
        finished: whether the last checkpoint that training writes is among them.
        changes: the changes to the config file, one line each.
        size: the size of the model, in words.
        cores: threads of the training process; None if unknown.
        seconds: duration of training; None if unknown.
    """

    run: str
    task: str
    seed: int
    conditions: Conditions
    evaluation: Evaluation
    rows: tuple[Row, ...]
    finished: bool
    changes: tuple[str, ...] = ()
    size: str = ""
    cores: int | None = None
    seconds: float | None = None

    @property
    def final(self) -> Row:
        """The row of the newest checkpoint."""
        return self.rows[-1]


def conditions_of(about: dict[str, Any], protocol: dict[str, Any], config: Any) -> Conditions:
    """The conditions of a run, from its ``run.json`` or score file, the protocol's settings and its
    config."""
    settings = {key: value for key, value in protocol.items() if key != "frame_skip"}
    names = sorted(settings, key=lambda key: (key != "name", key))
    found = tuple((name, f"{settings[name]}") for name in names)
    name = config_name(about["domain"], config).short
    return Conditions(about["domain"], found, name, int(config["BasicSettings"]["FrameSkip"]))


def read_scores(folder: Path, problems: list[str]) -> list[Score]:
    """Read every ``<run>.csv`` and ``<run>--<setting>.csv`` of ``folder`` with its JSON, sorted by
    name."""
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
    """Read the scores of one file. If that fails, add a line to ``problems`` and return None."""
    try:
        rows, episodes = read_rows(path, problems)
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        score = _score(path, rows, episodes, about)
        total = about["config"]["JointTrainAgent"]["SampleMaxSteps"]
    except FileNotFoundError:
        problems.append(
            f"{path.name}: left out: no {path.stem}.json beside it tells its task and protocol"
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        problems.append(f"{path.name}: left out: its JSON cannot be used: {reason}")
    except UserError as error:
        problems.append(f"{path.name}: left out: {error}")
    else:
        if not score.finished:
            problems.append(
                f"{path.name}: the newest checkpoint evaluated is of step {score.final.step:,} of "
                f"{total:,}, so its score stands apart from finished runs"
            )
        return score
    return None


def _score(path: Path, rows: tuple[Row, ...], episodes: int, about: dict[str, Any]) -> Score:
    """The score that a score file and its JSON describe."""
    training, config, protocol = about["training"], about["config"], about["protocol_settings"]
    run, label = run_and_label(path.stem, training)
    skip = int(protocol.get("frame_skip", config["BasicSettings"]["FrameSkip"]))
    evaluation = Evaluation(rows[-1].frames, skip, episodes, bool(about["greedy"]), label)
    models = config["Models"]
    size = f"width {models['Hidden']}, latents {models['Stoch']} x {models['Discrete']}"
    if "parameters" in training:
        size = f"{training['parameters'] / 1e6:.2f} M parameters"
    timed = path.with_name(f"{run}.training.json")
    seconds = _content(timed).get("seconds") if timed.is_file() else None
    return Score(
        run=run,
        task=find_domain(about["domain"]).benchmark.short_name(about["task"]),
        seed=int(training["seed"]),
        conditions=conditions_of(about, protocol, config),
        evaluation=evaluation,
        rows=rows,
        finished=rows[-1].step >= config["JointTrainAgent"]["SampleMaxSteps"],
        changes=config_name(about["domain"], config).changes,
        size=size,
        cores=training.get("hardware", {}).get("threads"),
        seconds=seconds,
    )


def run_and_label(stem: str, training: dict[str, Any]) -> tuple[str, str]:
    """The run's name and the label of the evaluation setting, from the name of a score file."""
    name = training.get("name")
    if name and (stem == name or stem.startswith(name + SEPARATOR)):
        return name, stem[len(name + SEPARATOR) :]
    run, _, label = stem.partition(SEPARATOR)
    return run, label


def _content(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it cannot be read, since the scores do not depend on
    it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(path: Path, problems: list[str]) -> tuple[tuple[Row, ...], int]:
    """The rows of a score file, sorted by step, and the number of episodes in each.

    Raises:
        UserError: the file has no readable row.
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
