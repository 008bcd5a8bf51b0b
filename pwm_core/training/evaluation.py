"""Evaluation: a fixed quota of episodes per environment, scores as CSV with their provenance."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pwm_core.envs import VectorEnv
from pwm_core.errors import UserError
from pwm_core.paths import LogDir, find_logdir
from pwm_core.runs.files import write_text
from pwm_core.runs.tracking import progress_bar
from pwm_core.training.agent import Agent
from pwm_core.training.episode_videos import Episode

DECISIVE = ("protocol_settings", "training")
"""What of a score file's provenance must be equal for rows to stand together."""


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


def play(agent: Agent, env: VectorEnv, episodes: int, *, greedy: bool = False) -> list[Episode]:
    """Play ``episodes`` whole episodes; returned environment by environment.

    Args:
        env: its environments share the episodes; those done with their quota play on unseen.
        greedy: the policy's mode instead of samples.
    """
    wanted = quotas(episodes, env.num_envs)
    played: list[list[Episode]] = [[] for _ in wanted]
    taken: list[list[np.ndarray]] = [[] for _ in wanted]  # actions of the running episodes
    state = agent.initial_state(env.num_envs)
    obs, is_first = env.reset(), np.ones(env.num_envs, bool)
    with progress_bar(episodes, "episode") as bar:
        while any(len(p) < n for p, n in zip(played, wanted, strict=True)):
            actions = agent.act(obs, is_first, state, greedy=greedy)
            for actions_of_env, action in zip(taken, actions, strict=True):
                actions_of_env.append(action)
            numbers = env.episodes.numbers.copy()
            step = env.step(actions)
            obs, is_first = step.obs, step.is_first
            for i, value, _ in step.finished:
                if len(played[i]) < wanted[i]:
                    played[i].append(Episode(i, int(numbers[i]), np.array(taken[i]), value))
                    bar.update()
            for i in np.flatnonzero(env.episodes.numbers != numbers):
                taken[i] = []
    return [episode for of_env in played for episode in of_env]


def evaluate(agent: Agent, env: VectorEnv, episodes: int, *, greedy: bool = False) -> list[float]:
    """The undiscounted returns of what :func:`play` plays."""
    return [episode.episode_return for episode in play(agent, env, episodes, greedy=greedy)]


def standard_error(returns: list[float]) -> float:
    """Of the mean; 0 for a single episode."""
    if len(returns) < 2:
        return 0.0
    return float(np.std(returns, ddof=1) / np.sqrt(len(returns)))


class ScoreFile:
    """``eval_result/<name>.csv``, one row per checkpoint, and ``<name>.json`` that explains it.

    Scores of another training run or made by other rules are never mixed in: the files that hold
    them move to ``eval_result/set_aside/`` when the first new row is written.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        provenance: dict[str, Any],
        logdir: LogDir | None = None,
    ) -> None:
        self.folder = (logdir or find_logdir()).scores
        self.csv, self.json = self.folder / f"{name}.csv", self.folder / f"{name}.json"
        self._about = {**asdict(settings), **provenance}
        self._rows: dict[int, list[str]] = {}
        self._header = ["step", "frames", "mean", "std"]
        self._header += [f"return_{i}" for i in range(settings.episodes)]
        decisive = {**asdict(settings), **{key: provenance.get(key) for key in DECISIVE}}
        self._others = self.csv.exists() and not self._made_by(decisive)
        if self.csv.exists() and not self._others:
            self._rows = self._read()

    def _made_by(self, decisive: dict[str, Any]) -> bool:
        try:
            before = json.loads(self.json.read_text(encoding="utf-8"))
            return all(before.get(key) == value for key, value in decisive.items())
        except (OSError, ValueError, AttributeError):
            return False

    def _set_aside(self) -> None:
        """Move scores made otherwise out of the way, and say where."""
        folder = self.folder / "set_aside"
        folder.mkdir(exist_ok=True)
        number = 1
        while (folder / f"{self.csv.stem}-{number}.csv").exists():
            number += 1
        for path in (self.csv, self.json):
            if path.exists():
                path.rename(folder / f"{path.stem}-{number}{path.suffix}")
        print(
            "note: the earlier scores of that name were of another run or made by other rules; "
            f"they are now {folder / f'{self.csv.stem}-{number}.csv'}"
        )
        self._others = False

    def _read(self) -> dict[int, list[str]]:
        with open(self.csv, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != self._header:
            raise UserError(f"{self.csv} does not have the header that its JSON tells of")
        return {int(row[0]): row for row in rows[1:] if row}

    def add(self, step: int, frames: int, returns: list[float]) -> None:
        """Write the row of ``step``, in place of an earlier one of the same step."""
        if self._others:
            self._set_aside()
        values = [float(np.mean(returns)), float(np.std(returns)), *returns]
        self._rows[step] = [str(step), str(frames), *(f"{value:.10g}" for value in values)]
        lines = [self._header, *(self._rows[key] for key in sorted(self._rows))]
        write_text(self.csv, "".join(",".join(line) + "\n" for line in lines))
        write_text(self.json, json.dumps(self._about, indent=2) + "\n")
