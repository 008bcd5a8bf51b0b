"""Imagined rollouts by hand, and that imagining and acting meet the same states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.distributions import sample_index
from pwm_core.models.imagination import imagine
from tests.helpers import (
    Data,
    as_vector,
    load_small,
    make_agent,
    written_out,
)

KINDS = pytest.mark.parametrize("discrete", [True, False])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
GAMMA = 0.9


def test_gamma_is_per_frame_on_atari() -> None:
    full = "config_files/atari.yaml"
    assert load_config(full).discount == pytest.approx(0.997**4)
    assert load_config(full, overrides=["BasicSettings.FrameSkip=2"]).discount == 0.997**2
    assert load_config(full, overrides=["Models.GammaPerFrame=false"]).discount == 0.997


@KINDS
@torch.no_grad()
def test_an_imagined_rollout_follows_from_its_own_actions(discrete: bool) -> None:
    """Step h has deter from step h-1's latent and action, and latent and reward from deter."""
    config = load_small("Models.WorldModel.Unimix=0")
    agent = make_agent(config, discrete=discrete)
    model, actor_critic = agent.world_model.eval(), agent.actor_critic
    model.prior[-1].weight *= 1e4  # the prior is certain: what it draws can be predicted
    batch = Data(firsts=((0, 3), (1, 5)), discrete=discrete).batch(config)
    context = model.context(batch, 4)
    model.done_head[-1].bias -= model.done_head(context.deter).mean()
    kept = written_out(context)
    found = imagine(model, actor_critic, context, 10, GAMMA)

    count, policy = 3 * 4, actor_critic.policy
    assert [x.shape[:2] for x in found] == [*[(count, 11)] * 2, *[(count, 10)] * 4]
    state = written_out(context)
    deter, latent = context.deter, context.latent
    ends = torch.zeros(2)
    for h in range(10):
        torch.testing.assert_close(found.deter[:, h], deter, **CLOSE)
        assert torch.equal(found.latent[:, h], latent)
        output, action = actor_critic.actor(deter, as_vector(latent)), found.action[:, h]
        log_prob = policy.log_prob(output, action)
        torch.testing.assert_close(found.log_prob[:, h], log_prob, **CLOSE)
        taken = torch.eye(3)[action] if discrete else action.clamp(-1, 1)
        deter = model.sequence.step(as_vector(latent), taken, state)
        latent = model.predict_latent(deter).argmax(-1)
        reward = model.two_hot.decode(model.reward_head(deter))
        goes_on = model.done_head(deter).squeeze(-1) < 0
        torch.testing.assert_close(found.reward[:, h], reward, **CLOSE)
        torch.testing.assert_close(found.discount[:, h], GAMMA * goes_on.float())
        ends += torch.stack([goes_on.sum(), (~goes_on).sum()])
    torch.testing.assert_close(found.deter[:, 10], deter, **CLOSE)
    assert torch.equal(found.latent[:, 10], latent)
    assert ends.min() > 0  # both kinds were seen
    assert discrete or found.action.abs().max() > 1  # as drawn, so that log_prob is of what it is
    for now, before in zip(written_out(context).memories, kept.memories, strict=True):
        torch.testing.assert_close(now.memory, before.memory, rtol=0, atol=0)


@pytest.mark.parametrize(("sequences", "context", "starts"), [(8, 16, 12), (2, 3, 6), (1, 1, 1)])
def test_the_agent_imagines_from_as_many_states_as_configured(
    sequences: int, context: int, starts: int
) -> None:
    """There are 4 sequences of 4 steps, and the first step of each has no deter before it."""
    config = load_small(
        f"JointTrainAgent.ImagineBatchSize={sequences}",
        f"JointTrainAgent.ImagineContext={context}",
        "JointTrainAgent.ImagineHorizon=4",
    )
    agent = make_agent(config)
    trajectory = agent.imagine(Data(4, 4).batch(config))
    assert trajectory.reward.shape == (starts, 4)
    assert set(trajectory.discount.unique().tolist()) <= {0.0, np.float32(config.discount)}
    assert not any(field.requires_grad for field in trajectory)


@KINDS
@torch.no_grad()
def test_acting_and_imagining_meet_the_same_states(discrete: bool) -> None:
    """The states of an acting agent are the context of the replayed episode."""
    config = load_small("Models.WorldModel.Unimix=0")
    agent = make_agent(config, discrete=discrete)
    model = agent.world_model.eval()
    model.posterior[-1].weight *= 1e4  # a certain posterior: nothing is drawn
    firsts = ((0, 0), (1, 0), (2, 0), (1, 4))
    batch = Data(3, 7, firsts, discrete=discrete).batch(config)
    post = model.encode(model.codec.prepare(batch.obs.flatten(0, 1)))
    latent = sample_index(post).view(3, 7, -1)
    state, deters, actions = agent.initial_state(3), [], []
    for t in range(7):
        deter = state.deter.masked_fill(batch.is_first[:, t, None], 0.0)
        first = batch.is_first[:, t].numpy()
        action = agent.act(batch.obs[:, t].numpy(), first, state, greedy=True)
        greedy = agent.actor_critic.act(deter, latent[:, t], greedy=True).numpy()
        np.testing.assert_allclose(action, greedy, rtol=1e-4, atol=1e-5)
        deters.append(deter)
        actions.append(action)
    replayed = batch._replace(action=torch.tensor(np.stack(actions, 1)))
    context = model.context(replayed, 6)
    torch.testing.assert_close(context.deter, torch.stack(deters[1:], 1).flatten(0, 1), **CLOSE)


@pytest.fixture
def with_autocast(monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config that computes in bfloat16, also on a CPU that has to emulate it."""
    monkeypatch.setattr("pwm_core.training.agent.has_bfloat16", lambda _device: True)
    return load_small("BasicSettings.UseAmp=true")


@KINDS
def test_rollouts_and_losses_are_float32_under_autocast(
    with_autocast: Config, discrete: bool
) -> None:
    agent = make_agent(with_autocast, discrete=discrete)
    batch = Data(firsts=((0, 3),), discrete=discrete).batch(with_autocast)
    metrics = agent.train_world_model(batch)
    trajectory = agent.imagine(batch)
    metrics |= agent.train_actor_critic(trajectory)
    metrics |= {k: v for k, v in trajectory._asdict().items() if v.is_floating_point()}
    assert {k: v.dtype for k, v in metrics.items() if v.dtype != torch.float32} == {}
    assert all(torch.isfinite(value).all() for value in metrics.values())


@KINDS
def test_acting_under_autocast_keeps_its_state_in_float32(
    with_autocast: Config, discrete: bool
) -> None:
    agent = make_agent(with_autocast, discrete=discrete)
    batch = Data(discrete=discrete).batch(with_autocast)
    state = agent.initial_state(3)
    for t, first in enumerate(([1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0])):
        action = agent.act(batch.obs[:, t].numpy(), np.array(first, bool), state)
        assert action.dtype == batch.action[:, t].numpy().dtype
    for value in (state.deter, *(memory.memory for memory in state.sequence.memories)):
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
