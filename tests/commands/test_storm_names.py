"""Config files with STORM's own key names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pwm_core.config import Config
from pwm_core.config_file import dump_config, leaves, load_config
from pwm_core.errors import UserError

ATARI = "config_files/atari.yaml"
STORM = "config_files/STORM.yaml"

OWN = """\
Task: "JointTrainAgent"
BasicSettings:
  Seed: 0
  ImageSize: 64
  ReplayBufferOnGPU: True
JointTrainAgent:
  SampleMaxSteps: 102000
  BufferMaxLength: 100000
  BufferWarmUp: 1024
  NumEnvs: 1
  BatchSize: 16
  DemonstrationBatchSize: 4
  BatchLength: 64
  ImagineBatchSize: 1024
  ImagineDemonstrationBatchSize: 256
  ImagineContextLength: 8
  ImagineBatchLength: 16
  TrainDynamicsEverySteps: 1
  TrainAgentEverySteps: 1
  UseDemonstration: False
  SaveEverySteps: 2500
Models:
  WorldModel:
    InChannels: 3
    TransformerMaxLength: 64
    TransformerHiddenDim: 512
    TransformerNumLayers: 2
    TransformerNumHeads: 8
  Agent:
    NumLayers: 2
    HiddenDim: 512
    Gamma: 0.985
    Lambda: 0.95
    EntropyCoef: 3E-4
"""
"""A file as STORM's users have it, with no key of ours."""


def load(path: str | Path, *overrides: str) -> Config:
    return load_config(path, defaults=ATARI, overrides=overrides)


def changed(tmp_path: Path, **values: Any) -> Path:
    """STORM's own file with other values: ``Section__Key=value``; None removes a key."""
    content = yaml.safe_load(OWN)
    for name, value in values.items():
        *sections, last = name.split("__")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
        if value is None:
            del section[last]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_of_storms_loads_unchanged_as_our_storm(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    assert load(path) == load(STORM)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(load(path)))
    assert load(copy) == load(STORM), "a run's resolved config is in our names"


def test_storm_has_the_values_of_its_paper_and_code() -> None:
    found = leaves(load(STORM).model_dump())
    expected = {
        "BasicSettings.ObsShape": (64, 64, 3),
        "BasicSettings.Protocol": "pamorl",
        "BasicSettings.FrameSkip": 4,
        "BasicSettings.UseAmp": True,
        "JointTrainAgent.BufferMaxLength": 100_000,
        "JointTrainAgent.BufferStorage": "device",
        "JointTrainAgent.ImagineBatchSize": 1024,
        "JointTrainAgent.ImagineContext": 8,
        "JointTrainAgent.ImagineHorizon": 16,
        "JointTrainAgent.ImagineDemonstrationBatchSize": 256,
        "JointTrainAgent.EvalEpisodes": 20,
        "Models.Method": "storm",
        "Models.Hidden": 512,
        "Models.Act": "ReLU",
        "Models.ZeroHeads": False,
        "Models.Tau": 0.02,
        "Models.WorldModel.SequenceModel": "attention",
        "Models.WorldModel.Positions": 64,
        "Models.WorldModel.Heads": 8,
        "Models.WorldModel.ActingWindow": 16,
        "Models.WorldModel.ImagineWindow": 8,
        "Models.WorldModel.OutputTanh": False,
        "Models.WorldModel.Unimix": 0.01,
        "Models.WorldModel.KLFree": 1.0,
        "Models.WorldModel.LR": 1e-4,
        "Models.WorldModel.WeightDecay": 0.0,
        "Models.WorldModel.GradClip": 1000,
        "Models.Agent.SlowCritic": True,
        "Models.Agent.StepWeight": "one",
        "Models.Agent.Percentile": "kth",
        "Models.Agent.EMADecay": 0.99,
        "Models.Agent.WeightDecay": 0.0,
        "Models.Agent.LR": 3e-5,
        "Models.Agent.Eps": 1e-5,
        "Models.Agent.GradClip": 100,
    }
    assert {key: found[key] for key in expected} == expected
    assert load(STORM).discount == 0.985


def test_storm_is_the_same_over_the_full_config_of_any_domain() -> None:
    """What differs belongs to linear attention, which STORM does not have."""
    atari, dmc = (
        leaves(load_config(STORM, defaults=f"config_files/{name}.yaml").Models.model_dump())
        for name in ("atari", "dmc")
    )
    differing = {key for key in atari if atari[key] != dmc[key]}
    assert differing == {"WorldModel.HeadDivisor", "WorldModel.RMSNorm"}


def test_a_change_lies_over_storm_and_so_does_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("Models: {WorldModel: {TransformerNumLayers: 3}}\n")
    config = load(path, "JointTrainAgent.ImagineContextLength=5")
    assert config.Models.WorldModel.Blocks == 3
    assert (config.JointTrainAgent.ImagineContext, config.Models.WorldModel.ImagineWindow) == (5, 5)
    assert config.Models.Method == "storm"
    layered = load(f"{STORM},{path}")
    assert layered.Models == load(path).Models
    path.write_text("Models: {WorldModel: {Blocks: 3}}\n")
    assert load(path).Models.Method == "pamorl", "our own names alone lie over our own config"
    assert load(f"{STORM},{path}").Models == layered.Models


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"BasicSettings__ImageSize": "big"}, "BasicSettings.ImageSize = 'big' is not valid"),
    ({"BasicSettings__ImageSize": 60}, "image height 60"),
    ({"BasicSettings__ReplayBufferOnGPU": "maybe"}, "ReplayBufferOnGPU = 'maybe' is not valid"),
    ({"Models__WorldModel__InChannels": 2}, "Models.WorldModel.InChannels = 2 is not valid"),
    (
        {"Models__WorldModel__TransformerNumLayers": 0},
        "Models.WorldModel.TransformerNumLayers = 0 is not valid",
    ),
    ({"Models__WorldModel__TransformerNumHeads": 7}, "Models.WorldModel.Heads"),
    ({"Models__WorldModel__TransformerMaxLength": 32}, "Models.WorldModel.Positions"),
    ({"Models__Agent__HiddenDim": 256}, "equal to it"),
    ({"JointTrainAgent__ImagineContextLength": 60}, "ImagineWindow = 60 is impossible"),
    ({"Models__Agent__Gamma": 2}, "Models.Agent.Gamma = 2 is not valid"),
    ({"Models__Gamma": 0.9}, "two names of one key"),
    ({"Models__WorldModel__TransformerHidenDim": 5}, "unknown key"),
    ({"JointTrainAgent__ImagineContextLength": None, "Models__Agent": 5}, "Models.Agent"),
]


@pytest.mark.parametrize(("values", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_bad_value_is_named_as_it_was_written(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = changed(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert says in message
    assert str(path) in message
    assert "\n" not in message


def test_a_context_and_the_step_after_it_must_fit_into_the_warm_up() -> None:
    assert load(STORM, "JointTrainAgent.ImagineContext=63").JointTrainAgent.ImagineContext == 63
    with pytest.raises(UserError, match="it must be below BatchLength = 64"):
        load(STORM, "JointTrainAgent.ImagineContext=64")
