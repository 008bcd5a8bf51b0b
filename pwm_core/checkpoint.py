"""A run's folder: config, metadata, metrics, checkpoints, videos.

::

    ckpt/<run name>/
      config.yaml             the resolved config
      run.json                task, seed, versions, commit, hardware
      metrics.jsonl           one object per logged step
      checkpoints/<step>.pt   weights of that step, for evaluation
      state.pt                optimisers, counters and random states of the newest checkpoint
      videos/                 what training logged to look at
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from pwm_core.config import REPOSITORY, Config, dump_config, load_config
from pwm_core.errors import UserError, closest
from pwm_core.files import write_tensors, write_text

RUNS = REPOSITORY / "ckpt"


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[\w.+=-]{1,200}", name) or name.startswith("."):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise UserError(
            f"run name {shown!r} is not valid: use up to 200 letters, digits, '.', '_', '-', '+' "
            "and '=', the first one not a dot"
        )
    return name


class RunFolder:
    """Everything of one run, under ``ckpt/<run name>/`` at the repository's root."""

    def __init__(self, name: str) -> None:
        self.name = _check_name(name)
        self.path = RUNS / name

    @classmethod
    def new(cls, name: str) -> RunFolder:
        """A run to be; nothing is written before :meth:`begin`.

        Raises:
            UserError: there is one of that name already.
        """
        folder = cls(name)
        if folder._config.exists():
            raise UserError(
                f"a run named {name} exists already in {folder.path}: choose another -n, "
                "or move that folder away"
            )
        return folder

    def begin(self, config: Config, metadata: dict[str, Any]) -> None:
        """Write the resolved config and what the run stands on."""
        write_text(self.path / "run.json", json.dumps(metadata, indent=2) + "\n")
        write_text(self._config, dump_config(config))

    @classmethod
    def open(cls, name: str) -> RunFolder:
        """A run that exists.

        Raises:
            UserError: there is none of that name.
        """
        folder = cls(name)
        if not folder._config.is_file():
            known = sorted(p.parent.name for p in RUNS.glob("*/config.yaml"))
            hint = closest(name, known) or (f"; runs: {', '.join(known[:8])}" if known else "")
            raise UserError(f"there is no run named {name} in {RUNS}{hint}")
        return folder

    def config(self) -> Config:
        """The resolved config the run was started with."""
        return load_config(self._config)

    def metadata(self) -> dict[str, Any]:
        """What ``run.json`` holds."""
        try:
            about = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            if isinstance(about["task"], str) and isinstance(about["domain"], str):
                return about
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.path / 'run.json'} is missing or damaged") from None

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    @property
    def videos(self) -> Path:
        """Where videos go."""
        return self.path / "videos"

    def checkpoint(self, step: int) -> Path:
        """The weights saved at ``step``."""
        return self.path / "checkpoints" / f"{step:09d}.pt"

    def save(self, step: int, weights: dict[str, Any], state: dict[str, Any]) -> Path:
        """Write a checkpoint; the state last, since it names the weights it belongs to."""
        path = self.checkpoint(step)
        write_tensors(path, {"step": step, **weights})
        write_tensors(self.path / "state.pt", {"step": step, **state})
        return path

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (self.path / "checkpoints").glob("*.pt")
        return sorted(int(path.stem) for path in found if path.stem.isdigit())

    def select(self, which: str) -> list[int]:
        """``last``, ``all`` or a step -> steps.

        Raises:
            UserError: no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"run {self.name} has no checkpoint yet")
        if which == "all":
            return steps
        if which == "last":
            return steps[-1:]
        if not re.fullmatch("[0-9]+", which) or int(which) not in steps:
            raise UserError(
                f"-checkpoint {which}: run {self.name} has {', '.join(map(str, steps))}; "
                "write last, all or one of them"
            )
        return [int(which)]

    def load_weights(self, step: int, device: torch.device) -> dict[str, Any]:
        """The weights saved at ``step``; tensors only, no code of the file is run.

        Raises:
            UserError: the file is damaged.
        """
        path = self.checkpoint(step)
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read: {reason}") from None
