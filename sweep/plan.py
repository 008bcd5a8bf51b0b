"""From a sweep file to its runs."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm_core.config import EXTENDABLE, ROUNDING, Config
from pwm_core.config_file import complete, find_configs, leaves, load_config
from pwm_core.domain import Domain, find_domain
from pwm_core.errors import UserError, closest
from pwm_core.paths import REPOSITORY
from sweep.places import Places
from sweep.run import Run
from sweep.schema import Change, Sweep, as_flags

LENGTH = "JointTrainAgent.SampleMaxSteps"


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep in the order of their start, and the config of each kind of run."""

    sweep: Sweep
    runs: tuple[Run, ...]
    configs: dict[tuple[str, str], Config]

    def config(self, run: Run) -> Config:
        """The resolved config of ``run``."""
        config = self.configs[run.variant, run.task]
        basic = config.BasicSettings.model_copy(update={"Seed": run.seed})
        return config.model_copy(update={"BasicSettings": basic})


def expand(domain: Domain, tasks: tuple[str, ...]) -> list[str]:
    """Return the short names of ``tasks``, each once and in order. Named lists are expanded."""
    lists = domain.benchmark.lists
    full = [short for task in tasks for short in lists.get(task, (task,))]
    return list(dict.fromkeys(domain.benchmark.short_name(task) for task in full))


def agent_frame_skip(config: Config) -> int:
    """Return the environment steps of one agent step. The config is resolved for its task."""
    return int(config.BasicSettings.FrameSkip)


def _changes(sweep: Sweep, variant: str, task: str) -> list[Change]:
    """The sweep's own settings, then the variant's, then the task's; later ones win."""
    own = Change(config=sweep.config, overrides=sweep.overrides, budget=sweep.budget)
    found = [sweep.variants.get(variant), sweep.per_task.get(task)]
    return [own, *(change for change in found if change is not None)]


def _last(values: list[Any]) -> Any:
    """Return the last value that is not None."""
    return next((value for value in reversed(values) if value is not None), None)


