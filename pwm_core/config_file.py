"""Reading, checking and writing config files.

A domain's full config file (``config_files/atari.yaml``) holds every key. Any other file is laid
over it, so a file needs to name only what it changes. Several files can be laid over one another.
Files with key names of STORM's are laid over ``config_files/STORM.yaml``.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel

from pwm_core import storm_names
from pwm_core.config import Config
from pwm_core.errors import UserError, closest
from pwm_core.paths import CONFIG_ROOT

MOST_BYTES, MOST_NODES = 1_000_000, 10_000
"""The largest config file in bytes, and the most values in it with all aliases expanded."""
MOST_FRAME_SKIP = 100
"""The most frames that an action may be held for: 100 frames are 1.7 s of an Atari game."""


def _impossible_attention(config: Config) -> Iterable[tuple[str, str]]:
    """As :func:`_impossible`, for the keys of the sequence model ``attention``."""
    model, train = config.Models.WorldModel, config.JointTrainAgent
    if config.Models.Hidden % model.Heads:
        yield "Models.WorldModel.Heads", f"must divide Models.Hidden = {config.Models.Hidden}"
    if model.Positions < train.BatchLength:
        yield (
            "Models.WorldModel.Positions",
            f"must be at least JointTrainAgent.BatchLength = {train.BatchLength}",
        )
    if model.ActingWindow > model.Positions:
        yield (
            "Models.WorldModel.ActingWindow",
            f"must be at most Models.WorldModel.Positions = {model.Positions}",
        )
    if model.ImagineWindow + train.ImagineHorizon > model.Positions:
        yield (
            "Models.WorldModel.ImagineWindow",
            f"must with JointTrainAgent.ImagineHorizon = {train.ImagineHorizon} be at most "
            f"Models.WorldModel.Positions = {model.Positions}",
        )


def _impossible(config: Config) -> Iterable[tuple[str, str]]:
    """Values that are impossible, alone or in combination: (key, what would be valid)."""
    train, models = config.JointTrainAgent, config.Models
    frame_skip = config.BasicSettings.FrameSkip
    if isinstance(frame_skip, int) and frame_skip > MOST_FRAME_SKIP:
        yield "BasicSettings.FrameSkip", f"must be at most {MOST_FRAME_SKIP}"
    height, width, channels = config.BasicSettings.ObsShape
    if height != width or channels not in (1, 3):
        yield "BasicSettings.ObsShape", "must be square with 1 or 3 channels, as (64, 64, 3)"
    shrink, rest = divmod(height, models.WorldModel.MinRes)
    if rest or shrink < 2 or shrink & (shrink - 1):  # it must be a power of two, at least 2
        yield (
            "Models.WorldModel.MinRes",
            f"must be the image height {height} halved one or more times",
        )
    if models.Hidden % models.WorldModel.HeadDivisor:
        yield "Models.WorldModel.HeadDivisor", f"must divide Models.Hidden = {models.Hidden}"
    if models.WorldModel.SequenceModel == "attention":
        yield from _impossible_attention(config)
    sampled_apart = models.Method == "storm"
    if train.ImagineBatchSize > train.BatchSize and not sampled_apart:
        yield "JointTrainAgent.ImagineBatchSize", f"must be at most BatchSize = {train.BatchSize}"
    if train.ImagineContext > train.BatchLength - sampled_apart:  # and the step after a context
        most = "below" if sampled_apart else "at most"
        yield "JointTrainAgent.ImagineContext", f"must be {most} BatchLength = {train.BatchLength}"
    if train.BufferWarmUp < train.BatchLength * train.NumEnvs:
        yield (
            "JointTrainAgent.BufferWarmUp",
            f"must be at least BatchLength x NumEnvs = {train.BatchLength * train.NumEnvs}, "
            "so that a whole sequence can be sampled",
        )
    if train.SampleMaxSteps <= train.BufferWarmUp:
        yield (
            "JointTrainAgent.SampleMaxSteps",
            f"must be above BufferWarmUp = {train.BufferWarmUp}, or nothing is trained",
        )
    if train.BufferMaxLength < train.BatchLength * train.NumEnvs:
        yield (
            "JointTrainAgent.BufferMaxLength",
            f"must be at least BatchLength x NumEnvs = {train.BatchLength * train.NumEnvs}",
        )
    if models.Agent.MinPer >= models.Agent.MaxPer:
        yield "Models.Agent.MinPer", f"must be below MaxPer = {models.Agent.MaxPer}"
    if models.Agent.MinStd > models.Agent.MaxStd:
        yield "Models.Agent.MinStd", f"must be at most MaxStd = {models.Agent.MaxStd}"


def find_config(path: str | Path) -> Path:
    """``path`` relative to the working directory, or else relative to the project.

    Raises:
        UserError: neither exists.
    """
    for candidate in (Path(path), CONFIG_ROOT / path):
        if candidate.is_file():
            return candidate
    here = sorted(str(p.relative_to(CONFIG_ROOT)) for p in CONFIG_ROOT.glob("config_files/*.yaml"))
    raise UserError(f"config file {path} does not exist; there are {', '.join(here)}")


def find_configs(paths: str | Path) -> list[Path]:
    """The files that ``paths`` names: one, or several with commas between them, each as
    :func:`find_config` finds it.

    Raises:
        UserError: one of them does not exist.
    """
    whole = str(paths)
    if "," not in whole or Path(whole).is_file():
        return [find_config(paths)]
    return [find_config(path.strip()) for path in whole.split(",")]


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently take the last. It also refuses aliases
    that stand for more than :data:`MOST_NODES` values. A time such as ``24:00:00`` stays text; YAML
    1.1 reads the number 86,400."""

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()
        if root is not None and _written_out(root, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES} values")
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _number(kind: str) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """A constructor of YAML's numbers that leaves text with colons as it is."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        return node.value if ":" in node.value else getattr(loader, f"construct_yaml_{kind}")(node)

    return construct


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number(_kind))


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values in ``node`` when every alias is expanded. It is infinite if the node
    contains itself.

    Args:
        known: the results so far, by the node's id.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # temporary: a node that is met again contains itself
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    return known[id(node)]


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: it is not valid, gives a key twice, or stands for too many values.
    """
    return copy.deepcopy(_parsed(text))


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """What :func:`parse_yaml` copies. PyYAML takes 14 ms for a full config, and a sweep reads the
    same files for every task."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path, example: str = "config_files/atari.yaml") -> dict[str, Any]:
    """The sections of a YAML file.

    Args:
        example: a file that shows the keys, for the message if the file has none.

    Raises:
        UserError: the file is missing, too large, not YAML, or holds no keys.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES // 1_000_000} MB: it is no config")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason[:300]}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; see {example} for their names")
    return content


