"""Scores are added to the run that wandb tracked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pwm_core.commands.eval import record_in_wandb
from pwm_core.paths import LOGDIR_VARIABLE, REPOSITORY
from pwm_core.runs.run_folder import RunFolder
from tests.helpers_wandb import read_wandb

TRACKED = """
import sys
from tests.helpers_envs import CONFIG, TINY, counting_domain
from tests.helpers_runs import evaluate_run, train

domain = counting_domain((5,))[0]
short = "JointTrainAgent={SampleMaxSteps: 40, TrainModelEverySteps: 9, TrainAgentEverySteps: 9}"
overrides = [part for key in (*TINY, short) for part in ("-set", key)]
argv = ["-n", "run", "-env_name", "count", "-config_path", CONFIG, "-device", "cpu"]
argv += ["-logdir", sys.argv[1]]
train(domain, [*argv, "-logger", "wandb", *overrides])
evaluate_run(domain, ["-n", "run", "-device", "cpu", "-checkpoint", "all", "-logdir", sys.argv[1]])
"""


def test_scores_join_the_run_that_wandb_tracked(tmp_path: Path) -> None:
    """They are logged under the run's own id, against steps and frames. The last ones are in the
    summary."""
    hidden = ("WANDB", "NETRC")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, str(tmp_path)],
        cwd=REPOSITORY, env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = pd.read_csv(tmp_path / "eval_result" / "run.csv")
    folder = tmp_path / "ckpt" / "run"
    run_id = json.loads((folder / "run.json").read_text())["tracker_id"]
    found, summary = {}, {}
    # the folder of a second start in the same second gets one more suffix
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = read_wandb(path)
        assert [r.run.run_id for r in records if r.HasField("run")] == [run_id]
        for record in records:
            items = {i.key or "/".join(i.nested_key): i for i in record.history.item}
            values = {key: json.loads(item.value_json) for key, item in items.items()}
            if "Evaluation/return" in values:
                found[values["step"]] = values
            updates = record.summary.update
            summary |= {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}
    assert list(found) == rows.step.tolist() == [20, 40]
    for row in rows.itertuples():
        assert found[row.step]["Evaluation/return"] == row.mean
        assert found[row.step]["Evaluation/std"] == row.std
        assert found[row.step]["frames"] == row.frames
    assert summary["Evaluation/return"] == rows["mean"].iloc[-1]


def test_a_tracker_that_fails_harms_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    folder = RunFolder("run")
    (folder.path / "wandb").mkdir(parents=True)
    (tmp_path / "run.csv").write_text("step,frames,mean,std,return_0\n1,4,2,0,2\n")
    record_in_wandb(folder, {"domain": "atari", "tracker_id": "abc"}, tmp_path / "run.csv")
    assert "the scores are not in the wandb run: WANDB_MODE=nonsense" in capsys.readouterr().out
