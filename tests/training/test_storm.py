"""STORM: its size, its losses, where it imagines from and what it acts on."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwm_atari.actor_critic import CategoricalPolicy
from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.actor_critic import ActorCritic, ReturnScale
from pwm_core.models.distributions import sample_index
from pwm_core.models.networks import ImageCodec
from pwm_core.models.types import Batch, Trajectory
from pwm_core.models.world_model import WorldModel
from pwm_core.training import replay_buffer
from pwm_core.training.agent import Agent
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec
from pwm_core.training.storm import StormAgent
from tests.helpers import (
    ACTIONS,
    Data,
    count_parameters,
    make_actor_critic,
    make_agent,
    make_world_model,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SMALL = (
    "BasicSettings.ObsShape=[16, 16, 3]",
    "JointTrainAgent={BatchSize: 3, BatchLength: 7, ImagineBatchSize: 6, ImagineHorizon: 5}",
    "JointTrainAgent={ImagineContextLength: 4, DemonstrationBatchSize: 2}",
    "JointTrainAgent.ImagineDemonstrationBatchSize=3",
    "Models={Hidden: 32, Stoch: 6, Discrete: 5, NumBin: 41}",
    "Models.WorldModel={Stem: 4, TransformerNumHeads: 4}",
)


def load_storm(*overrides: str) -> Config:
    """STORM's config at sizes that take milliseconds; ``overrides`` come last."""
    return load_config(
        "config_files/STORM_tiny.yaml",
        defaults="config_files/atari.yaml",
        overrides=[*SMALL, *overrides],
    )


def make_storm(*overrides: str) -> StormAgent:
    """A small agent with noise on its parameters, in eval mode."""
    agent = make_agent(load_storm(*overrides))
    assert isinstance(agent, StormAgent)
    agent.world_model.eval()
    return agent


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


# ------------------------------------------------------------------------------------ imagination


def make_replay(
    rows: int = 1, steps: int = 60, every: int = 7, value: int = 0, device: str = "cpu"
) -> ReplayBuffer:
    """A replay whose episodes have ``every`` steps; the reward is the number of the step."""
    spec = TransitionSpec(Field((16, 16, 3), torch.uint8), Field((), torch.int64))
    replay = ReplayBuffer(spec, rows, rows * steps, torch.device(device), storage="device")
    batch = Data(rows, steps, tuple((r, t) for r in range(rows) for t in range(0, steps, every)))
    fields = batch.batch(load_storm())._asdict()
    fields["reward"] = torch.arange(steps, dtype=torch.float32).expand(rows, -1) + value
    replay.write(0, fields)
    return replay


def test_a_context_is_followed_by_a_step_of_the_same_episode() -> None:
    """Contexts reach every step but an episode's last, across the end of the ring too."""
    replay = make_replay()
    extra = make_replay(steps=20, value=60).read(0, 20)
    replay.write(60, {**extra, "is_first": torch.arange(60, 80)[None] % 7 == 0})
    torch.manual_seed(0)
    contexts = replay.sample_contexts(4000, 4)
    step = contexts.reward.long()  # the ring holds the steps 20 to 79
    assert (step.diff(dim=1) == 1).all()
    ends = set(step[:, -1].tolist())
    assert ends == {t for t in range(23, 80) if (t + 1) % 7} - {79}
    moved = step[:, -1] % 7 == 0
    shares = [(step[:, -1] == t).float().mean().item() for t in (28, 30)]
    assert shares[0] == pytest.approx(2 * shares[1], rel=0.4)  # an episode's first step
    assert moved.any()


