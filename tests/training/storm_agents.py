"""Small STORM agents and replays for the tests."""

from __future__ import annotations

import torch

from pwm_core.config import Config
from pwm_core.config_file import load_config
from pwm_core.training.replay_buffer import Field, ReplayBuffer, TransitionSpec
from pwm_core.training.storm import StormAgent
from tests.helpers import Data, make_agent

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
