"""Actor and critic against losses that are computed one element at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from pwm_core.config import Config
from pwm_core.models.actor_critic import ActorCritic, clipped_objective
from pwm_core.models.types import Trajectory
from pwm_core.training.agent import Agent
from tests.helpers import (
    CLASSES,
    STOCH,
    WIDTH,
    as_vector,
    load_small,
    make_actor_critic,
    make_agent,
    make_world_model,
    replace_at,
    two_hot_weights,
)

KINDS = pytest.mark.parametrize("discrete", [True, False])
SLOW = pytest.mark.parametrize("slow", ["true", "false"])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
GAMMA = 0.9


def make_states(*shape: int) -> tuple[Tensor, Tensor]:
    """Random deter (..., D) and latent (..., S)."""
    return torch.randn(*shape, WIDTH), torch.randint(CLASSES, (*shape, STOCH))


def make_trajectory(model: ActorCritic, rows: int = 5, horizon: int = 7) -> Trajectory:
    """A trajectory with random states and rewards, the model's own actions and two ends."""
    torch.manual_seed(3)
    deter, latent = make_states(rows, horizon + 1)
    discount = torch.full((rows, horizon), GAMMA)
    discount[0, min(2, horizon - 1)] = discount[-1, -1] = 0.0
    with torch.no_grad():
        output = model.actor(deter[:, :-1], latent[:, :-1])
        action = model.policy.sample(output)
        log_prob = model.policy.log_prob(output, action)
    reward = 3 * torch.randn(rows, horizon)
    return Trajectory(deter, latent, action, log_prob, reward, discount)


# ------------------------------------------------------------------------------------------ start


@KINDS
def test_a_new_agent_values_everything_at_zero_and_has_no_preference(discrete: bool) -> None:
    config = load_small()
    model = make_actor_critic(config, discrete=discrete, fresh=True)
    states = make_states(4, 6)
    value = model.two_hot.decode(model.critic(*states))
    torch.testing.assert_close(value, torch.zeros(4, 6), rtol=0, atol=1e-6)
    assert (model.actor(*states) == 0).all()
    if discrete:
        entropy = model.policy.entropy(model.actor(*states))
        torch.testing.assert_close(entropy, torch.full((4, 6), float(np.log(3))))
    world_model = make_world_model(config, discrete=discrete, fresh=True)
    reward, goes_on = world_model.predict(torch.randn(4, 6, WIDTH))
    torch.testing.assert_close(reward, torch.zeros(4, 6), rtol=0, atol=1e-6)
    assert not goes_on.any()  # at a logit of exactly 0: not below it


# ------------------------------------------------------------------------------------------- loss


class Expected(NamedTuple):
    policy_loss: Tensor
    value_loss: Tensor
    weighted_entropy: Tensor
    entropy: Tensor
    scale: Tensor
    returns: Tensor
    advantage: Tensor


