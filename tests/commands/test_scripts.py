"""The commands for a fresh machine, on a copy of the sources with this environment as ``.venv``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("pwm_core", "pwm_atari", "pwm_dmc", "config_files", "scripts")
SMALL = [
    "JointTrainAgent.SampleMaxSteps=560",
    "JointTrainAgent.BufferWarmUp=512",
    "JointTrainAgent.NumEnvs=1",
    "JointTrainAgent.TrainModelEverySteps=8",
    "JointTrainAgent.TrainAgentEverySteps=8",
    "JointTrainAgent.EvalEpisodes=1",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in NEEDED:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for script in [*ROOT.glob("*.sh"), *ROOT.glob("requirements*.txt")]:
        shutil.copy(script, tmp_path)
    if sys.prefix == sys.base_prefix:
        pytest.skip("runs only in a virtual environment, as ./test.sh makes one")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["atari", "dmc"])
def test_train_then_eval(tree: Path, domain: str) -> None:
    """Every file that ./train.sh names exists; a config path counts from the caller's folder."""
    elsewhere = tree / "elsewhere"
    elsewhere.mkdir()
    own = elsewhere / "own.yaml"
    shutil.copy(ROOT / "config_files" / f"{domain}_tiny.yaml", own)
    flags = [part for key in SMALL for part in ("-set", key)]
    command = ["../train.sh", domain, "-config_path", "own.yaml", "-device", "auto", *flags]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    named = dict(re.findall(r"^(checkpoints|metrics|scores|curve): +(\S+)$", done.stdout, re.M))
    assert set(named) == {"checkpoints", "metrics", "scores", "curve"}
    assert all(Path(path).exists() for path in named.values())

    assert re.search(
        r"the trained agent returns -?\d+\.\d, random play -?\d+\.\d$", done.stdout, re.M
    )
    assert re.search(r"^video of return_0|no video", done.stdout, re.M)

    name = Path(named["scores"]).stem
    command = ["./eval.sh", "-run_name", name, "-episodes", "1", "-greedy"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"eval_result/{name}--greedy.csv" in done.stdout


@pytest.mark.slow
def test_help_trains_nothing(tree: Path) -> None:
    done = subprocess.run(["./train.sh", "-h"], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0
    assert "-env_name" in done.stdout
    assert not (tree / "ckpt").exists()


def test_an_environment_without_pip_is_one_line(tmp_path: Path) -> None:
    """An interrupted first call leaves one."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    command = ["bash", "-c", ". scripts/install.sh requirements.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: .venv has no pip; remove that folder")
    assert len(done.stderr.splitlines()) == 1
