"""An update that is not finite is skipped, and a row of them ends the run with a diagnosis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pwm_core.commands import cli
from pwm_core.config_file import load_config
from pwm_core.errors import UserError
from pwm_core.models.distributions import SymlogTwoHot, symexp
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.run_folder import RunFolder
from pwm_core.training.diagnosis import diagnose
from pwm_core.training.replay_buffer import ReplayBuffer
from tests.helpers import Data, load_small, make_agent
from tests.helpers_envs import CONFIG, DEFAULTS, TINY, CountingEnv, counting_domain
from tests.helpers_runs import (
    Hook,
    folder,
    records,
    same,
    tensors,
    train_counting,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("logdir")


def state_of(agent: Any) -> dict[str, Any]:
    """Weights, BatchNorm's statistics, return scale, the optimisers' moments; without counters and
    the slow critic, which goes on following the critic."""
    leaves = tensors(agent.state_dict())
    out = ("skipped.", "in_a_row.", "longest.")
    kept = {k: v for k, v in leaves.items() if not k.endswith(out) and "slow_critic" not in k}
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}


@pytest.mark.parametrize("part", ["WorldModel", "ActorCritic"])
@pytest.mark.parametrize("cause", ["loss", "gradient NaN", "gradient inf"])
def test_an_update_that_is_not_finite_changes_nothing(part: str, cause: str) -> None:
    """Not a bit; and the next one is taken."""
    config = load_small()
    agent = make_agent(config)
    batch = Data().batch(config)
    trajectory = agent.imagine(batch)

    def update(reward: float = 1.0) -> dict[str, torch.Tensor]:
        if part == "WorldModel":
            return agent.train_world_model(batch._replace(reward=batch.reward * reward))
        return agent.train_actor_critic(trajectory._replace(reward=trajectory.reward * reward))

    update()
    before = state_of(agent)
    if cause == "loss":
        assert not update(np.nan)[f"{part}/grad_norm"].isfinite()
    else:
        module = agent.world_model if part == "WorldModel" else agent.actor_critic
        factor = float(cause.split()[1])
        handle = next(module.parameters()).register_hook(lambda gradient: gradient * factor)
        assert not update()[f"{part}/grad_norm"].isfinite()
        handle.remove()
    after = state_of(agent)
    assert [key for key in before if not same(before[key], after[key])] == []
    other = {"WorldModel", "ActorCritic"} - {part}
    assert agent.skipped() == {f"{part}/skipped_updates": 1} | {
        f"{name}/skipped_updates": 0 for name in other
    }
    update()
    after = state_of(agent)
    moved = [key for key in before if not same(before[key], after[key])]
    assert any("running_mean" in key for key in moved) or part == "ActorCritic"
    assert any("exp_avg" in key for key in moved)
    optimizer = agent.optimizers[part]
    assert (int(optimizer.skipped), int(optimizer.in_a_row), optimizer.take_longest()) == (1, 0, 1)


def test_rows_of_skipped_updates_are_counted_across_looks() -> None:
    config = load_small()
    agent = make_agent(config)
    batch, optimizer = Data().batch(config), agent.optimizers["WorldModel"]
    bad = batch._replace(reward=batch.reward * np.nan)
    looks = []
    for sequence in ([bad, bad, batch], [bad, batch, bad], [bad, bad], [batch]):
        for one in sequence:
            agent.train_world_model(one)
        looks.append(optimizer.take_longest())
    assert looks == [2, 1, 3, 3]  # a row that is open at a look counts at the next one too
    assert int(optimizer.skipped) == 6


def nan_rewards(first: int, last: int) -> Hook:
    """A hook that makes the rewards of those steps NaN."""

    def hook(step: int, env: CountingEnv) -> None:
        if first <= step <= last:
            env._actions = env._actions * np.nan

    return hook


def test_a_nan_in_the_replay_costs_the_updates_that_meet_it() -> None:
    loop = "JointTrainAgent={BufferMaxLength: 10, LogEverySteps: 1}"
    train_counting("run", overrides=[loop], hook=nan_rewards(30, 30))
    skipped = {
        int(r["step"]): r["WorldModel/skipped_updates"]
        for r in records(folder("run"))
        if "WorldModel/skipped_updates" in r
    }
    assert skipped[29] == 0 < skipped[40] == skipped[60] < 11, "it left the ring at step 40"
    weights = tensors(RunFolder("run").load_weights(60, CPU))
    assert all(torch.isfinite(w).all() for w in weights.values() if isinstance(w, torch.Tensor))


def test_too_many_in_a_row_end_the_run_with_a_diagnosis() -> None:
    loop = "JointTrainAgent={MaxSkippedUpdates: 4, BufferMaxLength: 8, LogEverySteps: 2}"
    with pytest.raises(UserError) as raised:
        train_counting("run", overrides=[loop], hook=nan_rewards(25, 60))
    said = str(raised.value)
    assert "\n" not in said
    assert "updates of WorldModel in a row were skipped" in said
    assert "MaxSkippedUpdates = 4" in said
    assert "values of reward in the replay are NaN or infinite: see the environment" in said
    assert "the checkpoint of step 20 is there" in said
    step = records(folder("run"))[-1]["step"]
    assert 28 <= step < 40
    assert str(int(step)) in said
    assert ResumePoints(folder("run")).newest().step == 20
    count = int(said.partition("step ")[2].partition(": ")[2].split()[0])
    assert count > 4


def test_diagnosis_names_the_part() -> None:
    config = load_config(CONFIG, defaults=DEFAULTS, overrides=TINY)
    domain, _ = counting_domain((7,))
    env = domain.make_env(config, "count", 1, 0)
    replay = ReplayBuffer(domain.transition(config, env), 1, 30, CPU)
    for _ in range(20):
        replay.add(env._render(), *(np.ones(1) for _ in range(4)))

    def diagnosis(module: str, key: str, value: float) -> str:
        torch.manual_seed(0)
        agent = cli.make_agent(domain, config, env, "cpu")
        with torch.no_grad():
            getattr(agent, module).get_parameter(key).fill_(value)
        return diagnose(agent, replay)

    assert "the world model's prior.1.weight holds" in diagnosis(
        "world_model", "prior.1.weight", np.nan
    )
    actor = next(
        iter(dict(cli.make_agent(domain, config, env, "cpu").actor_critic.named_parameters()))
    )
    assert f"the actor-critic's {actor} holds" in diagnosis("actor_critic", actor, np.inf)
    assert "not finite: WorldModel/dyn_loss" in diagnosis("world_model", "prior.1.weight", 1e38)
    assert "it is the gradients that overflow" in diagnosis("world_model", "prior.1.bias", 0.0)
    replay._data["reward"][0, 3] = np.inf
    assert "1 values of reward in the replay" in diagnosis("world_model", "prior.1.bias", 0.0)


def test_targets_beyond_the_bins_are_clipped_and_counted() -> None:
    two_hot = SymlogTwoHot(41, 20.0)
    edge = float(symexp(torch.tensor(20.0)))
    beyond = torch.tensor([[2 * edge, -2 * edge, np.inf], [0.9 * edge, -0.9 * edge, 0.0]])
    assert two_hot.count_clipped(beyond).item() == 3
    logits = torch.randn(2, 3, 41)
    ends = torch.tensor([[edge, -edge, edge], [0.9 * edge, -0.9 * edge, 0.0]])
    torch.testing.assert_close(two_hot.loss(logits, beyond), two_hot.loss(logits, ends))

    config = load_small()
    agent = make_agent(config)
    batch = Data().batch(config)
    assert agent.train_world_model(batch)["WorldModel/clipped_rewards"] == 0
    batch.reward[0, :3] = torch.tensor([2e9, -2e9, 1e8])
    assert agent.train_world_model(batch)["WorldModel/clipped_rewards"] == 2
    trajectory = agent.imagine(batch)
    assert agent.train_actor_critic(trajectory)["ActorCritic/clipped_returns"] == 0
    far = trajectory._replace(reward=torch.full_like(trajectory.reward, -1e12))
    metrics = agent.train_actor_critic(far)
    assert metrics["ActorCritic/clipped_returns"] == trajectory.reward.numel()
    assert agent.skipped() == {"WorldModel/skipped_updates": 0, "ActorCritic/skipped_updates": 0}


def test_a_nan_target_gives_a_nan_loss() -> None:
    """As an index it would end the run on a CPU, and spoil the whole process on a GPU."""
    two_hot = SymlogTwoHot(41, 20.0)
    loss = two_hot.loss(torch.zeros(3, 41), torch.tensor([1.0, np.nan, 2.0]))
    assert loss.isnan().tolist() == [False, True, False]
