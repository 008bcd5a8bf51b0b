"""STORM: its size, its losses, its optimizers and what its attention sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config_file import load_config
from pwm_core.models.actor_critic import ActorCritic, ReturnScale
from pwm_core.models.networks import ImageCodec
from pwm_core.models.types import Batch, Trajectory
from pwm_core.models.world_model import WorldModel
from tests.helpers import ACTIONS, Data, count_parameters, make_actor_critic, make_world_model
from tests.training.storm_agents import load_storm, make_storm

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


# ------------------------------------------------------------------------------------------- size

SIZES = {
    "encoder": 690_624,
    "decoder": 4_884_931,
    "sequence.input_layer": 791_552,
    "sequence.position": 32_768,
    "sequence.norm": 1_024,
    "sequence.blocks": 4_201_472,
    "posterior": 4_195_328,
    "prior": 525_312,
    "reward_head": 657_151,
    "done_head": 526_849,
}


def test_the_number_of_parameters_is_storms() -> None:
    models = load_config("config_files/STORM.yaml", defaults="config_files/atari.yaml").Models
    policy = CategoricalPolicy(6)
    model = WorldModel(models, ImageCodec(models, (64, 64, 3)), policy)
    actor_critic = ActorCritic(models, policy)
    found = {name: count_parameters(model.get_submodule(name)) for name in SIZES}
    assert found == SIZES
    assert count_parameters(model) == sum(SIZES.values()) == 16_507_011
    assert count_parameters(actor_critic.actor) == 1_053_702
    assert count_parameters(actor_critic.critic) == 1_181_439


# ---------------------------------------------------------------------------- networks and losses


def test_latents_have_no_batch_norm_and_heads_do_not_start_with_zeros() -> None:
    config = load_storm()
    model, actor_critic = make_world_model(config, fresh=True), make_actor_critic(config)
    for logits in (model.posterior, model.prior):
        (layer,) = logits
        assert isinstance(layer, nn.Linear)
        assert layer.bias is not None
    heads = [model.reward_head[-1], model.done_head[-1]]
    heads += [actor_critic.actor.rest[-1], actor_critic.critic.rest[-1]]
    assert all(layer.weight.abs().min() > 0 for layer in heads)
    kinds = {type(module) for module in [*model.modules(), *actor_critic.modules()]}
    assert nn.ReLU in kinds
    assert not kinds & {nn.SiLU, nn.Sigmoid, nn.BatchNorm1d}


def test_the_image_loss_is_the_plain_sum_of_squares_of_an_unbounded_output() -> None:
    codec = ImageCodec(load_storm().Models, (16, 16, 3))
    assert isinstance(codec.decoder[-1], nn.ConvTranspose2d)
    target = torch.rand(4, 3, 16, 16)
    decoded = target + 1e-4 * torch.randn(4, 3, 16, 16)  # agrees with the target at 8 bits
    expected = F.mse_loss(decoded, target, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(codec.loss(decoded, target), expected)
    assert (expected > 0).all()


def test_percentiles_are_returns_at_positions_of_the_sorted_ones() -> None:
    """Of 20 returns those at 0.05 * 20 = 1 and 0.95 * 20 = 19, counted from 0."""
    returns = torch.arange(20.0).square()[torch.randperm(20)].view(4, 5)
    scale = ReturnScale(0.05, 0.95, 0.0, "kth")
    assert scale(returns).item() == 19**2 - 1
    assert scale.percentiles.tolist() == [1, 19**2]
    assert ReturnScale(0.0, 1.0, 0.0, "kth")(returns).item() == 19**2


def make_trajectory(actor_critic: ActorCritic, count: int = 8, horizon: int = 5) -> Trajectory:
    """Random rollouts, of which some end."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, horizon)
    deter = torch.randn(count, horizon + 1, 32, generator=generator)
    latent = torch.randint(5, (count, horizon + 1, 6), generator=generator)
    action = torch.randint(ACTIONS, shape, generator=generator)
    output = actor_critic.actor(deter[:, :-1], latent[:, :-1]).detach()
    log_prob = actor_critic.policy.log_prob(output, action)
    reward = torch.randn(shape, generator=generator)
    goes_on = torch.rand(shape, generator=generator) < 0.7
    return Trajectory(deter, latent, action, log_prob, reward, 0.9 * goes_on)