def loss_by_hand(model: ActorCritic, trajectory: Trajectory, config: Config) -> Expected:
    """The losses of actor and critic, one element at a time, with fresh percentiles.

    Gradients flow through the result.
    """
    deter, latent, action, _, reward, discount = trajectory
    latent = as_vector(latent)  # the layers then multiply where they otherwise pick rows
    rows, horizon = reward.shape
    top = config.Models.MaxBin
    bins = torch.linspace(-top, top, config.Models.NumBin)

    def decode(logits: Tensor) -> Tensor:
        mean = (logits.detach().softmax(-1) * bins).sum()
        return mean.sign() * (mean.abs().exp() - 1)

    def lambda_returns(value: list[Tensor], b: int) -> list[Tensor]:
        after, found = value[horizon], []
        for t in reversed(range(horizon)):
            blend = (1 - config.Models.Lambda) * value[t + 1] + config.Models.Lambda * after
            after = reward[b, t] + discount[b, t] * blend
            found.insert(0, after)
        return found

    critics = [model.critic] if model.slow_critic is None else [model.critic, model.slow_critic]
    logits = [[critic(deter[b], latent[b]) for b in range(rows)] for critic in critics]
    values = [[[decode(x) for x in row] for row in rows_] for rows_ in logits]
    returns = [[lambda_returns(row, b) for b, row in enumerate(rows_)] for rows_ in values]

    flat = np.array(returns[0]).flatten()
    low, high = 0.01 * np.quantile(flat, 0.05), 0.01 * np.quantile(flat, 0.95)
    scale = torch.tensor(max(1.0, high - low))

    sums = torch.zeros(4)
    advantages = torch.zeros(rows, horizon)
    for b in range(rows):
        weight = 1.0
        for t in range(horizon):
            output = model.actor(deter[b, t], latent[b, t])
            if model.policy.discrete:
                policy = Categorical(logits=output)
            else:
                mean, raw = output.chunk(2)
                policy = Independent(Normal(mean.tanh(), 0.1 + 0.9 * (raw + 2).sigmoid()), 1)
            advantage = (returns[0][b][t] - values[0][b][t]) / scale
            advantages[b, t] = advantage
            policy_loss = -weight * policy.log_prob(action[b, t]) * advantage
            targets = [two_hot_weights(model.two_hot, rows_[b][t]) for rows_ in returns]
            log_probs = logits[0][b][t].log_softmax(-1)
            value_loss = weight * -sum((target * log_probs).sum() for target in targets)
            entropy = policy.entropy()
            sums = sums + torch.stack([policy_loss, value_loss, weight * entropy, entropy])
            weight = weight * discount[b, t].item()
    means = sums / (rows * horizon)
    return Expected(*means, scale, torch.tensor(flat).float(), advantages)


@KINDS
@SLOW
@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (1, 4), (4, 1)])
def test_the_loss_is_the_one_computed_by_hand(
    shape: tuple[int, int], slow: str, discrete: bool
) -> None:
    """No term broadcasts (B, 1, H) against (B, H, 1), and no step after a predicted end counts."""
    config = load_small(f"Models.Agent.SlowCritic={slow}", "Models.Agent.EntropyCoef=0.1")
    model = make_actor_critic(config, discrete=discrete)
    trajectory = make_trajectory(model, *shape)
    expected = loss_by_hand(model, trajectory, config)
    total = expected.policy_loss + expected.value_loss - 0.1 * expected.weighted_entropy
    total.backward()
    wanted = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()

    loss, metrics = model.loss(trajectory)
    loss.backward()
    torch.testing.assert_close(loss, total, **CLOSE)
    for name in ("policy_loss", "value_loss", "entropy", "scale"):
        torch.testing.assert_close(metrics[name], getattr(expected, name).detach(), **CLOSE)
    output = model.actor(trajectory.deter[:, :-1], trajectory.latent[:, :-1])
    information = model.policy.mixed_entropy(output) - expected.entropy
    torch.testing.assert_close(metrics["action_information"], information.detach(), **CLOSE)
    torch.testing.assert_close(metrics["lambda_return"], expected.returns.mean(), **CLOSE)
    torch.testing.assert_close(metrics["norm_adv"], expected.advantage.mean(), **CLOSE)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("slow_critic")
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], **CLOSE)


def losses_and_gradients(model: ActorCritic, trajectory: Trajectory) -> list[Tensor]:
    model.zero_grad()
    model.return_scale.percentiles.zero_()
    loss, metrics = model.loss(trajectory)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [metrics["policy_loss"], metrics["value_loss"], loss.detach(), *gradients]


