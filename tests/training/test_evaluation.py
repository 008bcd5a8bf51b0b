"""Evaluation and score files around an environment that counts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pwm_core.commands import cli
from pwm_core.config_file import load_config
from pwm_core.envs import env_seeds
from pwm_core.paths import find_logdir
from pwm_core.runs.run_folder import RunFolder
from pwm_core.training.evaluation import evaluate, quotas, standard_error
from tests.helpers_counting import score
from tests.helpers_envs import (
    CONFIG,
    DEFAULTS,
    TINY,
    counting_domain,
)
from tests.helpers_runs import train_on

pytestmark = pytest.mark.usefixtures("logdir")


def test_evaluation_of_a_checkpoint_repeats_and_is_that_of_the_trained_agent() -> None:
    domain = counting_domain((7, 11))
    train_on(domain[0], "run", "-seed", "3", "-set", "Models.Agent.LR=0.03")
    flags = ("-checkpoint", "all", "-episodes", "5")
    rows = score(domain[0], "run", *flags)
    assert [row[:2] for row in rows] == [[s, 2 * s] for s in (20, 40, 60)]
    shutil.rmtree(find_logdir().scores)
    assert score(domain[0], "run", *flags) == rows
    assert rows[0][4:] != rows[1][4:], "returns tell checkpoints apart"
    assert score(domain[0], "run", *flags, "-seed", "4")[0][4:] != rows[0][4:]

    for row, env in zip(rows, domain[1][1:4], strict=True):
        played = [*env.returns(0)[:3], *env.returns(1)[:2]]
        assert row[4:] == played
        assert row[2:4] == pytest.approx([np.mean(played), np.std(played)], rel=1e-5)


def test_greedy_evaluation_takes_the_mode() -> None:
    """The policy of the checkpoint prefers action 2 a little for every observation."""
    domain = counting_domain((7,))
    train_on(domain[0], "run")
    path = RunFolder.open("run").path / "checkpoints" / "000000060.pt"
    weights = torch.load(path, weights_only=True)
    last = max(k for k in weights["actor_critic"] if k.startswith("actor."))  # actor.<n>.weight
    weights["actor_critic"][last].zero_()
    weights["actor_critic"][last.replace("weight", "bias")].copy_(torch.tensor([0.0, 0.0, 0.5]))
    torch.save(weights, path)
    score(domain[0], "run", "-greedy")
    score(domain[0], "run")
    greedy, sampled = ({t.action for log in env.log for t in log} for env in domain[1][1:])
    assert greedy == {2}
    assert sampled == {0, 1, 2}


def test_evaluation_plays_a_fixed_quota_per_environment() -> None:
    """Short episodes are not favoured.

    Environment 1 plays its share, although environment 0 could finish sixteen episodes meanwhile.
    """
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=TINY)
    domain, _ = counting_domain((3, 50))
    env = domain.make_env(config, "count", 2, 0)
    agent = cli.make_agent(domain, config, env, "cpu")
    returns = evaluate(agent, env, 5)
    assert returns == [*env.returns(0)[:3], *env.returns(1)[:2]]
    assert [value > 1000 for value in returns] == [False] * 3 + [True] * 2
    assert [len(log) for log in env.log] == [100, 100]


@pytest.mark.parametrize(
    ("episodes", "envs", "expected"),
    [(50, 20, [3] * 10 + [2] * 10), (50, 10, [5] * 10), (4, 4, [1] * 4), (7, 3, [3, 2, 2])],
)
def test_quotas(episodes: int, envs: int, expected: list[int]) -> None:
    assert quotas(episodes, envs).tolist() == expected


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(np.sqrt(5 / 3) / 2)
    assert standard_error([3.0]) == 0


def test_every_environment_has_a_seed_of_its_own_and_evaluation_others_than_training() -> None:
    domain = counting_domain((7,))
    train_on(domain[0], "run", "-seed", "5")
    score(domain[0], "run")
    training, evaluating = (env.seed for env in domain[1])
    assert training == 5
    offset = evaluating - training
    seeds = np.concatenate([env_seeds(s + o, 20) for s in range(100) for o in (0, offset)])
    assert len(set(seeds.tolist())) == len(seeds)
    assert (seeds >= 0).all()
    assert (seeds < 2**31).all(), "what the emulator takes"
    assert env_seeds(5, 20)[:3].tolist() == env_seeds(5, 3).tolist()
