"""Configuration: files, overrides and every kind of bad input."""

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
from tests.helpers_processes import no_longer_than

ATARI = "config_files/atari.yaml"
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


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def refusal(path: str | Path, overrides: tuple[str, ...] = ()) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, defaults=ATARI, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.fixture
def write(tmp_path: Path):
    """Write a config file named ``mine.yaml``; text as it is, anything else as YAML."""

    def _write(content: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return _write


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


# ---------------------------------------------------------------------------------- bad input

UNKNOWN = {  # key -> the nearest valid one, or one of the section's where nothing is near
    "Modells": "Models",
    "basicSettings": "BasicSettings",
    "BasicSettings.Sead": "Seed",
    "BasicSettings.seed": "Seed",
    "JointTrainAgent.BatchSise": "BatchSize",
    "JointTrainAgent.ImagineHorizont": "ImagineHorizon",
    "Models.gama": "Gamma",
    "Models.WorldModel.Stm": "Stem",
    "Models.WorldModel.LearningRate": "LR",
    "Models.Agent.EntropyCoeff": "EntropyCoef",
    "Models.Agent.xyz": "EntropyCoef",
    "Gamma": "did you mean Models.Gamma?",
    "Models.LR": "did you mean Models.WorldModel.LR or Models.Agent.LR?",
}
WRONG_TYPE = [
    ("BasicSettings.Seed", "one"),
    ("BasicSettings.Seed", 1.5),
    ("BasicSettings.Seed", None),
    ("BasicSettings.Seed", True),
    ("BasicSettings.UseAmp", "perhaps"),
    ("BasicSettings.ObsShape", "64x64"),
    ("BasicSettings.ObsShape", [64, 64]),
    ("BasicSettings.ObsShape", "(64, 64)"),
    ("BasicSettings.ObsShape", 64),
    ("JointTrainAgent.BatchSize", "sixteen"),
    ("JointTrainAgent.BatchSize", [16]),
    ("Models.Gamma", "high"),
    ("Models.Gamma", {"x": 1}),
    ("Models.MaxBin", True),
    ("Models.WorldModel.LR", "1e-"),
    ("Models.WorldModel", 3),
    ("Models.Agent", None),
    ("Models", ["Hidden"]),
]
IMPOSSIBLE = [
    ("BasicSettings.Seed", -1),
    ("BasicSettings.Seed", 2**32),
    ("BasicSettings.ObsShape", [64, 32, 3]),
    ("BasicSettings.ObsShape", [64, 64, 2]),
    ("BasicSettings.ObsShape", [0, 0, 3]),
    ("BasicSettings.ObsType", "sound"),
    ("BasicSettings.FrameSkip", 1000),
    ("JointTrainAgent.BatchSize", 0),
    ("JointTrainAgent.BatchLength", 1),
    ("JointTrainAgent.ImagineBatchSize", 17),
    ("JointTrainAgent.ImagineContext", 65),
    ("JointTrainAgent.BufferWarmUp", 63),
    ("JointTrainAgent.BufferMaxLength", 63),
    ("JointTrainAgent.BufferStorage", "tape"),
    ("Models.Gamma", 1),
    ("Models.Gamma", 0),
    ("Models.Gamma", float("nan")),
    ("Models.Lambda", 1.01),
    ("Models.Lambda", float("nan")),
    ("Models.Tau", -0.1),
    ("Models.Act", "Silu"),
    ("Models.NumBin", 1),
    ("Models.MaxBin", float("inf")),
    ("Models.WorldModel.LR", 0),
    ("Models.WorldModel.LR", float("inf")),
    ("Models.WorldModel.KLFree", float("nan")),
    ("Models.WorldModel.MinRes", 3),
    ("Models.WorldModel.MinRes", 64),
    ("Models.WorldModel.HeadDivisor", 7),
    ("Models.WorldModel.Scan", "parallel"),
    ("Models.WorldModel.Dropout", 1.0),
    ("Models.Agent.MinPer", 0.95),
    ("Models.Agent.MinStd", 2.0),
    ("Models.Agent.Returns", "td"),
]


@pytest.mark.parametrize(("key", "near"), UNKNOWN.items())
def test_unknown_key(key: str, near: str, write) -> None:
    for message in (refusal(write(nested(key, 1))), refusal(ATARI, (f"{key}=1",))):
        assert f"unknown key {key}" in message
        assert near in message.split(f"unknown key {key}")[1]
    assert "mine.yaml" in refusal(write(nested(key, 1)))
    assert f"-set {key}=1" in refusal(ATARI, (f"{key}=1",))


@pytest.mark.parametrize(("key", "value"), [*WRONG_TYPE, *IMPOSSIBLE])
def test_wrong_type_and_impossible_value(key: str, value: Any, write) -> None:
    message = refusal(write(nested(key, value)))
    assert "mine.yaml" in message
    assert key in message
    assert "must" in message or "should" in message or "needed" in message, "says what is valid"


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("Models.Act", "Silu", "'SiLU'"),
        ("Models.WorldModel.Scan", "fast", "'chunked'"),
        ("JointTrainAgent.BatchSize", 0, "greater than or equal to 1"),
        ("JointTrainAgent.ImagineContext", 65, "at most BatchLength = 64"),
        ("JointTrainAgent.BufferWarmUp", 63, "at least BatchLength x NumEnvs = 64"),
        ("Models.WorldModel.HeadDivisor", 7, "divide Models.Hidden = 512"),
        ("Models.Agent.MinPer", 0.95, "below MaxPer = 0.95"),
    ],
)
def test_refusal_says_what_is_valid(key: str, value: Any, valid: str, write) -> None:
    assert valid in refusal(write(nested(key, value)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Models: {Hidden: 512", "is not valid YAML"),
        ("Models:\n\t- Hidden", "is not valid YAML"),
        ("a: &a [*a]\nb: *c", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("", "holds no sections"),
        ("Hidden", "holds no sections"),
        ("- Models", "holds no sections"),
        ("1: 2", "1"),
    ],
)
def test_not_a_config(text: str, says: str, write) -> None:
    message = refusal(write(text))
    assert "mine.yaml" in message
    assert says in message


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize("text", [BOMB, "Models: &a {Models: *a}"], ids=["nested", "circular"])
def test_aliases_that_stand_for_too_much(text: str, write) -> None:
    """Written out they are 10^11 values; a message with them would take minutes."""
    with no_longer_than(5):
        assert "aliases stand for more than 10000 values" in refusal(write(text))
        override = "Models.Gamma={" + text.replace("\n", ", ") + "}"
        assert "not valid YAML" in refusal(ATARI, (override,))


def test_a_few_aliases_are_welcome(write) -> None:
    config = load_config(write("Models: {Hidden: &h 64, NumBin: *h}"), defaults=ATARI)
    assert (config.Models.Hidden, config.Models.NumBin) == (64, 64)


def test_a_large_file_is_not_read(write) -> None:
    assert "larger than 1 MB" in refusal(write("# x" * 400_000))


def test_binary_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "image.yaml").write_bytes(bytes(range(256)))
    assert "image.yaml is not valid YAML" in refusal(tmp_path / "image.yaml")
    assert str(tmp_path) in refusal(tmp_path)


def test_missing_file_names_the_files_there_are() -> None:
    message = refusal("config_files/atary.yaml")
    assert "config_files/atary.yaml does not exist" in message
    assert ATARI in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("Models.Gamma", "write Section.Key=value"),
        ("=3", "write Section.Key=value"),
        ("Models.Gamma=[1", "not valid YAML"),
        ("Models.Gamma=", "Models.Gamma"),
        ("Models.Gamma=2", "Models.Gamma = 2"),
        ("Models.Gamma.x=2", "Models.Gamma"),
        ("Gamma=0.9", "unknown key Gamma"),
        ("Models..Gamma=0.9", "unknown key"),
    ],
)
def test_bad_override_is_named(override: str, says: str) -> None:
    message = refusal(ATARI, (override,))
    assert f"-set {override}" in message
    assert says in message


def test_impossible_override_names_the_override() -> None:
    assert "-set" in refusal(ATARI, ("JointTrainAgent.ImagineContext=65",))