@KINDS
def test_nothing_after_a_predicted_end_counts(discrete: bool) -> None:
    model = make_actor_critic(load_small(), discrete=discrete)
    trajectory = make_trajectory(model)  # row 0 ends at step 2
    before = losses_and_gradients(model, trajectory)
    for step, counts in ((2, True), (3, False), (4, False)):
        changes = {
            "reward": replace_at(trajectory.reward, 0, step, torch.tensor(5.0)),
            "deter": replace_at(trajectory.deter, 0, step, torch.ones(WIDTH)),
            "latent": replace_at(trajectory.latent, 0, step, 4 - trajectory.latent[0, step]),
        }
        for name, value in changes.items():
            after = losses_and_gradients(model, trajectory._replace(**{name: value}))
            same = [torch.allclose(x, y, **CLOSE) for x, y in zip(before, after, strict=True)]
            assert (not any(same)) if counts else all(same), (step, name)


@KINDS
@SLOW
def test_pete_and_lambda_returns_agree_at_the_first_update(slow: str, discrete: bool) -> None:
    found = []
    for returns in ("lambda", "pete"):
        config = load_small(f"Models.Agent.Returns={returns}", f"Models.Agent.SlowCritic={slow}")
        model = make_actor_critic(config, discrete=discrete)
        trajectory = make_trajectory(model)
        found.append(losses_and_gradients(model, trajectory))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    # Later the policy is no longer the one that acted: PETE corrects for that.
    moved = trajectory._replace(log_prob=trajectory.log_prob - 0.5)
    assert not torch.allclose(found[1][2], losses_and_gradients(model, moved)[2], rtol=1e-3)


