"""Learning curves: returns of training episodes against frames, over the seeds of a task."""

from __future__ import annotations

import glob
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pwm_core.commands.plot import read_metrics
from pwm_core.domain import find_domain
from pwm_core.errors import UserError
from results.scores import SEPARATOR, Conditions, conditions_of

POINTS = 40
"""The number of windows of equal length over which a curve is averaged."""


@dataclass(frozen=True)
class Curve:
    """The training episodes of one run.

    Attributes:
        frames: (n,) the frame at which each episode ended; skipped frames are counted.
        returns: (n,) the return of each episode.
    """

    run: str
    task: str
    seed: int
    conditions: Conditions
    frames: np.ndarray
    returns: np.ndarray


def read_curves(scores: Path, runs: Path, problems: list[str]) -> list[Curve]:
    """Read the curves of the run folders in ``runs`` and of ``<run>.metrics.jsonl`` in ``scores``,
    sorted by run.

    If a run has both, the one in its folder is read.
    """
    found = {}
    for path in sorted(scores.glob("*.metrics.jsonl")):
        name = path.name.removesuffix(".metrics.jsonl")
        found[name] = (path, lambda path=path, name=name: _beside_scores(path.parent, name))
    for path in sorted(runs.glob("*/metrics.jsonl")):
        found[path.parent.name] = (path, lambda path=path: _of_run_folder(path.parent))
    curves = (_read(name, *found[name], problems) for name in sorted(found))
    return [curve for curve in curves if curve]


def _beside_scores(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the JSON of one of a run's score files tells about the run."""
    files = [
        folder / f"{name}.json",
        *sorted(folder.glob(f"{glob.escape(name + SEPARATOR)}*.json")),
    ]
    path = next((path for path in files if path.exists()), files[0])
    about = json.loads(path.read_text(encoding="utf-8"))
    return about["training"], about["config"]


def _of_run_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return json.loads((folder / "run.json").read_text(encoding="utf-8")), config


def _read(name: str, path: Path, read_about: Any, problems: list[str]) -> Curve | None:
    """Read the curve of one run. If that fails, add a line to ``problems`` and return None."""
    try:
        about, config = read_about()
        task, skip = about["task"], config["BasicSettings"]["FrameSkip"]
        conditions = conditions_of(about, about["protocol"], config)
        short, seed = find_domain(about["domain"]).benchmark.short_name(task), int(about["seed"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, UserError) as error:
        problems.append(f"{path}: no curve: what is beside it does not tell the run: {error}")
        return None
    key = f"Rollout/{task}_reward"
    records = [r for r in read_metrics(path, problems) if r.get(key) is not None]
    if not records:
        problems.append(f"{path}: no curve: it holds no {key}, so no episode has ended")
        return None
    frames = np.array([record["step"] * skip for record in records], float)
    returns = np.array([record[key] for record in records], float)
    return Curve(name, short, seed, conditions, frames, returns)


def by_task(curves: list[Curve], problems: list[str]) -> dict[str, dict[Conditions, list[Curve]]]:
    """Task -> conditions -> the curves of the seeds. If a seed has several runs, the first by name
    counts."""
    found: dict[str, dict[Conditions, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for curve in sorted(curves, key=lambda c: (c.task, c.conditions, c.seed, c.run)):
        seeds = found[curve.task][curve.conditions]
        if seeds and seeds[-1].seed == curve.seed:
            problems.append(
                f"{curve.run}: no curve: {seeds[-1].run} has the same task, setting and seed"
            )
        else:
            seeds.append(curve)
    return {task: dict(groups) for task, groups in found.items()}


def smooth(curve: Curve, edges: np.ndarray) -> np.ndarray:
    """Mean return in each window between ``edges`` (n + 1,), as (n,). Windows in which no episode
    ended are interpolated. Windows before the first episode and after the last one are NaN."""
    window = np.clip(np.digitize(curve.frames, edges[1:-1], right=True), 0, len(edges) - 2)
    sums = np.bincount(window, curve.returns, minlength=len(edges) - 1)
    counts = np.bincount(window, minlength=len(edges) - 1)
    middle, full = (edges[1:] + edges[:-1]) / 2, counts > 0
    known = sums[full] / counts[full]
    return np.interp(middle, middle[full], known, left=np.nan, right=np.nan)


def over_seeds(curves: list[Curve]) -> Iterator[np.ndarray]:
    """Frames (n,), and the mean, the minimum and the maximum over the seeds at those frames, each
    (n,). Only frames at which every seed has finished an episode and none has stopped are
    included."""
    end = max(curve.frames.max() for curve in curves)
    edges = np.linspace(0, end, POINTS + 1)
    values = np.stack([smooth(curve, edges) for curve in curves])
    whole = ~np.isnan(values).any(axis=0)
    middle = (edges[1:] + edges[:-1]) / 2
    found = values[:, whole]
    yield middle[whole]
    if whole.any():
        yield from (found.mean(0), found.min(0), found.max(0))
    else:
        yield from (found.sum(0),) * 3
