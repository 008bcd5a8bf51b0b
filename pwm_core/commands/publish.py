"""Publish trained agents: put the last checkpoints of runs into ``pretrained/``.

Evaluate what was published before you commit it::

    python -m pwm_core.commands.publish <run name> [more runs]
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from pwm_core.commands import cli
from pwm_core.errors import UserError
from pwm_core.models.actor_critic import CRITICS
from pwm_core.paths import LogDir
from pwm_core.runs import pretrained
from pwm_core.runs.run_folder import RunFolder
from pwm_core.runs.tensor_files import write_tensors

ABOUT = ("config.yaml", "run.json")


def publish(folder: RunFolder) -> RunFolder:
    """Put the last checkpoint of the run in ``folder`` into ``pretrained/``, in half precision and
    without its critics, which neither acting nor imagining needs.

    Raises:
        UserError: the run is a published one, or has no checkpoint, or it is damaged.
    """
    published = RunFolder(folder.name, pretrained.PRETRAINED)
    if published.exists and published.path.samefile(folder.path):
        raise UserError(f"{folder.path} is where agents are published: set another PAMORL_LOGDIR")
    (step,) = folder.select("last")
    weights = _halved(folder.load_weights(step, torch.device("cpu")))
    kept = weights["actor_critic"]
    weights["actor_critic"] = {key: kept[key] for key in kept if not key.startswith(CRITICS)}
    published.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=published.path.parent) as beside:
        made = RunFolder(folder.name, LogDir(Path(beside)))
        write_tensors(made.checkpoint(step), weights)
        for name in ABOUT:
            shutil.copyfile(folder.path / name, made.path / name)
        shutil.rmtree(published.path, ignore_errors=True)  # one of that name is kept until here
        os.rename(made.path, published.path)
    return published


def _halved(tree: Any) -> Any:
    """Nested dicts with their float32 matrices in float16. Statistics keep their precision."""
    if isinstance(tree, dict):
        return {key: _halved(value) for key, value in tree.items()}
    matrix = isinstance(tree, torch.Tensor) and tree.ndim > 1 and tree.dtype == torch.float32
    return tree.half() if matrix else tree


def main() -> None:
    """Publish the runs that are named."""
    parser = cli.Parser(description="Publish the last checkpoint of runs.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a run")
    for name in parser.parse_args().names:
        published = publish(RunFolder.open(name))
        print(f"{name}: published in {published.path}; evaluate it before you commit it")


if __name__ == "__main__":
    cli.run_command(main)