@pytest.mark.parametrize("scan", ["sequential", "odd_even", "kogge_stone"])
def test_the_scan_of_the_returns_does_not_matter(scan: str) -> None:
    model = make_actor_critic(load_small(f"Models.Agent.ReturnScan={scan}"))
    other = make_actor_critic(load_small())
    trajectory = make_trajectory(model)
    pairs = (losses_and_gradients(m, trajectory) for m in (model, other))
    for one, two in zip(*pairs, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


# --------------------------------------------------------------- several updates on one rollout


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # made likelier than by the clip already
        (1.5, -2.0, -3.0, -2.0),  # made likelier although it is bad: that is taken back
        (0.5, 2.0, 1.0, 2.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_the_objective_is_clipped_on_the_side_it_pushes_to(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    x = torch.tensor(ratio, requires_grad=True)
    found = clipped_objective(x, torch.tensor(advantage), 0.2)
    found.backward()
    assert (found.item(), x.grad.item()) == pytest.approx((value, slope))


@KINDS
def test_a_later_update_is_reinforce_where_the_policy_has_not_moved(discrete: bool) -> None:
    model = make_actor_critic(load_small(), discrete=discrete)
    trajectory = make_trajectory(model)
    gradients = []
    for again in (False, True):
        model.zero_grad()
        model.return_scale.percentiles.zero_()
        model.loss(trajectory, again=again)[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for first, later in zip(*gradients, strict=True):
        torch.testing.assert_close(first, later, **CLOSE)


@KINDS
def test_many_updates_on_one_rollout_stay_near_the_policy_that_acted(discrete: bool) -> None:
    """The divergence of plain REINFORCE, which runs away, is the measure for the clipped loss."""
    updates = 60
    config = load_small(
        "Models.Agent={LR: 3e-3, EntropyCoef: 0}", f"JointTrainAgent.AgentUpdate={updates}"
    )

    def divergence(agent: Agent, trajectory: Trajectory) -> float:
        """Mean KL(acted || now) in nats, estimated from the actions taken."""
        model, states = agent.actor_critic, (trajectory.deter, trajectory.latent)
        output = model.actor(*(x[:, :-1] for x in states))
        log_ratio = model.policy.log_prob(output, trajectory.action) - trajectory.log_prob
        return (log_ratio.exp() - 1 - log_ratio).mean().item()

    found = []
    for clipped in (True, False):
        agent = make_agent(config, discrete=discrete)
        trajectory = make_trajectory(agent.actor_critic, 64)
        if not clipped:
            loss = agent.actor_critic.loss
            agent._actor_critic_loss = lambda given, again, loss=loss: loss(given)
        agent.train_actor_critic(trajectory)
        with torch.no_grad():
            found.append(divergence(agent, trajectory))
    assert 0.001 < found[0] < 0.2
    assert found[1] > 5 * found[0], found


# ------------------------------------------------------------------------ scale and slow critic


def test_a_large_scale_divides_the_advantage() -> None:
    model = make_actor_critic(load_small())
    trajectory = make_trajectory(model)
    _, before = model.loss(trajectory)
    model.return_scale.percentiles.copy_(torch.tensor([-500.0, 500.0]))
    _, after = model.loss(trajectory)
    assert after["scale"] > 900
    torch.testing.assert_close(
        before["policy_loss"], after["policy_loss"] * after["scale"] / before["scale"], **CLOSE
    )


def test_the_slow_critic_starts_as_the_critic_and_follows_by_tau() -> None:
    config = load_small("Models.Tau=0.25", "Models.Agent.LR=0.01", "JointTrainAgent.AgentUpdate=2")
    fresh = make_actor_critic(config, fresh=True)
    for slow, fast in zip(fresh.slow_critic.parameters(), fresh.critic.parameters(), strict=True):
        torch.testing.assert_close(slow, fast, rtol=0, atol=0)

    model = make_actor_critic(config)
    before = [p.clone() for p in model.slow_critic.parameters()]
    critic = [p.clone() for p in model.critic.parameters()]
    model.update_slow_critic()
    for slow, old, fast in zip(model.slow_critic.parameters(), before, critic, strict=True):
        assert not slow.requires_grad
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * fast)
    for now, fast in zip(model.critic.parameters(), critic, strict=True):
        torch.testing.assert_close(now, fast, rtol=0, atol=0)

    agent = make_agent(config)
    slow = [p.clone() for p in agent.actor_critic.slow_critic.parameters()]
    trained = {
        id(p)
        for group in agent.optimizers["ActorCritic"].adamw.param_groups
        for p in group["params"]
    }
    assert trained.isdisjoint(id(p) for p in agent.actor_critic.slow_critic.parameters())
    agent.train_actor_critic(make_trajectory(agent.actor_critic))  # AgentUpdate = 2 updates
    moved = agent.actor_critic.slow_critic.parameters()
    assert all((old != new).any() for old, new in zip(slow, moved, strict=True))


def test_without_a_slow_critic_there_is_none() -> None:
    model = make_actor_critic(load_small("Models.Agent.SlowCritic=false"))
    assert model.slow_critic is None
    model.update_slow_critic()
    assert not any(name.startswith("slow") for name in model.state_dict())


# ---------------------------------------------------------------------------------------- actions


def test_executed_actions_are_clipped_and_greedy_is_tanh_of_the_mean() -> None:
    """Greedy actions pass through the tanh, and no action leaves the bounds."""
    model = make_actor_critic(load_small(), discrete=False)
    with torch.no_grad():
        model.actor.rest[-1].bias.copy_(torch.tensor([3.0, -3.0, 0.0, 5.0, 5.0, 5.0]))
    states = make_states(500)
    output = model.actor(*states)
    torch.testing.assert_close(model.act(*states, greedy=True), output[:, :3].tanh())
    torch.manual_seed(0)
    drawn = model.policy.sample(output)
    torch.manual_seed(0)
    action = model.act(*states)
    torch.testing.assert_close(action, drawn.clamp(-1, 1))
    assert drawn.abs().max() > 1.5
    assert action.abs().max() == 1


def test_discrete_actions_are_drawn_and_greedy_is_the_most_probable() -> None:
    model = make_actor_critic(load_small())
    states = [x.expand(4000, -1) for x in make_states(1)]
    probs = model.actor(*states)[0].softmax(-1)
    shares = torch.bincount(model.act(*states), minlength=3) / 4000
    torch.testing.assert_close(shares, probs, rtol=0, atol=0.03)
    assert (model.act(*states, greedy=True) == probs.argmax()).all()
