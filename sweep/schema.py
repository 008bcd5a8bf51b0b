"""The sweep file: which runs there are, and what each of them gets.

Every key is documented where it is declared. ``config_files/sweeps/`` holds the files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pwm_core.commands.cli import logger_names
from pwm_core.config_file import parse_yaml, read_yaml
from pwm_core.errors import UserError, closest
from pwm_core.paths import REPOSITORY

NAME = re.compile(r"[A-Za-z0-9_+=-]{1,80}")


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("use up to 80 letters, digits, '_', '-', '+' and '='")
    return text


def _suffix(text: str) -> str:
    return _name(text) if text else text


def _logger(text: str) -> str:
    try:
        logger_names(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    return text


def _one_or_more(value: Any) -> Any:
    """A single entry stands for a list of one."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def _no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("at least one entry is needed")
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"it holds {value} twice")
    return values


def _minutes(value: Any) -> Any:
    """``12:00:00``, ``1-00:00:00`` (days first) or minutes."""
    text = str(value).strip()
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if found is None:
        raise ValueError("write hours:minutes:seconds, as 24:00:00, or minutes")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Overrides = dict[str, Any]
"""``Section.Key: value``, or sections with keys inside, as in a config file."""
Budget = Literal["config", "benchmark"] | Count
Minutes = Annotated[int, BeforeValidator(_minutes), Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Section):
    """What one variant or one task does differently."""

    config: str | None = None
    """Config file, or files as in the sweep's key, that replace the sweep's."""
    overrides: Overrides = Field(default_factory=dict)
    """Overrides that are applied after the sweep's."""
    budget: Budget | None = None
    """Budget that replaces the sweep's."""


class Resources(_Section):
    """What a run needs, and what Slurm is asked for."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of a run; ``auto`` means CUDA where there is a device."""
    cpus: Count = 4
    """CPU cores of a run, on Slurm."""
    mem: Annotated[str, Field(pattern=r"^\d+[MGT]$")] = "16G"
    """Host memory of a run, on Slurm."""
    gpus: Annotated[int, Field(ge=0, strict=True)] = 1
    """Number of GPUs of a Slurm job; 0 means none."""
    runs_per_job: Count = 1
    """Runs side by side in one Slurm job. They share its GPUs evenly; cores and memory are asked
    for each of them."""
    time: Minutes = 24 * 60
    """Time limit of a Slurm job. A run that needs longer continues in the next job."""
    warning: Annotated[int, Field(ge=10, strict=True)] = 120
    """Seconds before the limit at which a job writes its checkpoints and is queued again."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    most_jobs: Count = 256
    """Jobs of the array that may run at the same time."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other options of sbatch, as ``exclude: node7``."""
    setup: tuple[str, ...] = ()
    """Shell commands that run before a job begins, such as ``module load cuda``."""
    side_by_side: Count | None = None
    """Number of parallel runs without Slurm. Default: one per GPU, else one per two cores."""


class Sweep(_Section):
    """A whole sweep file."""

    name: Annotated[str, AfterValidator(_name)]
    """Name of the sweep in its records, Slurm's queue and wandb. Default: the name of the file."""
    domain: str
    """Domain of the tasks: ``atari`` or ``dmc``. Its code is in the folder ``pwm_<domain>``."""
    tasks: Annotated[
        tuple[str, ...], BeforeValidator(_one_or_more), AfterValidator(_no_repeats)
    ] = ("all",)
    """Tasks and the domain's named lists of tasks, as ``all``."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_one_or_more), AfterValidator(_no_repeats)]
    config: str | None = None
    """Config file of the runs, or several with commas between them, each laid over those before
    it. Default: the domain's full config."""
    overrides: Overrides = Field(default_factory=dict)
    """Keys of the config to change in every run."""
    budget: Budget = "config"
    """How long a run is: ``config``, SampleMaxSteps of the config; ``benchmark``, as long as the
    domain's benchmark says for the task; or a number of environment steps (frames)."""
    variants: dict[Annotated[str, AfterValidator(_name)], Change] = Field(default_factory=dict)
    """Every task and seed is run in every variant; its name is part of the run's."""
    per_task: dict[str, Change] = Field(default_factory=dict)
    """Changes for single tasks."""
    suffix: Annotated[str, AfterValidator(_suffix)] = ""
    """Part of the runs' names, to tell runs of other settings apart."""
    logger: Annotated[str, AfterValidator(_logger)] = "wandb"
    """Value of the flag ``-logger`` of train.py."""
    keep: Count | None = 1
    """Number of checkpoints whose weights are kept; ``null`` keeps all."""
    most_failures: Count = 5
    """Failures after which a run is given up. One that fails twice in the same way without a new
    checkpoint in between is given up at once."""
    resources: Resources = Field(default_factory=Resources)


def find(path: str) -> Path:
    """``path`` from the working directory, from the repository, or a name in the folder of sweeps.

    Raises:
        UserError: there is no such file.
    """
    folder = REPOSITORY / "config_files" / "sweeps"
    for candidate in (Path(path), REPOSITORY / path, folder / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = [str(found.relative_to(REPOSITORY)) for found in sorted(folder.glob("*.yaml"))]
    raise UserError(f"sweep file {path} does not exist; there are {', '.join(known)}")


def _assign(content: dict[str, Any], text: str) -> None:
    """Lay ``key=value`` over ``content``; a dot leads into a section."""
    key, equals, value = text.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise UserError(f"--set {text}: write key=value, as seeds=[1,2] or resources.gpus=0")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError: no date, 2024-13-01
        raise UserError(f"--set {text}: the value is not valid YAML") from None
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {text}: {section} is no section")
    content[last] = parsed


def _valid_keys(location: Iterable[str | int]) -> list[str]:
    """The keys of the section that ``location`` leads to."""
    section: type[BaseModel] = Sweep
    for part in location:
        if part in ("variants", "per_task"):
            section = Change
        elif part == "resources":
            section = Resources
    return list(section.model_fields)


def explain(error: pydantic.ValidationError, source: str) -> str:
    """The first error as one line: file, key, what is wrong, what would be valid."""
    errors = error.errors()
    first = errors[0]
    if first["loc"][-1:] == ("literal['config','benchmark']",) or first["loc"][:1] == ("budget",):
        return f"{source}: budget must be config, benchmark or a number of environment steps"
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(first["loc"][:-1])
        hint = closest(str(first["loc"][-1]), valid) or f"; valid keys: {', '.join(valid)}"
        return f"{source}: unknown key {key}{hint}"
    if first["type"] == "missing":
        return f"{source}: {key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{source}: {key} = {given} is not valid: {message[:1].lower()}{message[1:]}"


def load(path: Path, changes: Iterable[str] = ()) -> Sweep:
    """Read a sweep file and lay ``key=value`` changes over it.

    Raises:
        UserError: it cannot be read, a key is unknown or a value is not valid.
    """
    content = {"name": path.stem} | read_yaml(path, "config_files/sweeps/atari100k.yaml")
    changes = list(changes)
    for change in changes:
        _assign(content, change)
    try:
        return Sweep.model_validate(content)
    except pydantic.ValidationError as error:
        source = " ".join([str(path), *(f"--set {change}" for change in changes)])
        raise UserError(explain(error, source)) from None


def as_flags(overrides: Overrides) -> list[str]:
    """``Section.Key=value`` for ``-set``; JSON is YAML too."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
