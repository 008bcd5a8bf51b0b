"""The key names of STORM's own config files, and the keys of this project that they stand for.

A file that was written for STORM loads unchanged. This is the one place that knows its names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pwm_core.errors import UserError

BASE = "config_files/STORM.yaml"
"""What STORM computes. A file with a name of STORM's is laid over this one."""

SIMPLE: dict[str, tuple[str, ...]] = {
    "JointTrainAgent.ImagineContextLength": (
        "JointTrainAgent.ImagineContext",
        "Models.WorldModel.ImagineWindow",
    ),
    "JointTrainAgent.ImagineBatchLength": ("JointTrainAgent.ImagineHorizon",),
    "JointTrainAgent.TrainDynamicsEverySteps": ("JointTrainAgent.TrainModelEverySteps",),
    "Models.WorldModel.TransformerMaxLength": ("Models.WorldModel.Positions",),
    "Models.WorldModel.TransformerHiddenDim": ("Models.Hidden",),
    "Models.WorldModel.TransformerNumLayers": ("Models.WorldModel.Blocks",),
    "Models.WorldModel.TransformerNumHeads": ("Models.WorldModel.Heads",),
    "Models.Agent.NumLayers": ("Models.Agent.Layers",),
    "Models.Agent.Gamma": ("Models.Gamma",),
    "Models.Agent.Lambda": ("Models.Lambda",),
}
"""STORM's names whose value is that of one or two keys of ours."""
SIZE, CHANNELS = "BasicSettings.ImageSize", "Models.WorldModel.InChannels"
ON_GPU, WIDTH = "BasicSettings.ReplayBufferOnGPU", "Models.Agent.HiddenDim"
MODEL_WIDTH = "Models.WorldModel.TransformerHiddenDim"
NAMES = frozenset({*SIMPLE, SIZE, CHANNELS, ON_GPU, WIDTH})
"""All names that only STORM has. Its other keys have the same name here."""
SECTIONS = frozenset(
    ".".join(name.split(".")[:depth]) for name in NAMES for depth in range(1, name.count(".") + 1)
)
"""Where those names can stand. Nothing else is looked into, however deeply it is nested."""


class Translated(NamedTuple):
    """A config in the names of this project.

    Attributes:
        content: sections and keys.
        written: our key -> STORM's name that was written in its place, for messages.
    """

    content: dict[str, Any]
    written: dict[str, str]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``Section.Key`` and value of everything in the sections."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key in SECTIONS:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _without(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``tree`` without STORM's names."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key not in NAMES:
            nested = isinstance(value, Mapping) and key in SECTIONS
            kept[name] = _without(value, f"{key}.") if nested else value
    return kept


def _put(tree: dict[str, Any], key: str, value: Any) -> bool:
    """Set a dotted key; returns whether it was free. What stands in the place of a section is left
    to the validation."""
    *sections, last = key.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            return True
    free = last not in tree
    tree[last] = value
    return free


def has_names(content: Mapping[str, Any]) -> bool:
    """Whether ``content`` has a name that only STORM has."""
    return any(key in NAMES for key, _ in _flat(content))


def translate(content: Mapping[str, Any], source: str) -> Translated:
    """``content`` with STORM's names replaced by our own.

    Args:
        source: the file or flag, for messages.

    Raises:
        UserError: a key is given under both names, or a value has no counterpart here.
    """
    given = {key: value for key, value in _flat(content) if key in NAMES}
    translated, written = _without(content), dict[str, str]()
    for name, value in given.items():
        for key, own in _counterparts(name, value, given, source):
            if not _put(translated, key, own):
                raise UserError(f"{source}: {name} and {key} are two names of one key: give one")
            written[key] = name
    return Translated(translated, written)


def _counterparts(
    name: str, value: Any, given: Mapping[str, Any], source: str
) -> Iterator[tuple[str, Any]]:
    """Our keys and values for one of STORM's names."""
    if name in SIMPLE:
        for key in SIMPLE[name]:
            yield key, value
    elif name == SIZE:
        _require(type(value) is int and value > 0, source, name, value, "a number of pixels")
        yield "BasicSettings.ObsShape", (value, value, given.get(CHANNELS, 3))
    elif name == CHANNELS:
        need = f"1 or 3, and {SIZE} must be given beside it"
        _require(value in (1, 3) and SIZE in given, source, name, value, need)
    elif name == ON_GPU:
        _require(isinstance(value, bool), source, name, value, "true or false")
        yield "JointTrainAgent.BufferStorage", "device" if value else "memory"
    else:  # the actor and the critic are as wide as the sequence model
        need = f"given beside {MODEL_WIDTH}, and equal to it"
        _require(value == given.get(MODEL_WIDTH), source, name, value, need)


def _require(valid: bool, source: str, name: str, value: Any, need: str) -> None:
    if not valid:
        raise UserError(f"{source}: {name} = {value!r} is not valid: it must be {need}")
