"""Where runs and scores are written: a flag, an environment variable, or beside the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from pwm_core.errors import UserError
from pwm_core.paths import LOGDIR_VARIABLE, REPOSITORY, LogDir, find_logdir
from tests.helpers_envs import counting_domain
from tests.helpers_runs import evaluate_run, train_counting

SHORT = ("JointTrainAgent={SampleMaxSteps: 30, SaveEverySteps: 20, EvalEpisodes: 2}",)


def test_the_flag_comes_before_the_variable_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_logdir() == LogDir(REPOSITORY)
    monkeypatch.setenv(LOGDIR_VARIABLE, "")
    assert find_logdir() == LogDir(REPOSITORY), "an empty variable is no choice"
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path))
    assert find_logdir() == LogDir(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_logdir("mine") == LogDir(tmp_path / "mine")


def test_both_commands_write_under_the_folder_of_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGDIR_VARIABLE, str(tmp_path / "not here"))
    where = ["-logdir", str(tmp_path / "here")]
    train_counting("run", *where, overrides=SHORT)
    evaluate_run(counting_domain((7,))[0], ["-n", "run", "-device", "cpu", *where])
    assert (tmp_path / "here" / "ckpt" / "run" / "config.yaml").is_file()
    assert (tmp_path / "here" / "eval_result" / "run.csv").is_file()
    assert not (tmp_path / "not here").exists()
    with pytest.raises(UserError, match=r"no run named run in .*not here"):
        evaluate_run(counting_domain((7,))[0], ["-n", "run", "-device", "cpu"])


def test_an_empty_folder_name_is_refused() -> None:
    with pytest.raises(UserError, match="-logdir: a path is needed"):
        train_counting("run", "-logdir", "", overrides=SHORT)


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(UserError, match="-logdir ~nosuchuser/x: there is no such home directory"):
        find_logdir("~nosuchuser/x")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run cannot be made \(Not a directory\): choose another"):
        train_counting("run", "-logdir", str(tmp_path / "file"), overrides=SHORT)
