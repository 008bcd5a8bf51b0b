"""Evaluation: a fixed quota of episodes per environment, scores as CSV with their provenance."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwm_core.agent import Agent
from pwm_core.config import REPOSITORY
from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.files import write_text
from pwm_core.tracking import progress_bar

RESULTS = REPOSITORY / "eval_result"


@dataclass(frozen=True)
class Settings:
    """What scores must share to stand in one file."""

    task: str
    protocol: str
    episodes: int
    envs: int
    greedy: bool
    seed: int


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """Episodes that each environment plays, fixed beforehand so that short ones gain nothing."""
    share, rest = divmod(episodes, num_envs)
    return np.array([share + (i < rest) for i in range(num_envs)])


def evaluate(
    agent: Agent,
    env: VectorEnv,
    episodes: int,
    *,
    greedy: bool = False,
    on_frames: Callable[[np.ndarray], None] | None = None,
) -> list[float]:
    """Play ``episodes`` whole episodes; their undiscounted returns, environment by environment.

    Args:
        env: its environments share the episodes; those done with their quota play on unseen.
        greedy: the policy's mode instead of samples.
        on_frames: is given every observation (N, ...), the first included.
    """
    wanted = quotas(episodes, env.num_envs)
    returns: list[list[float]] = [[] for _ in wanted]
    state = agent.initial_state(env.num_envs)
    obs, is_first = env.reset(), np.ones(env.num_envs, bool)
    with progress_bar(episodes, "episode") as bar:
        while any(len(r) < n for r, n in zip(returns, wanted, strict=True)):
            if on_frames is not None:
                on_frames(obs)
            step = env.step(agent.act(obs, is_first, state, greedy=greedy))
            obs, is_first = step.obs, step.is_first
            for episode in step.finished:
                if len(returns[episode.env]) < wanted[episode.env]:
                    returns[episode.env].append(episode.episode_return)
                    bar.update()
    return [value for of_env in returns for value in of_env]


def standard_error(returns: list[float]) -> float:
    """Of the mean; 0 for a single episode."""
    if len(returns) < 2:
        return 0.0
    return float(np.std(returns, ddof=1) / np.sqrt(len(returns)))


class ScoreFile:
    """``eval_result/<name>.csv``, one row per checkpoint, and ``<name>.json`` that explains it.

    Scores made under other settings are never mixed in: the files that hold them are set aside
    under ``<name>.1.csv`` and so on.
    """

    def __init__(self, name: str, settings: Settings, provenance: dict[str, Any]) -> None:
        self.csv, self.json = RESULTS / f"{name}.csv", RESULTS / f"{name}.json"
        self._about = {**asdict(settings), **provenance}
        self._rows: dict[int, list[str]] = {}
        self._header = ["step", "frames", "mean", "std"]
        self._header += [f"return_{i}" for i in range(settings.episodes)]
        self.set_aside: Path | None = None
        if self.csv.exists():
            if self._same_settings(asdict(settings)):
                self._rows = self._read()
            else:
                self._move_away()

    def _same_settings(self, settings: dict[str, Any]) -> bool:
        try:
            before = json.loads(self.json.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return all(before.get(key) == value for key, value in settings.items())

    def _move_away(self) -> None:
        number = 1
        while self.csv.with_suffix(f".{number}.csv").exists():
            number += 1
        self.set_aside = self.csv.with_suffix(f".{number}.csv")
        self.csv.rename(self.set_aside)
        if self.json.exists():
            self.json.rename(self.json.with_suffix(f".{number}.json"))

    def _read(self) -> dict[int, list[str]]:
        with open(self.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != self._header:
            raise UserError(f"{self.csv} does not have the header that its JSON tells of")
        return {int(row[0]): row for row in rows[1:] if row}

    def add(self, step: int, frames: int, returns: list[float]) -> None:
        """Write the row of ``step``, in place of an earlier one of the same step."""
        values = [float(np.mean(returns)), float(np.std(returns)), *returns]
        self._rows[step] = [str(step), str(frames), *(f"{value:.10g}" for value in values)]
        lines = [self._header, *(self._rows[key] for key in sorted(self._rows))]
        write_text(self.csv, "".join(",".join(line) + "\n" for line in lines))
        write_text(self.json, json.dumps(self._about, indent=2) + "\n")
