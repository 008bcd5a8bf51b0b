"""Observations that are scaled by what was seen in training (``ObsNorm: running``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pwm_core.models.types import Batch
from pwm_core.models.world_model import WorldModel
from pwm_core.training import methods
from pwm_core.training.agent import Agent
from pwm_dmc.world_model import VectorCodec
from tests.helpers import Data, load_small, make_actor_critic, make_policy

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIZE = 4
"""Entries of an observation."""


def make_vector_agent(mode: str = "running") -> Agent:
    """An agent whose observations are vectors."""
    config = load_small(f"Models.WorldModel.ObsNorm={mode}")
    torch.manual_seed(0)
    model = WorldModel(config.Models, VectorCodec(config.Models, SIZE), make_policy(config))
    return methods.make_agent(config, model, make_actor_critic(config), torch.device("cpu"))


def vectors(agent: Agent, seed: int = 0) -> Batch:
    """A batch of vectors whose entries have very different sizes."""
    batch = Data(rows=4, steps=9, seed=seed).batch(agent.config)
    obs = torch.randn(4, 9, SIZE) * torch.tensor([0.1, 1.0, 5.0, 100.0]) + 7
    return batch._replace(obs=obs)


def statistics(agent: Agent) -> dict[str, Tensor]:
    """Copies of what scales the observations, as a checkpoint holds it."""
    state = agent.world_model.state_dict()
    return {k: v.clone() for k, v in state.items() if k.startswith("standardise.")}


def test_observations_are_scaled_by_all_batches_seen_in_training() -> None:
    codec = VectorCodec(load_small("Models.WorldModel.ObsNorm=running").Models, 3)
    torch.manual_seed(0)
    batches = torch.randn(4, 50, 3) * torch.tensor([0.1, 1.0, 30.0])
    batches += torch.tensor([100.0, -3.0, 0.0]) + torch.arange(4).view(4, 1, 1)  # means move, too
    for batch in batches:
        found = codec.prepare(batch)
    seen = batches.flatten(0, 1).double()
    mean, spread = seen.mean(0), seen.std(0, unbiased=False)
    expected = (batches[-1] - mean) / spread
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-3)
    codec.standardise.eval()
    others = torch.randn(5, 3)
    torch.testing.assert_close(
        codec.prepare(others), ((others - mean) / spread).clamp(-10, 10).float(), **CLOSE
    )
    assert codec.standardise.batches == 4, "in eval mode nothing is counted"


def test_an_observation_that_hardly_changes_stays_bounded() -> None:
    codec = VectorCodec(load_small("Models.WorldModel.ObsNorm=running").Models, 2)
    codec.prepare(torch.tensor([[5.0, 1.0], [5.0, 1.001]]))
    codec.standardise.eval()
    found = codec.prepare(torch.tensor([[5.01, 1.0], [1e6, -1e6]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.05], [10, -10]]), rtol=0.01, atol=0)


def test_only_small_entries_may_be_scaled() -> None:
    torch.manual_seed(0)
    batch = torch.randn(5000, 3) * torch.tensor([0.1, 1.0, 30.0]) + 4
    batch[0] = 1e6  # is clipped to ten standard deviations, whether it is divided or not
    found = {}
    for mode in ("running", "small"):
        codec = VectorCodec(load_small(f"Models.WorldModel.ObsNorm={mode}").Models, 3)
        codec.prepare(batch[1:])
        codec.standardise.eval()
        found[mode] = codec.prepare(batch)
    spread = batch[1:].std(0, unbiased=False)
    expected = found["running"] * spread.clamp_min(1)
    torch.testing.assert_close(found["small"], expected, **CLOSE)
    assert spread[2] == pytest.approx(30, rel=0.05)
    torch.testing.assert_close(found["running"][0], torch.full((3,), 10.0), **CLOSE)


def test_observations_are_taken_as_they_are_by_default() -> None:
    codec = VectorCodec(load_small().Models, 2)
    obs = torch.tensor([[5.0, -100.0]], dtype=torch.float64)
    torch.testing.assert_close(codec.prepare(obs), obs.float())
    assert codec.standardise is None


def test_only_updates_of_the_world_model_count_observations() -> None:
    agent = make_vector_agent()
    batch = vectors(agent)
    agent.train_world_model(batch)
    before = statistics(agent)
    assert before["standardise.batches"] == 1
    agent.train_actor_critic(agent.imagine(batch))
    agent.act(np.ones((2, SIZE), np.float32), np.array([True, False]), agent.initial_state(2))
    after = statistics(agent)
    assert all(torch.equal(before[name], after[name]) for name in before)
    agent.train_world_model(vectors(agent, 1))
    assert statistics(agent)["standardise.batches"] == 2


def test_an_update_that_is_skipped_counts_no_observations() -> None:
    agent = make_vector_agent()
    batch = vectors(agent)
    agent.train_world_model(batch)
    before = statistics(agent)
    batch.obs[0, 0, 0] = torch.inf
    agent.train_world_model(batch)
    assert agent.skipped()["WorldModel/skipped_updates"] == 1
    after = statistics(agent)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_agent_scales_observations_as_the_saved_one() -> None:
    agent, other = make_vector_agent(), make_vector_agent()
    batch = vectors(agent)
    agent.train_world_model(batch)
    other.load_weights(agent.weights())
    rows = batch.obs.flatten(0, 1)
    found = []
    for one in (agent, other):
        one.world_model.eval()
        found.append(one.world_model.codec.prepare(rows))
    assert torch.equal(*found)
    assert found[0].std(0) == pytest.approx(np.ones(SIZE), rel=0.05)


def test_the_key_changes_no_weight_and_no_state_where_it_is_off() -> None:
    plain, scaled = make_vector_agent("none"), make_vector_agent()
    states = [agent.world_model.state_dict() for agent in (plain, scaled)]
    assert set(states[1]) - set(states[0]) == set(statistics(scaled))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
