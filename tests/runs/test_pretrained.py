"""Agents that come with the repository."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch

from pwm_core.commands import record
from pwm_core.commands.cli import record_parser
from pwm_core.commands.publish import main, publish
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import CRITICS
from pwm_core.paths import LogDir, find_logdir
from pwm_core.runs import pretrained
from pwm_core.runs.run_folder import RunFolder
from tests.helpers_envs import counting_domain
from tests.helpers_runs import evaluate_run, train_counting

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("logdir")


def test_a_published_agent_is_evaluated_where_there_is_no_run_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are the run's to half precision, without critics, in a file of little more than
    half the size."""
    monkeypatch.setattr(pretrained, "PRETRAINED", LogDir(tmp_path / "pretrained"))
    train_counting("run")
    run = RunFolder("run", find_logdir())
    published = publish(run)
    assert {p.name for p in published.path.iterdir()} == {"config.yaml", "run.json", "checkpoints"}
    assert published.checkpoint(60).stat().st_size < 0.8 * run.checkpoint(60).stat().st_size
    weights = published.load_weights(60, CPU)["actor_critic"]
    assert any(key.startswith("actor.") for key in weights)
    assert not any(key.startswith(CRITICS) for key in weights)

    elsewhere = LogDir(tmp_path / "elsewhere")
    domain = counting_domain((7,))[0]
    evaluate_run(domain, ["-n", "run", "-device", "cpu", "-logdir", str(elsewhere.root)])
    assert "comes with the repository" in capsys.readouterr().out
    assert (elsewhere.scores / "run.csv").is_file()
    another = LogDir(tmp_path / "another")
    argv = ["-n", "run", "-steps", "4", "-logdir", str(another.root), "-o", str(tmp_path / "a.npz")]
    record.run(domain, record_parser(domain).parse_args([*argv, "-device", "cpu"]))
    copy = RunFolder("run", elsewhere).load_weights(60, CPU)["world_model"]
    for name, value in run.load_weights(60, CPU)["world_model"].items():
        torch.testing.assert_close(copy[name].to(value.dtype), value, rtol=1e-3, atol=1e-6)


def test_a_copy_that_fails_leaves_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a run would be one that is damaged."""
    monkeypatch.setattr(pretrained, "PRETRAINED", LogDir(tmp_path / "pretrained"))
    train_counting("run")
    published = publish(RunFolder("run", find_logdir()))
    elsewhere = LogDir(tmp_path / "elsewhere")
    weights, plain = published.checkpoint(60), shutil.copyfile

    def copyfile(source: str, target: str) -> str:
        if Path(source) == weights:
            raise OSError(errno.ENOSPC, "No space left on device", target)
        return plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copyfile)
        with pytest.raises(UserError, match=r"run run cannot be copied.*No space left"):
            pretrained.fetch("run", elsewhere)
    assert not list(elsewhere.runs.iterdir())
    pretrained.fetch("run", elsewhere)
    assert RunFolder("run", elsewhere).steps() == [60]


def test_a_run_of_that_name_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINED", LogDir(tmp_path / "pretrained"))
    train_counting("run")
    run = RunFolder("run", find_logdir())
    publish(run)
    before = run.checkpoint(60).read_bytes()
    pretrained.fetch("run", find_logdir())
    pretrained.fetch("another", find_logdir())
    assert run.checkpoint(60).read_bytes() == before
    assert "comes with" not in capsys.readouterr().out


def test_a_published_agent_is_not_published_onto_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is emptied first."""
    train_counting("run")
    monkeypatch.setattr(pretrained, "PRETRAINED", find_logdir())
    monkeypatch.setattr("sys.argv", ["publish", "run"])
    with pytest.raises(UserError, match="is where agents are published"):
        main()
    assert RunFolder("run").checkpoint(60).is_file()


def test_a_misspelled_agent_is_found() -> None:
    """Though no run of its name is there yet."""
    with pytest.raises(UserError, match=r"no run named Boxing-smal in .*mean 'Boxing-small'"):
        pretrained.open_folder("Boxing-smal", find_logdir())
