"""A short, meaningful name for the config of a run."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pwm_core.config import ROUNDING
from pwm_core.config_file import complete, leaves, load_config
from pwm_core.paths import CONFIG_ROOT

IGNORED = (
    "Task",
    "BasicSettings.Seed",
    "BasicSettings.Threads",
    *ROUNDING,
    "BasicSettings.ObsType",  # These three are part of the protocol.
    "BasicSettings.Protocol",
    "BasicSettings.FrameSkip",
    "JointTrainAgent.SaveEverySteps",
    "JointTrainAgent.VideoLogStep",
    "JointTrainAgent.LogEverySteps",
    "JointTrainAgent.BufferStorage",
    "JointTrainAgent.EvalEnvs",
    "JointTrainAgent.EvalEpisodes",
)
"""Keys that may differ between runs of one config."""
STEPS, BUFFER = "JointTrainAgent.SampleMaxSteps", "JointTrainAgent.BufferMaxLength"
MOST_SHOWN = 2
"""The most changes that a name lists. A config with more changes gets a short hash."""


def telling(config: dict[str, Any]) -> dict[str, Any]:
    """``Section.Key`` -> value of the keys that distinguish configs."""
    return {key: value for key, value in leaves(config).items() if key not in IGNORED}


@functools.cache
def _known(domain: str) -> dict[str, dict[str, Any]]:
    """The config files of a domain, and those of other methods: name -> keys and values."""
    defaults = f"config_files/{domain}.yaml"
    folder = CONFIG_ROOT / "config_files"
    paths = [*sorted(folder.glob(f"{domain}*.yaml")), *sorted(folder.glob("STORM*.yaml"))]
    return {
        path.stem: _comparable(load_config(path, defaults=defaults).model_dump(mode="json"))
        for path in paths
    }


class ConfigName(NamedTuple):
    """A readable name of a config.

    Attributes:
        short: such as ``tiny`` or ``tiny, entropy 3e-3``.
        changes: the differences from the config file, one line each.
    """

    short: str
    changes: tuple[str, ...]


def config_name(domain: str, config: dict[str, Any]) -> ConfigName:
    """Name the config file that ``config`` was made from, and the changes to it.

    Keys that ``config`` lacks, because they are newer than its run, have the full config's values.
    Keys that have been removed since are not compared.
    """
    own = _comparable(complete(config, f"config_files/{domain}.yaml"))
    changed = {
        name: [key for key in own if key in known and own[key] != known[key]]
        for name, known in _known(domain).items()
    }
    if not changed:
        return ConfigName(f"config {_digest(own)}", ())
    name = min(changed, key=lambda known: len(changed[known]))
    keys, known = changed[name], _known(domain)[name]
    lines = tuple(f"{key} {own[key]} (in {name}.yaml: {known[key]})" for key in keys)
    parts = [name.removeprefix(domain).strip("_").replace("_", " ") or "full"]
    if len(keys) > MOST_SHOWN:
        parts.append(f"variant {_digest({key: own[key] for key in keys})}")
    else:
        parts += [f"{_words(key, own)} {_number(own[key])}" for key in keys]
    return ConfigName(", ".join(parts), lines)


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a config. The length of the replay is included only if it is shorter than the
    run."""
    own = telling(config)
    steps = own.pop(STEPS, None)
    if steps is not None and own.get(BUFFER, 0) >= steps:
        own[BUFFER] = "whole run"
    return own


def _words(key: str, keys: Iterable[str]) -> str:
    """``Models.Agent.EntropyCoef`` -> ``entropy``. Where another of ``keys`` ends in the same
    part, the section is named too: ``Models.Agent.LR`` -> ``agent lr``."""
    section, _, last = key.rpartition(".")
    if sum(other.rpartition(".")[2] == last for other in keys) > 1:
        last = section.rpartition(".")[2] + last
    last = last.removesuffix("Coef")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", last).lower()


def _number(value: Any) -> str:
    """``0.003`` -> ``3e-3``. Anything but a small number is written unchanged."""
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return np.format_float_scientific(value, trim="-", exp_digits=1)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digest(keys: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:4]