def _overlay(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change`` laid over it, section by section."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _overlay(base[key], value) if both else value
    return merged


def _flag(override: str) -> str:
    """An override in the form that messages show."""
    return f"-set {override if len(override) <= 200 else override[:197] + '...'}"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``Section.Key`` -> value of every key of a config."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        found |= leaves(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


@functools.cache
def _full(defaults: str) -> dict[str, Any]:
    """``Section.Key`` -> value of the full config ``defaults``."""
    return leaves(load_config(defaults).model_dump(mode="json"))


def complete(config: Mapping[str, Any], defaults: str) -> dict[str, Any]:
    """``Section.Key`` -> value of a stored config. Keys that are newer than it get the values of
    ``defaults``, the domain's full config."""
    return _full(defaults) | leaves(config)


def _parse_override(text: str) -> dict[str, Any]:
    """``Section.Key=value`` -> nested mapping."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{_flag(text)}: write Section.Key=value, as Models.Gamma=0.99")
    try:
        nested: Any = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{_flag(text)}: the value is not valid YAML") from None
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _section_keys(location: tuple[str, ...]) -> list[str]:
    """The valid keys of the section at ``location``."""
    section: type[BaseModel] = Config
    for name in location:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def _places(name: str, section: type[BaseModel] = Config) -> list[str]:
    """The dotted keys that end in ``name``, in any section."""
    found = [name] if name in section.model_fields else []
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [f"{key}.{place}" for place in _places(name, field.annotation)]
    return found


def _explain(error: pydantic.ValidationError, source: str, written: Mapping[str, str]) -> str:
    """The first error as one line: the file, the key, what is wrong and what would be valid.

    Args:
        written: key -> the name that the user has written in its place.
    """
    first = error.errors()[0]
    location = tuple(str(part) for part in first["loc"])
    key = ".".join(location)
    key = written.get(key, key)
    if first["type"] == "extra_forbidden":
        valid = _section_keys(location[:-1])
        elsewhere = _places(location[-1])
        hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
        hint = hint or closest(location[-1], valid) or f"; valid keys: {', '.join(valid)}"
        return f"{source}: unknown key {key}{hint}"
    if first["type"] == "missing":
        return f"{source}: {key} is missing"
    if first["type"] == "model_type":
        return f"{source}: {key} must be a section of keys: {', '.join(_section_keys(location))}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = repr(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{source}: {key} = {given} is not valid: {message}"


def _validate(content: Mapping[str, Any], source: str, written: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(content)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, source, written)) from None


def _lay_over(
    base: Mapping[str, Any], change: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], Config]:
    """``base`` with the file or flag ``change`` laid over it, in our own names, and validated."""
    translated = storm_names.translate(change, source)
    content = _overlay(base, translated.content)
    return content, _validate(content, source, translated.written)


def _base(layers: Iterable[Mapping[str, Any]], defaults: str | Path | None) -> dict[str, Any]:
    """What the config files with the contents ``layers`` are laid over."""
    base = {} if defaults is None else read_yaml(CONFIG_ROOT / defaults)
    if any(map(storm_names.has_names, layers)):
        path = CONFIG_ROOT / storm_names.BASE
        storm = storm_names.translate(read_yaml(path), str(path))
        base = _overlay(base, storm.content)
    return base


def load_config(
    path: str | Path, *, defaults: str | Path | None = None, overrides: Iterable[str] = ()
) -> Config:
    """Read ``path`` over the domain's ``defaults``, then apply ``-set`` overrides.

    Args:
        path: one file, or several with commas between them; each is laid over those before it.

    Raises:
        UserError: a file is missing, a key is unknown, a type is wrong or a value is impossible.
    """
    overrides, layers = list(overrides), {layer: read_yaml(layer) for layer in find_configs(path)}
    content = _base(layers.values(), defaults)
    for layer, change in layers.items():
        content, config = _lay_over(content, change, str(layer))
        source = layer
    for override in overrides:
        content, config = _lay_over(content, _parse_override(override), _flag(override))
    # checked after all overrides, because related keys may change together
    for key, need in _impossible(config):
        named = [_flag(text) for text in overrides if text.partition("=")[0].strip() == key]
        raise UserError(
            f"{[str(source), *named][-1]}: {key} = {_value(config, key)} is impossible: it {need}"
        )
    return config


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def dump_config(config: Config) -> str:
    """The resolved config as YAML that :func:`load_config` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
