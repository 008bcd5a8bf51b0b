"""``docs/metrics.md`` names what real runs log, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pwm_core.paths import LOGDIR_VARIABLE, REPOSITORY
from pwm_core.runs.run_folder import RunFolder
from pwm_core.training.model_videos import log_videos
from tests.helpers import Data, load_small, make_agent
from tests.helpers_envs import counting_domain
from tests.helpers_runs import flags, train_on

DOC = REPOSITORY / "docs" / "metrics.md"
OF_EVAL = {"Evaluation/return", "Evaluation/std"}
"""Logged by ``eval.py``; see ``tests/results/test_tracked_scores.py``."""


def documented() -> list[str]:
    """The names in the first column of the tables, and those in the last table's second."""
    names = re.findall(r"^\| `([\w</>-]+)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    return names + sorted(re.findall(r"`(Evaluation/\w+)`", DOC.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """By a run with a slow critic and one without, with the task's name left open."""
    names: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGDIR_VARIABLE, str(tmp_path_factory.mktemp("ckpt")))
        for slow in ("true", "false"):
            keys = flags("JointTrainAgent.SampleMaxSteps=40", f"Models.Agent.SlowCritic={slow}")
            train_on(counting_domain((7,))[0], slow, "-env_name", "ALE/Count-v5", *keys)
            lines = RunFolder(slow).metrics.read_text().splitlines()
            names |= {name for line in lines for name in json.loads(line)}
    names = {name.replace("ALE/Count-v5", "<task>") for name in names}
    config = load_small()
    return names | set(log_videos(make_agent(config), Data(rows=2, steps=8).batch(config)))


def test_names_are_those_of_a_run(logged: set[str]) -> None:
    names = documented()
    assert len(names) == len(set(names)), "one line each"
    assert logged - set(names) == set(), "logged, but not in docs/metrics.md"
    assert set(names) - logged == OF_EVAL, "in docs/metrics.md, but not logged"


def test_places_exist() -> None:
    """A line's last column names a file and what computes the number there."""
    text = DOC.read_text(encoding="utf-8")
    places = re.findall(r"\| `((?:\w+/)+\w+\.py)`, `(\w+)`[^|]*\|$", text, re.MULTILINE)
    assert len(places) > 25
    for file, function in places:
        assert f"def {function}(" in Path(REPOSITORY, file).read_text(encoding="utf-8"), file
