"""Configuration: files and overrides."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from pwm_core.config_file import dump_config, leaves, load_config
from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY
from tests.commands.configs import ATARI, refusal

FILES = sorted(path.name for path in (REPOSITORY / "config_files").glob("*.yaml"))

PUBLISHED = """\
Task: "JointTrainAgent"
BasicSettings:
  Seed: 0
  ObsShape: "(64, 64, 3)"
  UseAmp: True
  FrameSkip: 4
JointTrainAgent:
  SampleMaxSteps: 102000
  BufferMaxLength: 102000
  BufferWarmUp: 1024
  NumEnvs: 1
  BatchSize: 16
  BatchLength: 64
  ImagineBatchSize: 16
  ImagineContext: 64
  ImagineHorizon: 15
  TrainModelEverySteps: 1
  TrainAgentEverySteps: 1
  AgentUpdate: 1
  SaveEverySteps: 2000
  VideoLogStep: 2000
Models:
  Hidden: 512
  NumBin: 255
  MaxBin: 20
  Act: "SiLU"
  Stoch: 32
  Discrete: 32
  Gamma: 0.997
  Lambda: 0.95
  Tau: 0.01
  WorldModel:
    Stem: 32
    MinRes: 4
    DynScale: 0.5
    RepScale: 0.1
    KLFree: 1.0
    LR: 1e-4
    Eps: 1e-8
  Agent:
    EntropyCoef: 3e-4
    LR: 3e-5
    Eps: 1e-5
    MinPer: 0.05
    MaxPer: 0.95
    EMADecay: 0.99
    MinStd: 0.1
    MaxStd: 1.0
