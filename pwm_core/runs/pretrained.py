"""Trained agents that come with the repository::

    python -m pwm_core.runs.pretrained <run name>     # publish a run of ckpt/ in pretrained/

A published agent holds the config, ``run.json`` and the weights of the last checkpoint, in half
precision. ``eval.py`` copies it to ``ckpt/`` if it is asked for a run of that name and there is
none.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

import torch

from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY, LogDir, find_logdir
from pwm_core.runs.files import write_tensors
from pwm_core.runs.run_folder import RunFolder

PRETRAINED = LogDir(REPOSITORY / "pretrained")
"""The folder of published agents. Their runs are in ``pretrained/ckpt/``."""
ABOUT = ("config.yaml", "run.json")


def fetch(name: str, logdir: LogDir) -> None:
    """Copy the published agent ``name`` into ``logdir``, which has no run of that name.

    If no agent of that name is published, nothing happens.

    Raises:
        UserError: ``name`` cannot be the name of a run.
    """
    source, target = RunFolder(name, PRETRAINED), RunFolder(name, logdir)
    if target.exists or not source.exists:
        return
    shutil.copytree(source.path, target.path, dirs_exist_ok=True)
    print(f"run {name} comes with the repository; it was copied to {target.path}")


def publish(folder: RunFolder) -> RunFolder:
    """Put the last checkpoint of the run in ``folder`` into ``pretrained/``.

    Raises:
        UserError: the run has no checkpoint, or it is damaged.
    """
    (step,) = folder.select("last")
    weights = _halved(folder.load_weights(step, torch.device("cpu")))
    published = RunFolder(folder.name, PRETRAINED)
    shutil.rmtree(published.path, ignore_errors=True)
    write_tensors(published.checkpoint(step), weights)
    for name in ABOUT:
        shutil.copyfile(folder.path / name, published.path / name)
    return published


def _halved(tree: Any) -> Any:
    """Nested dicts with their float32 matrices in float16. Statistics keep their precision."""
    if isinstance(tree, dict):
        return {key: _halved(value) for key, value in tree.items()}
    matrix = isinstance(tree, torch.Tensor) and tree.ndim > 1 and tree.dtype == torch.float32
    return tree.half() if matrix else tree


def main() -> None:
    """Publish the runs that are named."""
    names = sys.argv[1:]
    if not names:
        raise UserError("name the runs to publish")
    for name in names:
        published = publish(RunFolder.open(name, find_logdir()))
        print(f"{name}: published in {published.path}; evaluate it before you commit it")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
