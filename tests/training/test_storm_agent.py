"""STORM: where it imagines from and what it acts on."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.models.distributions import sample_index
from pwm_core.training import replay_buffer
from pwm_core.training.agent import Agent
from pwm_core.training.storm import StormAgent
from tests.helpers import ACTIONS, Data, make_agent
from tests.training.storm_agents import load_storm, make_replay, make_storm

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


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
