"""A clone of the source tree, to run commands in as a user types them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pwm_core.paths import REPOSITORY
from tests.fork_server import ForkServer

NAME = "Pong-life_done-pwm-100k"
STEPS = (1000, 1030)
QUICK = (
    "JointTrainAgent={SampleMaxSteps: 1030, BufferWarmUp: 1000, SaveEverySteps: 1000}",
    "JointTrainAgent={VideoLogStep: 1020, LogEverySteps: 5, EvalEnvs: 2, EvalEpisodes: 2}",
)
CONFIG = "config_files/atari_tiny.yaml"


@dataclass
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str
    modules: set[str] = field(default_factory=set)

    def succeeded(self) -> Result:
        assert self.status == 0, self.stderr[-3000:]
        assert "Traceback" not in self.stderr
        assert "Warning" not in self.stderr
        return self


def flags(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("-set", override)]


def environment(home: Path) -> dict[str, str]:
    """Ours without a trace of wandb, and a home without a key."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTHON", "NETRC"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"}


class Clone:
    """A clone of the source tree with a commit of its own, where runs touch nothing else."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "tree", folder
        for name in ("pwm_core", "pwm_atari", "pwm_dmc", "config_files"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, self.root / name, ignore=ignore)
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "A clone"]):
            subprocess.run([*git, *arguments], cwd=self.root, check=True, env=environment(folder))
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.root, capture_output=True)
        self.commit = head.stdout.decode().strip()
        self._server = ForkServer(self.root, environment(folder), ["pwm_atari.train"])

    def run(self, *arguments: str, cwd: str = ".") -> Result:
        """``python -u -O ARGUMENTS`` in a process of its own, from a folder of the clone."""
        done = subprocess.run(
            [sys.executable, "-u", "-O", *arguments],
            cwd=self.root / cwd, env=environment(self.home), capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def call(self, script: str, *argv: str, cwd: Path | None = None, **environ: str) -> Result:
        """The same in a fork of a process that has imported torch already."""
        output = f"{self.home}/output"
        pid = self._server.start(script, argv, output, cwd=cwd, environ=environ, modules=True)
        status, modules = self._server.wait(pid), Path(f"{output}.modules")
        loaded = set(modules.read_text().split()) if modules.exists() else set()
        modules.unlink(missing_ok=True)
        stdout, stderr = (Path(f"{output}.{name}").read_text() for name in ("out", "err"))
        return Result(status, stdout, stderr, loaded)

    def train(self, *argv: str, **options: Any) -> Result:
        return self.call("pwm_atari/train.py", *argv, **options)

    def evaluate(self, *argv: str, **options: Any) -> Result:
        return self.call("pwm_atari/eval.py", *argv, **options)

    def folder(self, name: str) -> Path:
        return self.root / "ckpt" / name

    def records(self, name: str) -> list[dict[str, float]]:
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def scores(self, name: str) -> tuple[list[str], list[list[float]], dict[str, Any]]:
        """Header and rows of the CSV, and the JSON beside it."""
        path = self.root / "eval_result" / f"{name}.csv"
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        about = json.loads(path.with_suffix(".json").read_text())
        return header, [[float(cell) for cell in row] for row in rows], about

    def close(self) -> None:
        self._server.close()