"""


# -------------------------------------------------------------------------------- valid files


@pytest.mark.parametrize("name", FILES)
def test_files_load_and_round_trip(name: str, tmp_path: Path) -> None:
    domain = name.split("_")[0].removesuffix(".yaml").replace("STORM", "atari")
    defaults = f"config_files/{domain}.yaml"
    config = load_config(f"config_files/{name}", defaults=defaults)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert dump_config(load_config(copy)) == copy.read_text()


def test_there_are_a_full_and_a_tiny_atari_file() -> None:
    assert {"atari.yaml", "atari_tiny.yaml"} <= set(FILES)


def test_discount_is_per_frame() -> None:
    assert load_config(ATARI).discount == pytest.approx(0.997**4, rel=1e-12)
    per_step = load_config(ATARI, overrides=["Models.GammaPerFrame=false"])
    assert per_step.discount == 0.997


def test_published_file_loads_unchanged(write) -> None:
    """It loads as it is, and the Atari defaults have its values."""
    assert isinstance(yaml.safe_load(PUBLISHED)["Models"]["Agent"]["LR"], str), "as YAML reads it"
    assert load_config(write(PUBLISHED), defaults=ATARI) == load_config(ATARI).model_copy(
        update={"Task": "JointTrainAgent"}
    )


def test_every_value_of_a_published_file_takes_effect(write) -> None:
    """Numbers as strings, the shape as a string, each changed from the default."""
    changed = PUBLISHED.replace("(64, 64, 3)", "(32, 32, 1)").replace("LR: 1e-4", "LR: 2e-4")
    changed = changed.replace("LR: 3e-5", "LR: 4e-5").replace("MaxBin: 20", "MaxBin: 10")
    config = load_config(write(changed), defaults=ATARI)
    assert config.BasicSettings.ObsShape == (32, 32, 1)
    assert (config.Models.WorldModel.LR, config.Models.Agent.LR) == (2e-4, 4e-5)
    assert config.Models.MaxBin == 10


def test_a_file_names_only_what_it_changes(write) -> None:
    config = load_config(write({"Models": {"WorldModel": {"LR": 5e-4}}}), defaults=ATARI)
    expected = leaves(load_config(ATARI).model_dump()) | {"Models.WorldModel.LR": 5e-4}
    assert leaves(config.model_dump()) == expected


def test_without_defaults_a_missing_key_is_named(write) -> None:
    content = yaml.safe_load((REPOSITORY / ATARI).read_text())
    del content["Models"]["WorldModel"]["Stem"]
    with pytest.raises(UserError, match=r"mine\.yaml.*Models\.WorldModel\.Stem is missing"):
        load_config(write(content))


def test_relative_paths_are_looked_up_from_here_then_from_the_root(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(ATARI).Models.Hidden == 512
    (tmp_path / "config_files").mkdir()
    write({"Models": {"Hidden": 64}}).rename(tmp_path / ATARI)
    base = REPOSITORY / ATARI
    assert load_config(ATARI, defaults=base).Models.Hidden == 64


def test_config_is_frozen() -> None:
    config = load_config(ATARI)
    with pytest.raises(pydantic.ValidationError):
        config.Models.Hidden = 1


def test_no_key_is_dead() -> None:
    """Every key is read as an attribute by something else than the validation of the config."""
    read: set[str] = set()
    checked: list[str] = []
    for path in REPOSITORY.glob("pwm_*/**/*.py"):
        tree = ast.parse(path.read_text())
        checked += [n.name for n in tree.body if getattr(n, "name", "") == "_impossible"]
        tree.body = [n for n in tree.body if getattr(n, "name", "") != "_impossible"]
        nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute))
        read |= {n.attr for n in nodes if isinstance(n.ctx, ast.Load)}
    assert checked == ["_impossible"], "the exempted function has moved"
    keys = {key.rpartition(".")[2] for key in leaves(load_config(ATARI).model_dump())}
    assert keys - read == {"Task"}  # published files have it, with one value


# ---------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("Models.Gamma=0.99", "Models.Gamma", 0.99),
        ("Models.WorldModel.LR=3e-4", "Models.WorldModel.LR", 3e-4),
        ("BasicSettings.ObsShape=(32, 32, 1)", "BasicSettings.ObsShape", (32, 32, 1)),
        ("BasicSettings.ObsShape=[32, 32, 3]", "BasicSettings.ObsShape", (32, 32, 3)),
        ("BasicSettings.UseAmp=false", "BasicSettings.UseAmp", False),
        ("BasicSettings.Protocol=standard", "BasicSettings.Protocol", "standard"),
        ("Models.WorldModel.Scan=odd_even", "Models.WorldModel.Scan", "odd_even"),
        ("Models.Agent={LR: 1e-3}", "Models.Agent.LR", 1e-3),
        (" JointTrainAgent.NumEnvs = 2", "JointTrainAgent.NumEnvs", 2),
    ],
)
def test_an_override_changes_one_key(override: str, key: str, value: Any) -> None:
    config = load_config(ATARI, overrides=[override])
    assert leaves(config.model_dump()) == leaves(load_config(ATARI).model_dump()) | {key: value}


def test_the_last_override_of_a_key_wins() -> None:
    config = load_config(ATARI, overrides=["Models.Hidden=64", "Models.Hidden=32"])
    assert config.Models.Hidden == 32


@pytest.mark.parametrize(
    "pair",
    [
        ("JointTrainAgent.ImagineContext=100", "JointTrainAgent.BatchLength=128"),
        ("Models.Agent.MinPer=0.96", "Models.Agent.MaxPer=0.99"),
        ("Models.Hidden=90", "Models.WorldModel.HeadDivisor=9"),
        ("JointTrainAgent.BufferWarmUp=32", "JointTrainAgent.BatchLength=16"),
    ],
)
def test_overrides_only_valid_together(pair: tuple[str, str]) -> None:
    extra = ("JointTrainAgent.ImagineContext=16",) if "BatchLength=16" in pair[1] else ()
    for both in (pair, pair[::-1]):
        load_config(ATARI, overrides=[*extra, *both])
    assert "impossible" in refusal(ATARI, pair[:1])