@pytest.mark.parametrize("sequence_model", ["attention", "linear_attention"])
@torch.no_grad()
def test_imagination_starts_after_the_context_with_what_the_prior_predicts(
    sequence_model: str,
) -> None:
    """Its steps are those of the parallel pass over the context and the imagined steps."""
    agent = make_storm(f"Models.WorldModel={{Unimix: 0, SequenceModel: {sequence_model}}}")
    model = agent.world_model
    for logits in (model.posterior, model.prior):  # certain: what is drawn can be predicted
        logits[-1].weight *= 1e4
        logits[-1].bias *= 1e4
    batch = Data(6, 4, ((1, 2), (4, 0))).batch(agent.config)
    found = agent.imagine(batch)
    assert found.reward.shape == (6, 5)
    latent = sample_index(model.encode(model.codec.prepare(batch.obs.flatten(0, 1))))
    latent = torch.cat([latent.view(6, 4, -1), found.latent], dim=1)[:, :-1]  # (6, 9, S)
    action = torch.cat([batch.action, found.action], dim=1)
    is_first = F.pad(batch.is_first, (0, 5))
    deter, _ = model.sequence(latent, model.policy.encode(action), is_first)
    torch.testing.assert_close(found.deter, deter[:, 3:], **CLOSE)
    predicted = model.predict_latent(found.deter.flatten(0, 1)).argmax(-1)
    assert torch.equal(found.latent.flatten(0, 1), predicted)


def test_an_update_draws_contexts_apart_and_adds_demonstrations() -> None:
    agent, replay = make_storm(), make_replay()
    batch, contexts = agent.draw(replay)
    assert batch.reward.shape == (3, 7)
    assert contexts.reward.shape == (6, 4)
    recorded = make_replay(steps=30, value=1000)
    batch, contexts = agent.draw(replay, recorded)
    assert (batch.reward[:, 0] >= 1000).tolist() == [False] * 3 + [True] * 2
    assert (contexts.reward[:, 0] >= 1000).tolist() == [False] * 6 + [True] * 3
    metrics = agent.training_step(replay, recorded)(world_model=True, actor_critic=True)
    assert all(torch.isfinite(value).all() for value in metrics.values())
    pamorl = make_agent(load_storm("Models.Method=pamorl", "JointTrainAgent.ImagineBatchSize=3"))
    assert type(pamorl) is Agent
    (batch,) = pamorl.draw(replay, recorded)
    assert batch.reward.shape == (5, 7)


# ----------------------------------------------------------------------------------------- acting


def act(agent: StormAgent, obs: torch.Tensor, firsts: list[bool], seed: int = 0) -> np.ndarray:
    """Greedy actions (T, N) on frames (N, T, ...)."""
    torch.manual_seed(seed)
    state, actions = agent.initial_state(len(obs)), []
    for t, first in enumerate(firsts):
        is_first = np.full(len(obs), first)
        actions.append(agent.act(obs[:, t].numpy(), is_first, state, greedy=True))
    return np.stack(actions)


@torch.no_grad()
def sharp_storm() -> StormAgent:
    """An agent whose latents are certain. They and its greedy actions differ between frames."""
    agent = make_storm("Models.WorldModel.Unimix=0")
    model, batch = agent.world_model, Data(50, 4).batch(agent.config)

    def centre(layer: nn.Linear, outputs: torch.Tensor, scale: float) -> None:
        """Let no output be larger than the others in all states."""
        layer.bias -= outputs.mean(0)
        layer.weight *= scale
        layer.bias *= scale

    features = model.encoder(model.codec.prepare(batch.obs.flatten(0, 1)))
    centre(model.posterior[-1], model.posterior(features), 1e4)
    state = model.predicted_context(batch)
    centre(model.prior[-1], model.prior(state.deter), 1e4)
    state = model.predicted_context(batch)
    actor = agent.actor_critic.actor
    centre(actor.rest[-1], actor(state.deter, state.latent), 1.0)
    return agent


def test_the_agent_acts_on_the_predicted_frame_not_on_the_one_it_sees() -> None:
    """Another frame changes no action of its own step, but actions of later steps."""
    agent = sharp_storm()
    obs = Data(200, 4).batch(agent.config).obs
    firsts = [True, False, False, False]
    other = obs.clone()
    other[:, 2] = 0
    one, two = act(agent, obs, firsts), act(agent, other, firsts)
    np.testing.assert_array_equal(one[:3], two[:3])
    assert (one[3] != two[3]).any()


def test_the_first_action_of_an_episode_is_random_also_when_greedy() -> None:
    agent = sharp_storm()
    obs = Data(3000, 2).batch(agent.config).obs
    actions = act(agent, obs, [True, True])
    for taken in actions:
        share = np.bincount(taken, minlength=ACTIONS) / len(taken)
        np.testing.assert_allclose(share, 1 / ACTIONS, atol=0.05)
    assert (act(agent, obs, [True, True], seed=1) != actions).any()
    begun = act(agent, obs[:1].expand(3000, -1, -1, -1, -1), [True, False])[1]
    assert len(set(begun)) <= ACTIONS
    later = [act(agent, obs[:50], [True, False], seed)[1] for seed in (2, 2)]
    np.testing.assert_array_equal(*later)


