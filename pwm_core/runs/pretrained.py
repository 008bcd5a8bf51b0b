"""Trained agents that come with the repository.

A published agent holds the config, ``run.json`` and the weights of the last checkpoint, in half
precision; ``pwm_core.commands.publish`` makes it. ``eval.py`` and ``record.py`` copy it to
``ckpt/`` if they are asked for a run of that name and there is none.
"""

from __future__ import annotations

import shutil

from pwm_core.paths import REPOSITORY, LogDir
from pwm_core.runs.run_folder import RunFolder

PRETRAINED = LogDir(REPOSITORY / "pretrained")
"""The folder of published agents. Their runs are in ``pretrained/ckpt/``."""


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
