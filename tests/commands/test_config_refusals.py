"""Every kind of bad config file, key, value and override is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pwm_core.config_file import load_config
from tests.commands.configs import ATARI, nested, refusal
from tests.helpers_processes import no_longer_than

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
