"""What ``./train.sh`` and ``./eval.sh`` choose when little is given."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pwm_core.domain import domain_names, find_domain
from pwm_core.errors import UserError
from tests.helpers_runs import MODELS, RunTree, flags, wait_for_step

SHORT = "JointTrainAgent={SampleMaxSteps: 140, BufferMaxLength: 140, BufferWarmUp: 100}"
MORE = "JointTrainAgent={SaveEverySteps: 25, EvalEpisodes: 1}"
LOGDIR = "quick"


def command(tree: RunTree, *argv: str) -> list[str]:
    """The words of ``./train.sh`` for a short run."""
    where = ["-logdir", str(tree.root / LOGDIR), "-device", "cpu", "-logger", "none"]
    return ["train", "atari", *where, *flags(*MODELS, SHORT, MORE), *argv]


def runs(tree: RunTree, pattern: str) -> list[Path]:
    return sorted((tree.root / LOGDIR / "ckpt").glob(pattern))


@pytest.mark.slow
def test_a_seed_behind_an_equals_sign_is_the_seed_of_everything(tree: RunTree) -> None:
    """Of the run, of its name and of its evaluation."""
    done = tree.quickstart(*command(tree, "-seed=3")).ended()
    (run,) = runs(tree, "Pong-tiny-seed*")
    assert run.name.startswith("Pong-tiny-seed3-")
    assert json.loads((run / "run.json").read_text())["seed"] == 3
    scores = tree.root / LOGDIR / "eval_result" / f"{run.name}.csv"
    assert json.loads(scores.with_suffix(".json").read_text())["seed"] == 3
    named = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": /" in line)
    assert {"scores", "curve", "metrics", "checkpoints"} <= named.keys()
    assert all(Path(named[key]).exists() for key in ("scores", "curve", "metrics", "checkpoints"))
    assert named["scores"] == str(scores)

    tree.quickstart("eval", "-n", run.name, "-logdir", str(tree.root / LOGDIR), "-greedy").ended()
    assert scores.with_name(f"{run.name}--greedy.csv").exists()


@pytest.mark.slow
def test_resume_finds_the_run_of_the_same_flags(tree: RunTree) -> None:
    longer = ("-seed", "11", *flags("JointTrainAgent={SampleMaxSteps: 100000, SaveEverySteps: 5}"))
    job = tree.quickstart(*command(tree, *longer, "-resume"))  # there is none: it starts one
    (run,) = wait_for_runs(tree, job)
    wait_for_step(job, run, 110)
    job.kill(signal.SIGTERM)
    job.ended(75)
    assert "no run of this task and seed was started; a new one begins" in job.stdout

    refused = tree.quickstart(*command(tree, *longer, "-resume", *flags("Models.Gamma=0.9")))
    refused.refused(run.name, "Models.Gamma was 0.997 and is 0.9", "-n")

    job = tree.quickstart(*command(tree, *longer, "-resume"))
    wait_for_step(job, run, json.loads(last_line(run))["step"] + 5)
    job.kill(signal.SIGTERM)
    job.ended(75)
    assert "continuing from step" in job.stdout
    assert runs(tree, "Pong-tiny-seed11-*") == [run]


def wait_for_runs(tree: RunTree, job: object) -> list[Path]:
    from tests.helpers_runs import wait_for

    return wait_for(lambda: [p.parent for p in runs(tree, "Pong-tiny-seed11-*/config.yaml")])


def last_line(run: Path) -> str:
    return (run / "metrics.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "pong"], "'pong' is not a domain; there are atari, dmc"),
        (["train", "-sead=3"], "unknown flag -sead"),
        (["train", "dmc", "-obs_type", "pixels"], "'visual'"),
        (["train", "-config_path", ""], "YAML file is needed"),
        (["train", "atari", "-device", "cpu", "-env_name", "Pnog"], "unknown game 'Pnog'"),
        (["eval"], "-n"),
        (["eval", "-n", "nothing"], "no run named nothing"),
        (["fly"], "'fly' is not a command"),
    ],
)
def test_bad_words_are_one_line(words: list[str], says: str, tree: RunTree) -> None:
    tree.quickstart(*words).refused(says)


def test_every_domain_is_found() -> None:
    assert domain_names() == ["atari", "dmc"]
    for name in domain_names():
        domain = find_domain(name)
        assert domain.name == name
        assert domain.defaults == f"config_files/{name}.yaml"
    with pytest.raises(UserError, match="there are atari, dmc"):
        find_domain("core")
