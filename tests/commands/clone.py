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

NAME = "Pong-life_done-pwm-100k"
STEPS = (1000, 1030)
QUICK = (
    "JointTrainAgent={SampleMaxSteps: 1030, BufferWarmUp: 1000, SaveEverySteps: 1000}",
    "JointTrainAgent={VideoLogStep: 1020, LogEverySteps: 5, EvalEnvs: 2, EvalEpisodes: 2}",
)
CONFIG = "config_files/atari_tiny.yaml"

SERVER = """
import json, os, runpy, signal, sys, traceback
sys.path.insert(0, os.getcwd())
import torch._dynamo, pwm_atari.train
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code = 0
    signal.alarm(120)
    open(job["output"] + "modules", "w").close()
    try:
        for number, name in (1, "stdout"), (2, "stderr"):
            os.dup2(os.open(job["output"] + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(job["cwd"])
        os.environ.update(job["environ"])
        sys.argv = [job["script"], *job["argv"]]
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with open(job["output"] + "modules", "w") as file:
        file.write(" ".join(sys.modules))
    sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
"""
"""Runs scripts in forked children, which spares each of them seconds of imports."""


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
        self._server = subprocess.Popen(
            [sys.executable, "-u", "-O", "-c", SERVER],
            cwd=self.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(folder),
        )  # fmt: skip

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
        output = f"{self.home}/output."
        job = {
            "script": str(self.root / script), "argv": argv, "output": output,
            "cwd": str(cwd or self.root), "environ": environ,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        stdout, stderr, modules = (
            Path(output + name).read_text() for name in ("stdout", "stderr", "modules")
        )
        return Result(status, stdout, stderr, set(modules.split()))

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
        self._server.stdin.close()
        self._server.wait(timeout=30)
