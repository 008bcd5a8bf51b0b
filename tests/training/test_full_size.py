"""A full-size training step stays within 6 GB, and sampling takes at most 2 % of its time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pwm_core.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("case", ["atari", "dmc-proprio"])
def test_full_size_step(case: str) -> None:
    """A separate process runs the step, so that the peak memory is that of the step."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--one", "--case", case]
    command += ["--precision", "fp32", "--scan", "chunked", "--device", "cpu", "--repeats", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["peak (GB)"] < 6
    assert row["replay share"] <= 0.02
    assert row["step (s)"] > 0
