"""Sweeps of runs that take seconds, in a copy of the source tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pwm_core.paths import REPOSITORY
from sweep.schema import as_flags
from tests.helpers_runs import RunTree, flags

PARTS = ("pwm_core", "pwm_atari", "pwm_dmc", "config_files", "sweep")
SMALL = {
    "Models": {"Hidden": 32, "Stoch": 4, "Discrete": 4, "NumBin": 21},
    "Models.WorldModel": {"Stem": 4, "MLPUnits": 32, "ScanChunk": 8},
    "Models.Agent.LR": 0.03,
    "JointTrainAgent": {
        **{"BatchSize": 4, "BatchLength": 8, "ImagineBatchSize": 4, "ImagineContext": 2},
        **{"ImagineHorizon": 4, "VideoLogStep": 100000, "LogEverySteps": 20},
        **{"TrainModelEverySteps": 2, "TrainAgentEverySteps": 4, "EvalEnvs": 2, "EvalEpisodes": 2},
        **{"BufferMaxLength": 400, "SaveEverySteps": 100, "BufferWarmUp": 200},
    },
}
"""Overrides with which a step takes some ten milliseconds."""
DMC = {
    "domain": "dmc",
    "config": "config_files/dmc_tiny.yaml",
    "overrides": {
        **SMALL,
        **{"BasicSettings.ObsType": "proprio", "BasicSettings.FrameSkip": 8},
        "JointTrainAgent.NumEnvs": 2,
    },
}
ATARI = {
    "domain": "atari",
    "config": "config_files/atari_tiny.yaml",
    # ALE's games last minutes; these few steps are for the machinery
    "overrides": {**SMALL, "JointTrainAgent.EvalEpisodes": 1, "JointTrainAgent.EvalEnvs": 1},
}
RESOURCES = {"device": "cpu", "gpus": 0, "cpus": 1, "mem": "1G", "time": 30, "warning": 20}


class SweepTree:
    """A copy of the source tree in which ``python -m sweep`` touches nothing else."""

    def __init__(self, path: Path, **environ: str) -> None:
        self.root = path
        for name in PARTS:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, path / name, ignore=ignore)
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "NETRC", "SLURM"))
        }
        self.environ = kept | {"OMP_NUM_THREADS": "1", "HOME": str(path), **environ}

    def write(self, name: str, base: dict[str, Any], steps: int, **keys: Any) -> Path:
        """A sweep file; ``keys`` are laid over ``base``."""
        given = {**base, **keys}
        given.setdefault("seeds", [1])
        given.setdefault("logger", "none")
        given["resources"] = {**RESOURCES, **keys.get("resources", {})}
        given["overrides"] = {**given["overrides"], "JointTrainAgent.SampleMaxSteps": steps}
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(given))
        return path

    def start(self, file: Path, *given: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``python -m sweep`` on ``file``."""
        return subprocess.Popen(
            [sys.executable, "-m", "sweep", str(file), *given],
            cwd=self.root, env=self.environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip

    def sweep(self, file: Path, *given: str, status: int = 0, **options: Any) -> str:
        """Run :meth:`start` to its end and return what it printed."""
        process = self.start(file, *given, **options)
        text = process.communicate(timeout=600)[0]
        assert process.returncode == status, text
        return text

    def refused(self, file: Path, *given: str, says: str, **options: Any) -> None:
        """Check that the command prints one clear line, exits with status 2 and starts nothing."""
        text = self.sweep(file, *given, status=2, **options)
        assert text.startswith("error: "), text
        assert text.count("\n") == 1, text
        assert says in text, text
        runs = self.root / "ckpt"
        assert not runs.is_dir() or not list(runs.glob("*/config.yaml"))
        assert not list(runs.glob(".sweeps/runs/*.json")) if runs.is_dir() else True

    def run(self, name: str) -> Path:
        return self.root / "ckpt" / name

    def record(self, name: str) -> dict[str, Any]:
        path = self.root / "ckpt" / ".sweeps" / "runs" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def ticket(self, name: str) -> dict[str, str]:
        path = self.root / "ckpt" / ".sweeps" / "runs" / f"{name}.ticket.json"
        return json.loads(path.read_text())

    def trainer(self, name: str) -> int:
        """Return the id of the process that trains the run, or 0."""
        lock = self.run(name) / "lock"
        found = re.match(r"process (\d+) ", lock.read_text()) if lock.exists() else None
        return int(found[1]) if found else 0

    def has_point(self, name: str) -> bool:
        """Whether the run could continue from a checkpoint."""
        return bool(list(self.run(name).glob("resume/*.json")))

    def log(self, name: str) -> str:
        path = self.root / "ckpt" / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def assert_done(self, name: str, steps: int, frame_skip: int) -> None:
        """Scores of the last step, metrics and settings are where the report looks for them."""
        results = self.root / "eval_result"
        header, row = (results / f"{name}.csv").read_text().splitlines()
        assert header.startswith("step,frames,mean,std,return_0")
        assert row.startswith(f"{steps},{steps * frame_skip},")
        last = (results / f"{name}.metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == steps
        assert json.loads((results / f"{name}.training.json").read_text())["seconds"] > 0
        assert json.loads((results / f"{name}.json").read_text())["training"]["seed"] >= 0
        assert len(list((self.run(name) / "checkpoints").iterdir())) == 1


def uninterrupted(tree: RunTree, base: dict[str, Any], task: str, seed: int, steps: int) -> Path:
    """Train a run with a sweep's settings without interruption, and return its folder."""
    name = f"whole-{task}-{steps}-seed{seed}"
    env_name = f"ALE/{task}-v5" if base["domain"] == "atari" else task
    if not tree.folder(name).exists():
        overrides = as_flags({**base["overrides"], "JointTrainAgent.SampleMaxSteps": steps})
        tree.start(
            base["domain"], "-n", name, "-env_name", env_name, "-seed", str(seed),
            "-config_path", base["config"], "-logger", "none", *flags(*overrides),
        ).ended()  # fmt: skip
    return tree.folder(name)