def _budget_overrides(budget: int | str, domain: Domain, task: str, config: Config) -> list[str]:
    """Return the overrides that set the run's length to ``budget``; none for the config's own.

    The replay holds the whole run, and what the config says if that is more.
    """
    frames = budget
    if budget == "benchmark":
        frames = domain.benchmark.budget(task, config.BasicSettings.ObsType)
    if frames in (None, "config"):
        return []
    steps = int(frames) // agent_frame_skip(config)
    settings = config.JointTrainAgent
    whole = -(-steps // settings.NumEnvs) * settings.NumEnvs  # environments step together
    replay = max(whole, settings.BufferMaxLength)
    return [f"{LENGTH}={steps}", f"JointTrainAgent.BufferMaxLength={replay}"]


def _kind(
    sweep: Sweep, domain: Domain, variant: str, task: str
) -> tuple[str, tuple[str, ...], Config]:
    """Config files, overrides and resolved config of one task in one variant.

    Raises:
        UserError: the config, an override or the task is not valid.
    """
    changes = _changes(sweep, variant, task)
    files = find_configs(_last([change.config for change in changes]) or domain.defaults)
    path = ",".join(str(file.resolve()) for file in files)
    given = [flag for change in changes for flag in as_flags(change.overrides)]
    env_name = domain.benchmark.full_name(task)
    try:
        config = load_config(path, defaults=domain.defaults, overrides=given)
        domain.check_task(config, env_name)
        config = domain.resolve(config, env_name)
    except UserError as error:
        raise UserError(f"sweep {sweep.name}: {error}") from None
    budget = _last([change.budget for change in changes])
    if budget != "config" and any(LENGTH in leaves(change.overrides) for change in changes):
        raise UserError(
            f"sweep {sweep.name}: budget: {budget} and an override of {LENGTH} both say how long a "
            f"run of {task} is; leave one out, or change the override: --set "
            f"overrides.{LENGTH}=STEPS"
        )
    overrides = [*_budget_overrides(budget, domain, task, config), *given]
    config = load_config(path, defaults=domain.defaults, overrides=overrides)
    return path, tuple(overrides), domain.resolve(config, env_name)


def _check_per_task(sweep: Sweep, tasks: list[str]) -> None:
    for task in sweep.per_task:
        if task not in tasks:
            hint = closest(task, tasks)
            raise UserError(f"sweep {sweep.name}: per_task.{task} is no task of the sweep{hint}")


def make_plan(sweep: Sweep, only: list[str] | None = None) -> Plan:
    """All runs: seed by seed, so that a first seed of each task comes before a second.

    Args:
        only: patterns of run names, as ``cartpole*-seed1``; None: all runs.

    Raises:
        UserError: the domain, a task, a config or an override is not valid.
    """
    domain = find_domain(sweep.domain)
    tasks = expand(domain, sweep.tasks)
    _check_per_task(sweep, tasks)
    variants = list(sweep.variants) or [""]
    kinds = {(v, task): _kind(sweep, domain, v, task) for v in variants for task in tasks}
    runs = [
        _make_run(sweep, domain, variant, task, seed, kinds[variant, task])
        for seed in sweep.seeds
        for variant in variants
        for task in tasks
    ]
    if only:
        runs = _chosen(runs, only)
    return Plan(sweep, tuple(runs), {key: config for key, (*_, config) in kinds.items()})


def _make_run(
    sweep: Sweep,
    domain: Domain,
    variant: str,
    task: str,
    seed: int,
    kind: tuple[str, tuple[str, ...], Config],
) -> Run:
    path, overrides, config = kind
    env_name = domain.benchmark.full_name(task)
    return Run(
        name="-".join(part for part in (task, variant, sweep.suffix, f"seed{seed}") if part),
        domain=sweep.domain,
        task=task,
        env_name=env_name,
        variant=variant,
        seed=seed,
        config=path,
        overrides=overrides,
        steps=config.JointTrainAgent.SampleMaxSteps,
        frame_skip=agent_frame_skip(config),
    )


def _chosen(runs: list[Run], only: list[str]) -> list[Run]:
    """The runs whose names match one of the patterns.

    Raises:
        UserError: a pattern matches none.
    """
    names = [run.name for run in runs]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            hint = closest(pattern, names) or f"; the first is {names[0]}"
            raise UserError(f"--only {pattern}: no run of that name{hint}")
    return [run for run in runs if any(fnmatch.fnmatchcase(run.name, one) for one in only)]


# ---------------------------------------------------------------------------- other settings


def _differences(was: dict[str, Any], now: dict[str, Any], defaults: str) -> list[str]:
    """Keys whose values differ. A run may be made longer, and may compute its steps in another way.
    A key that ``was`` lacks is taken from ``defaults``, as in a run's folder."""
    before = complete(was, defaults)
    return [
        f"{key} was {before[key]} and is {value}"
        for key, value in leaves(now).items()
        if before[key] != value and key not in ROUNDING
        if key not in EXTENDABLE or before[key] > value
    ]


def other_settings(plan: Plan, run: Run, places: Places) -> str:
    """Why the scores or the run folder of that name cannot be this run's; empty where they can."""
    from pwm_core.runs.run_folder import (
        RunFolder,  # here: it loads torch, which looking does without
    )

    config = plan.config(run).model_dump(mode="json")
    scores = places.scores(run.name)
    found = scores.get("config")
    if isinstance(found, dict) and places.has_score(run.name, 0):
        changed = _differences(found, config, find_domain(run.domain).defaults)
        if changed:
            return f"its scores in {places.results} were made with {'; '.join(changed)}"
    folder = RunFolder(run.name)
    if folder.exists:
        about = {"domain": run.domain, "task": run.env_name}
        try:
            folder.check_same(plan.config(run), about, find_domain(run.domain).defaults)
        except UserError as error:
            return str(error)
    return ""


def check_settings(plan: Plan, places: Places) -> None:
    """Refuse a sweep whose names stand for other runs already, before anything begins.

    Raises:
        UserError: names the first of them.
    """
    for run in plan.runs:
        reason = other_settings(plan, run, places)
        if reason:
            raise UserError(
                f"{run.name}: {reason}; give the sweep a suffix of its own, or move them away"
            )


def relative(paths: str) -> str:
    """Return a path relative to the repository, if it lies inside. Of several paths with commas
    between them, each."""
    return ",".join(
        str(Path(path).relative_to(REPOSITORY)) if Path(path).is_relative_to(REPOSITORY) else path
        for path in paths.split(",")
    )
