"""The full-size configs do a whole training step within the memory and replay time promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["atari", "dmc-proprio"])
def test_full_size_step(case: str) -> None:
    """In a process of its own, so that the peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--one", "--case", case]
    command += ["--precision", "fp32", "--scan", "chunked", "--device", "cpu", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["peak (GB)"] < 6
    assert row["replay share"] <= 0.02
    assert row["step (s)"] > 0
