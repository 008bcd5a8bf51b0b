"""What a checkpoint holds is enough to go on training as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import torch

from pwm_core.config_file import load_config
from pwm_core.runs.tensor_files import write_tensors
from pwm_core.training.agent import Agent
from tests.helpers import Data, make_agent

CONFIG = load_config("config_files/atari_tiny.yaml", defaults="config_files/atari.yaml")


def update(agent: Agent, data: Data) -> dict[str, torch.Tensor]:
    """One whole training step from a fixed random state; the weights after it."""
    torch.manual_seed(7)
    batch = data.batch(CONFIG)
    agent.train_world_model(batch)
    agent.train_actor_critic(agent.imagine(batch))
    return {
        f"{part}.{name}": value.clone()
        for part in ("world_model", "actor_critic")
        for name, value in getattr(agent, part).state_dict().items()
    }


def test_an_agent_goes_on_from_its_state(tmp_path: Path) -> None:
    data = Data(discrete=True)
    trained = make_agent(CONFIG, discrete=True)
    update(trained, data)
    write_tensors(tmp_path / "state.pt", trained.state_dict())

    torch.manual_seed(1)
    restored = make_agent(CONFIG, discrete=True)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected, found = update(trained, data), update(restored, data)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    # Weights alone are not enough: the optimisers' moments matter.
    forgetful = make_agent(CONFIG, discrete=True)
    forgetful.load_weights(torch.load(tmp_path / "state.pt", weights_only=True))
    found = update(forgetful, data)
    assert not all(torch.equal(expected[name], found[name]) for name in expected)