def test_every_imagined_step_weighs_one() -> None:
    model = make_actor_critic(load_storm("Models.Agent={EntropyCoef: 0, SlowCritic: false}"))
    trajectory = make_trajectory(model)
    _, metrics = model.loss(trajectory)
    logits = model.critic(trajectory.deter, trajectory.latent)
    value = model.two_hot.decode(logits)
    returns = model._returns(trajectory, value)
    advantage = (returns - value[:, :-1]) / metrics["scale"]
    policy_loss = -(trajectory.log_prob * advantage).mean()
    torch.testing.assert_close(metrics["policy_loss"], policy_loss.detach(), **CLOSE)
    value_loss = model.two_hot.loss(logits[:, :-1], returns).mean()
    torch.testing.assert_close(metrics["value_loss"], value_loss.detach(), **CLOSE)
    assert (trajectory.discount[:, :-1] == 0).any()


def test_the_lambda_return_bootstraps_from_the_next_value() -> None:
    """``R_t = r_t + d_t ((1 - lambda) v_{t+1} + lambda R_{t+1})``; ``v_0`` takes no part."""
    model = make_actor_critic(load_storm())
    trajectory = make_trajectory(model)
    value = torch.randn(8, 6)
    expected, after = [], value[:, 5]
    for t in reversed(range(5)):
        bootstrap = 0.05 * value[:, t + 1] + 0.95 * after
        after = trajectory.reward[:, t] + trajectory.discount[:, t] * bootstrap
        expected.insert(0, after)
    found = model._returns(trajectory, value)
    torch.testing.assert_close(found, torch.stack(expected, 1), **CLOSE)
    value[:, 0] += 100
    assert torch.equal(model._returns(trajectory, value), found)


def test_adam_does_not_decay_and_the_slow_critic_follows_by_two_percent() -> None:
    agent = make_storm()
    for optimizer in agent.optimizers.values():
        assert [group["weight_decay"] for group in optimizer.adamw.param_groups] == [0.0]
    assert agent.actor_critic.tau == pytest.approx(1 - 0.98)


# ------------------------------------------------------------------------------ episode boundaries


@torch.no_grad()
def test_nothing_of_an_earlier_episode_is_seen() -> None:
    """Other frames and actions before an episode begins change nothing after: neither what the
    sequence model computes, nor the state that imagination starts from, nor imagined steps."""
    agent = make_storm("Models.WorldModel.Unimix=0")
    batch = Data(6, 4, ((0, 2), (1, 3), (2, 1), (3, 0), (4, 2), (5, 3))).batch(agent.config)
    before = batch.is_first.flip(1).cummax(1).values.flip(1) & ~batch.is_first  # (6, 4)
    assert before.any()
    other = replace_before(batch, before)
    rollouts = []
    for each in (batch, other):
        torch.manual_seed(1)
        rollouts.append(agent.imagine(each))
    for one, two in zip(*rollouts, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
    row = before.any(1).nonzero()[0]
    unmasked = [each._replace(is_first=torch.zeros_like(each.is_first)) for each in (batch, other)]
    states = [agent.world_model.predicted_context(each).deter[row] for each in unmasked]
    assert not torch.allclose(*states, atol=1e-2)  # without the flags it would be seen


def replace_before(batch: Batch, before: torch.Tensor) -> Batch:
    """``batch`` with other frames and actions where ``before`` (B, T) is set."""
    obs = torch.where(before[..., None, None, None], 255 - batch.obs, batch.obs)
    action = torch.where(before, (batch.action + 1) % ACTIONS, batch.action)
    return batch._replace(obs=obs, action=action)


def test_the_kl_leaves_out_pairs_that_straddle_a_boundary() -> None:
    """A pair of steps of two episodes takes no part: its prior has no gradient of the KL terms."""
    model = make_world_model(load_storm("Models.WorldModel.KLFree=0"))
    post = torch.randn(1, 4, 6, 5).log_softmax(-1)
    prior = torch.randn(1, 4, 6, 5).log_softmax(-1).requires_grad_()
    is_first = torch.tensor([[True, False, True, False]])
    dyn, _, _ = model._kl_losses(post, prior, is_first)
    dyn.backward()
    touched = prior.grad.abs().flatten(2).sum(2)[0] > 0
    assert touched.tolist() == [True, False, True, False]
