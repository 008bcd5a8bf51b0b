"""Builds made-up score files in the format of ``eval.py``, and runs the command that reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from pwm_core.config_file import load_config
from pwm_core.paths import REPOSITORY
from results.panels import Findings, Panel, gather
from results.published import Normaliser, read_published
from results.report import Report

PUBLISHED = read_published()
NORMALISE = Normaliser(PUBLISHED)
BY_NAME = {table.name: table for table in PUBLISHED}
PONG_STEPS = (51000, 102000)


class Folders:
    """The folders ``eval_result/`` and ``ckpt/`` under ``root``."""

    def __init__(self, root: Path) -> None:
        self.scores, self.runs = root / "eval_result", root / "ckpt"
        self.scores.mkdir()
        self.runs.mkdir()
        config = load_config("config_files/atari.yaml", defaults="config_files/atari.yaml")
        self.config = config.model_dump(mode="json")

    def add(self, game: str, seed: int, mean: float, *, sticky: float = 0.25) -> str:
        """Add an Atari run that was evaluated twice: the first score is half of ``mean``, the last
        is ``mean``."""
        protocol = {
            "name": "pamorl" if sticky else "standard",
            "repeat_action_probability": sticky,
            "noop_max": 0 if sticky else 30,
        }
        name = f"{game}-{sticky}-seed{seed}"
        task = f"ALE/{game}-v5"
        about = self._about(name, "atari", task, seed, protocol, 4, self.config)
        self.write(name, about, [(step, 4) for step in PONG_STEPS], [mean / 2, mean])
        return name

    def add_dmc(
        self, task: str, seed: int, mean: float, *, frames: int, repeat: int, obs: str = "proprio"
    ) -> str:
        """Add a tiny DeepMind Control run of ``frames`` simulator steps."""
        steps = frames // repeat
        keys = ("SampleMaxSteps", "BufferMaxLength")
        changes = [f"JointTrainAgent.{key}={steps}" for key in keys]
        changes += [f"BasicSettings.FrameSkip={repeat}", f"BasicSettings.ObsType={obs}"]
        config = load_config(
            "config_files/dmc_tiny.yaml", defaults="config_files/dmc.yaml", overrides=changes
        ).model_dump(mode="json")
        name = f"{task}-{obs}-seed{seed}"
        protocol = {"name": "suite", "obs_type": obs}
        about = self._about(name, "dmc", task, seed, protocol, repeat, config)
        self.write(name, about, [(steps, repeat)], [mean])
        return name

    def _about(
        self,
        name: str,
        domain: str,
        task: str,
        seed: int,
        protocol: dict[str, Any],
        repeat: int,
        config: dict[str, Any],
    ) -> dict[str, Any]:
        training = {"name": name, "task": task, "domain": domain, "seed": seed}
        return {
            "task": task, "greedy": False, "domain": domain, "config": config,
            "protocol_settings": {**protocol, "frame_skip": repeat},
            "training": {**training, "protocol": protocol, "hardware": {"threads": 1}},
        }  # fmt: skip

    def write(
        self, stem: str, about: dict[str, Any], steps: list[tuple[int, int]], means: list[float]
    ) -> None:
        """Write the score file, its JSON, the metrics and the time of training."""
        rows = [
            ",".join(map(str, [step, step * repeat, mean, 1.0, mean - 1, mean + 1]))
            for (step, repeat), mean in zip(steps, means, strict=True)
        ]
        text = "\n".join(["step,frames,mean,std,return_0,return_1", *rows]) + "\n"
        (self.scores / f"{stem}.csv").write_text(text)
        (self.scores / f"{stem}.json").write_text(json.dumps(about))
        key, last = f"Rollout/{about['task']}_reward", steps[-1][0]
        records = [{"step": s, key: s / 1000} for s in range(last // 100, last, last // 110)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (self.scores / f"{stem}.metrics.jsonl").write_text(lines)
        (self.scores / f"{stem}.training.json").write_text('{"seconds": 720}')

    def evaluate_again(self, run: str, label: str, mean: float, **changes: Any) -> None:
        """Add a second score file of ``run`` for the setting ``label`` (one episode)."""
        about = json.loads((self.scores / f"{run}.json").read_text()) | changes
        step, frames, *_ = (self.scores / f"{run}.csv").read_text().splitlines()[-1].split(",")
        stem = self.scores / f"{run}--{label}"
        Path(f"{stem}.json").write_text(json.dumps(about))
        lines = ["step,frames,mean,std,return_0", f"{step},{frames},{mean},0,{mean}"]
        Path(f"{stem}.csv").write_text("\n".join(lines) + "\n")

    def gather(self) -> Findings:
        return gather(self.scores, self.runs)

    def panel(self) -> Panel:
        """The first panel."""
        return self.gather().panels[0]

    def means(self) -> dict[str, dict[str, float]]:
        """Setting -> task -> mean over the seeds that count."""
        found = self.gather()
        return {
            found.names[conditions]: {task: result.mean for task, result in results.items()}
            for panel in found.panels
            for conditions, results in panel.results.items()
        }

    def finals(self) -> dict[str, float]:
        """Run -> its final score."""
        return {score.run: score.final.mean for score in self.gather().scores}

    def report(self) -> Path:
        """Write all files of the report except the page, in this process."""
        report = Report(self.gather(), self.scores / "report", 100, self.scores / "random")
        report.close()
        return self.scores / "report"

    def command(self, *flags: str) -> subprocess.CompletedProcess[str]:
        folders = ["--scores", str(self.scores), "--runs", str(self.runs), "--reps", "100"]
        return subprocess.run(
            [sys.executable, "-O", "-m", "results", *folders, *flags],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.scores / "report" / f"{name}.csv")


class Page(HTMLParser):
    """Collects what a page refers to, its headings, and the tables with the texts of their
    headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.ids: set[str] = set()
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [(tag, v or "") for k, v in attrs if k in ("src", "href", "data")]
        self.ids |= {v or "" for k, v in attrs if k == "id"}
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in ("h1", "h2") and data.strip():
            self.headings.append(data)
            self._open = ""
