"""The project as ``pip install .`` lays it out, without a checkout around it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pwm_core.paths import REPOSITORY
from tests.helpers_runs import MODELS, flags

SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = SETTINGS["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in REPOSITORY.glob("pwm_*/**/__init__.py")
    }
    assert found | {"pwm_core.config_files"} == set(SETUPTOOLS["packages"])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The packages with their data where ``pyproject.toml`` says they go."""
    site = tmp_path / "site-packages"
    for package in SETUPTOOLS["packages"]:
        source = SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
        target = site / package.replace(".", "/")
        target.mkdir(parents=True)
        for pattern in ("*.py", *SETUPTOOLS["package-data"].get(package, [])):
            for path in (REPOSITORY / source).glob(pattern):
                shutil.copy(path, target)
    return site


@pytest.mark.slow
def test_an_installed_command_finds_its_configs_and_writes_where_it_is_called(
    installed: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()

    environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-O", "-m", *command], cwd=work, env=environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    short = flags(*MODELS, "JointTrainAgent={SampleMaxSteps: 102, BufferWarmUp: 100}")
    short += flags("JointTrainAgent.EvalEpisodes=1")
    command = ["-n", "run", "-env_name", "ALE/Pong-v5", "-device", "cpu", "-logger", "none", *short]
    done = run("pwm_atari.train", *command, "-config_path", "config_files/atari_tiny.yaml")
    assert done.returncode == 0, done.stderr
    done = run("pwm_atari.eval", "-n", "run", "-device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (work / "ckpt" / "run" / "run.json").is_file()
    assert '"commit": null' in (work / "ckpt" / "run" / "run.json").read_text()
    assert (work / "eval_result" / "run.csv").is_file()
    assert {path.name for path in work.iterdir()} == {"ckpt", "eval_result"}