@torch.no_grad()
def test_acting_and_imagining_meet_the_same_states() -> None:
    """The state that an agent acts from is the start of imagination after the same steps."""
    agent = sharp_storm()
    model = agent.world_model
    batch = Data(3, 4, ((0, 0), (1, 0), (2, 0), (1, 2))).batch(agent.config)
    state, actions = agent.initial_state(3), []
    for t in range(4):
        first = batch.is_first[:, t].numpy()
        actions.append(agent.act(batch.obs[:, t].numpy(), first, state))
    replayed = batch._replace(action=torch.tensor(np.stack(actions, 1)))
    torch.testing.assert_close(state.deter, model.predicted_context(replayed).deter, **CLOSE)


@pytest.mark.parametrize("file", ["STORM.yaml", "STORM_tiny.yaml"])
@torch.no_grad()
def test_imagining_and_acting_meet_no_position_that_is_never_trained(file: str) -> None:
    """The rows of the table of positions beyond BatchLength keep their random start."""
    config = load_config(f"config_files/{file}", defaults="config_files/atari.yaml")
    settings = config.JointTrainAgent
    storm = load_storm(
        f"JointTrainAgent.BatchLength={settings.BatchLength}",
        f"JointTrainAgent.ImagineHorizon={settings.ImagineHorizon}",
        f"JointTrainAgent.ImagineContextLength={settings.ImagineContext}",
        f"Models.WorldModel.ActingWindow={config.Models.WorldModel.ActingWindow}",
    )
    agent = make_agent(storm)
    agent.world_model.sequence.position.weight[settings.BatchLength :] = torch.nan
    trajectory = agent.imagine(Data(2, settings.ImagineContext).batch(storm))
    assert trajectory.deter.isfinite().all()
    obs = Data(2, 2 * storm.Models.WorldModel.ActingWindow).batch(storm).obs
    state = agent.initial_state(2)
    for t in range(obs.shape[1]):
        agent.act(obs[:, t].numpy(), np.full(2, t == 0), state)
    assert state.deter.isfinite().all()


def test_a_trajectory_of_two_batches_keeps_their_dtypes() -> None:
    """Concatenated batches are copied into a CUDA graph's tensors, so dtypes must not change."""
    agent = make_storm()
    batches = agent.draw(make_replay(), make_replay(steps=30))
    alone = agent.draw(make_replay())
    for one, two in zip(batches, alone, strict=True):
        assert [x.dtype for x in one] == [x.dtype for x in two]


def test_storm_is_a_config_of_the_same_agent() -> None:
    """Without ``Method: storm`` the same networks train as PaMoRL does, and act on what they
    see."""
    config = load_storm("JointTrainAgent.ImagineBatchSize=3")
    models = config.Models.model_copy(update={"Method": "pamorl"})
    agent = make_agent(replace_models(config, models))
    metrics = agent.training_step(make_replay())(world_model=True, actor_critic=True)
    assert all(torch.isfinite(value).all() for value in metrics.values())


def replace_models(config: Config, models: object) -> Config:
    return config.model_copy(update={"Models": models})


def test_a_step_and_an_action_never_ask_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, reading a value or mixing in a CPU tensor raises an error."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(replay_buffer, "free_bytes", lambda device: 10**12)
    meta, agent = torch.device("meta"), make_storm()
    agent.world_model.to(meta)
    agent.actor_critic.to(meta)
    agent.device = meta
    batches = agent.draw(make_replay(device="meta"), make_replay(steps=30, device="meta"))
    loss, metrics = agent.world_model.train().loss(batches[0])
    loss.backward()
    loss, more = agent.actor_critic.loss(agent.imagine(*batches))
    loss.backward()
    agent.actor_critic.update_slow_critic()
    assert {value.device for value in (metrics | more).values()} == {meta}
    state, first = agent.initial_state(3), torch.ones(3, dtype=torch.bool, device=meta)
    assert agent._act(batches[0].obs[:3, 0], first, state, False).device == meta
