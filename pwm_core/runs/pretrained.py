"""Trained agents that come with the repository.

A published agent holds the config, ``run.json`` and the weights of the last checkpoint, in half
precision; ``pwm_core.commands.publish`` makes it. ``eval.py`` and ``record.py`` copy it to
``ckpt/`` if they are asked for a run of that name and there is none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pwm_core.errors import UserError
from pwm_core.paths import REPOSITORY, LogDir
from pwm_core.runs.run_folder import RunFolder

PRETRAINED = LogDir(REPOSITORY / "pretrained")
"""The folder of published agents. Their runs are in ``pretrained/ckpt/``."""


def fetch(name: str, logdir: LogDir) -> None:
    """Copy the published agent ``name`` into ``logdir``, which has no run of that name.

    If no agent of that name is published, nothing happens.

    Raises:
        UserError: ``name`` cannot be the name of a run, or it cannot be copied.
    """
    source, target = RunFolder(name, PRETRAINED), RunFolder(name, logdir)
    if target.exists or not source.exists:
        return
    target.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name[:40]}-", dir=target.path.parent))
    try:
        copy = temporary / name
        shutil.copytree(source.path, copy, copy_function=shutil.copyfile)
        os.rename(copy, target.path)  # in one move, so that nothing half copied is ever a run
    except (shutil.Error, OSError) as error:
        if target.exists:  # another process has copied it meanwhile
            return
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise UserError(f"run {name} cannot be copied to {target.path}: {why}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"run {name} comes with the repository; it was copied to {target.path}")


def open_folder(name: str, logdir: LogDir) -> RunFolder:
    """The run ``name`` in ``logdir``. A published agent is copied there first.

    Raises:
        UserError: there is no such run and no such agent, or it cannot be copied.
    """
    fetch(name, logdir)
    published = (path.parent.name for path in PRETRAINED.runs.glob("*/config.yaml"))
    return RunFolder.open(name, logdir, others=published)
