"""A short, telling name for the config of a run."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pwm_core.config import REPOSITORY
from pwm_core.config_file import load_config

IGNORED = (
    "Task",
    "BasicSettings.Seed",
    "BasicSettings.Threads",
    "BasicSettings.Compile",
    "BasicSettings.ObsType",  # these three are part of the protocol
    "BasicSettings.Protocol",
    "BasicSettings.FrameSkip",
    "JointTrainAgent.SaveEverySteps",
    "JointTrainAgent.VideoLogStep",
    "JointTrainAgent.LogEverySteps",
    "JointTrainAgent.BufferStorage",
    "JointTrainAgent.EvalEnvs",
    "JointTrainAgent.EvalEpisodes",
    "Models.WorldModel.Scan",  # scans compute the same numbers
    "Models.WorldModel.ScanChunk",
    "Models.Agent.ReturnScan",
)
"""Keys in which runs of one config may differ."""
MOST_SHOWN = 3
"""Changes of a config that are named; beyond that they are counted."""


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(``Section.Key``, value) of what tells configs apart."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif prefix + key not in IGNORED:
            yield prefix + key, value


@functools.cache
def _known(domain: str) -> dict[str, dict[str, Any]]:
    """The config files of a domain: name -> its keys and values."""
    defaults = f"config_files/{domain}.yaml"
    return {
        path.stem: dict(leaves(load_config(path, defaults=defaults).model_dump(mode="json")))
        for path in sorted((REPOSITORY / "config_files").glob(f"{domain}*.yaml"))
    }


def config_name(domain: str, config: dict[str, Any]) -> str:
    """The config file that ``config`` was made from, and what was changed in it.

    Keys that only one of the two has (a run of another version) are not compared.
    """
    own = dict(leaves(config))
    changed = {
        name: [key for key in own if key in known and own[key] != known[key]]
        for name, known in _known(domain).items()
    }
    if not changed:
        return "config " + _digest(own)
    name = min(changed, key=lambda known: len(changed[known]))
    changes = [f"{key.rpartition('.')[2]}={own[key]}" for key in changed[name]]
    if not changes:
        return name
    if len(changes) <= MOST_SHOWN:
        return f"{name} with {', '.join(changes)}"
    return f"{name} with {len(changes)} changes ({_digest(own)})"


def _digest(leaves: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:6]
