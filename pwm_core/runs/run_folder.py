"""A run's folder: config, metadata, metrics, checkpoints, videos.

::

    ckpt/<run name>/
      config.yaml             the resolved config
      run.json                task, seed, versions, commit, hardware
      metrics.jsonl           one object per logged step
      checkpoints/<step>.pt   weights of that step, for evaluation
      resume/, replay/        what a run continues from, see ``pwm_core.runs.checkpoint``
      videos/                 videos of training and evaluation
      lock                    held by the process that trains
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pwm_core.config import EXTENDABLE, ROUNDING, Config
from pwm_core.config_file import dump_config, leaves, load_config
from pwm_core.errors import UserError, closest
from pwm_core.paths import LogDir, find_logdir
from pwm_core.runs.checkpoint import ResumePoints
from pwm_core.runs.files import numbers, remove_leftovers, write_text
from pwm_core.runs.tensor_files import check_archive, read_tensors, write_tensors

DIFFER = "note: the numbers may differ from here on:"
NAME_BYTES = 200
"""The longest name of a run. A file system allows 255 bytes, and score files add a suffix."""


def _check_name(name: str) -> str:
    good = re.fullmatch(r"[\w.+=-]+", name) and not name.startswith(".") and "--" not in name
    if not good or len(name.encode()) > NAME_BYTES:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise UserError(
            f"run name {shown!r} is not valid: use letters, digits, '.', '_', '-', '+' and '=' "
            f"({NAME_BYTES} bytes at most), no dot at the start, and no '--', "
            "which separates a run from an evaluation setting in the names of score files"
        )
    return name


def _at(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


class RunFolder:
    """Everything of one run, in the folder ``ckpt/<run name>/``.

    Args:
        name: the run's name.
        logdir: holds ``ckpt/``; by default the one that :func:`find_logdir` finds.

    Raises:
        UserError: the name is not valid.
    """

    def __init__(self, name: str, logdir: LogDir | None = None) -> None:
        self.name = _check_name(name)
        self.path = (logdir or find_logdir()).runs / name
        self.points = ResumePoints(self.path)

    @property
    def exists(self) -> bool:
        """Whether a run of that name has begun."""
        return self._config.is_file()

    def refuse_existing(self) -> None:
        """Check that a new run can be started.

        Raises:
            UserError: a run of that name exists.
        """
        if self.exists:
            raise UserError(
                f"a run named {self.name} exists already in {self.path}: -resume continues it; "
                "or choose another -n, or move that folder away"
            )

    def refuse_lost_points(self, total: int) -> None:
        """Check that a run without a point to continue from may start over.

        Args:
            total: ``SampleMaxSteps`` of the run so far.

        Raises:
            UserError: the run trained far enough to have had a point.
        """
        steps = self.steps()
        if len(steps) > 1 or (steps and steps[-1] >= total):
            raise UserError(
                f"run {self.name} got to step {steps[-1]}, but {self.path / 'resume'} holds "
                "nothing to continue from: move the run's folder away to start afresh"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock while training. The kernel releases it when the process ends.

        Temporary files that a killed process left are removed; so is, at the end, the folder of a
        run that did not start.

        Raises:
            UserError: another process trains this run, its folder cannot be made, or its file
                system has no locks.
        """
        fresh = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be made ({error.strerror}): choose another -logdir"
            ) from None
        path = self.path / "lock"
        with open(path, "ab+", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
            except BlockingIOError:
                mine = False
            except OSError as error:
                raise UserError(
                    f"{path} cannot be locked ({error.strerror}): choose a -logdir on a file "
                    "system with file locks"
                ) from None
            if not mine:  # Another process holds it, or one that has just ended removed it.
                file.seek(0)
                owner = file.read(200).decode(errors="replace").strip() or "another process"
                raise UserError(f"run {self.name} is being trained by {owner}")
            with contextlib.suppress(OSError):  # On a full disk the lock file stays empty.
                file.truncate(0)
                file.write(f"process {os.getpid()} on {os.uname().nodename}\n".encode())
            for name in ("", "resume", "replay", "checkpoints"):
                remove_leftovers(self.path / name)
            try:
                yield
            finally:
                if fresh and not self.exists:
                    self._discard()

    def check_same(self, config: Config, metadata: dict[str, Any], defaults: str) -> None:
        """Check that a run can continue with these settings.

        Raises:
            UserError: task, domain or config have changed; see :meth:`differences`.
        """
        changes = self.differences(config, metadata, defaults)
        if changes:
            raise UserError(
                f"run {self.name} cannot continue with other settings: {'; '.join(changes)}; "
                "repeat the run's own flags, or choose another -n"
            )

    def differences(self, config: Config, metadata: dict[str, Any], defaults: str) -> list[str]:
        """Why the run cannot continue with these settings: one text per key.

        A larger ``SampleMaxSteps`` is allowed, and other values of the keys ``ROUNDING``. A
        larger ``BufferMaxLength`` is allowed as long as the replay has not dropped anything.
        """
        before, now = self.config(defaults).model_dump(), config.model_dump()
        was, trained = self.metadata(), max(self.steps(), default=0)
        known = ("domain", "task", "demonstration")
        pairs = [(key, was.get(key), metadata.get(key)) for key in known]
        pairs += [(key, old, _at(now, key)) for key, old in leaves(before).items()]

        def allowed(key: str, old: Any, new: Any) -> bool:
            grows = key in EXTENDABLE and new > old
            same = old == new or key in ROUNDING
            return same or (grows and (key == EXTENDABLE[0] or trained <= old))

        return [
            f"{key} was {old} and is {new}" for key, old, new in pairs if not allowed(key, old, new)
        ]

    def extend(self, config: Config, defaults: str) -> None:
        """Write the config of a run that continues, and print what has changed in it."""
        before = self.config(defaults)
        if config == before:
            return
        was, total = before.JointTrainAgent.SampleMaxSteps, config.JointTrainAgent.SampleMaxSteps
        if was != total:
            print(f"extending the run from {was} to {total} steps")
        old, new = before.model_dump(), config.model_dump()
        changed = [
            f"{key} was {_at(old, key)} and is {_at(new, key)}"
            for key in ROUNDING
            if _at(old, key) != _at(new, key)
        ]
        if changed:
            print(f"{DIFFER} {'; '.join(changed)}")
        write_text(self._config, dump_config(config))

    def _discard(self) -> None:
        """Remove the folder of a run that did not start, unless it holds more than the lock and the
        files of a replay on disk."""
        replay = self.path / "replay"
        with contextlib.suppress(OSError):
            for path in replay.glob("*.bin"):
                path.unlink()
            if replay.exists():
                replay.rmdir()
            (self.path / "lock").unlink()
            self.path.rmdir()

    def finished(self, total: int) -> bool:
        """Whether the run has trained ``total`` steps and written its last checkpoint."""
        points = self.points.steps()
        done = bool(self.steps()) and self.steps()[-1] >= total
        return done and (not points or points[-1] >= total)

    def note_versions(self, metadata: dict[str, Any]) -> None:
        """Print which versions, commit or hardware have changed since the run started."""
        was = self.metadata()
        before = was["versions"] if isinstance(was.get("versions"), dict) else {}
        changed = [
            f"{package} was {before.get(package)} and is {version}"
            for package, version in metadata["versions"].items()
            if before.get(package) != version
        ]
        changed += [
            f"{key} was {was.get(key)} and is {metadata[key]}"
            for key in ("commit", "hardware")
            if was.get(key) != metadata[key]
        ]
        if changed:
            print(f"{DIFFER} {'; '.join(changed)}")

    def begin(self, config: Config, metadata: dict[str, Any]) -> None:
        """Write the resolved config and the metadata of a new run."""
        write_text(self.path / "run.json", json.dumps(metadata, indent=2) + "\n")
        write_text(self._config, dump_config(config))

    @classmethod
    def open(cls, name: str, logdir: LogDir | None = None, others: Iterable[str] = ()) -> RunFolder:
        """An existing run.

        Args:
            others: names that a wrong one may stand for besides those of the runs.

        Raises:
            UserError: there is no run of that name.
        """
        folder = cls(name, logdir)
        if not folder.exists:
            runs = folder.path.parent
            known = sorted({path.parent.name for path in runs.glob("*/config.yaml")} | {*others})
            hint = closest(name, known) or (f"; runs: {', '.join(known[:8])}" if known else "")
            raise UserError(f"there is no run named {name} in {runs}{hint}")
        return folder

    def config(self, defaults: str) -> Config:
        """The run's resolved config. Keys that were added to the project later get the values of
        ``defaults``, the domain's full config."""
        return load_config(self._config, defaults=defaults)

    def metadata(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises:
            UserError: the file is missing or damaged.
        """
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
        """The folder of videos."""
        return self.path / "videos"

    def checkpoint(self, step: int) -> Path:
        """The path of the weights of ``step``."""
        return self.path / "checkpoints" / f"{step:09d}.pt"

    def save(self, step: int, weights: dict[str, Any]) -> dict[str, str]:
        """Write the weights of ``step``. Returns the file's name in the folder and its SHA-256."""
        path = self.checkpoint(step)
        digest = write_tensors(path, {"step": step, **weights})
        return {str(path.relative_to(self.path)): digest}

    def prune(self, keep: int | None) -> None:
        """Remove old weights, except those that the run can continue from.

        Args:
            keep: how many of the newest checkpoints keep their weights; None keeps all.
        """
        needed = self.points.needed()
        for step in self.steps()[:-keep] if keep else []:
            path = self.checkpoint(step)
            if str(path.relative_to(self.path)) not in needed:
                path.unlink()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return numbers(self.path / "checkpoints", ".pt")

    def select(self, which: str) -> list[int]:
        """The steps that ``-checkpoint`` asks for: ``last``, ``all`` or a number.

        Raises:
            UserError: there is no such checkpoint.
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
        """Read the weights of ``step`` after verifying their checksums.

        Raises:
            UserError: the file is missing, damaged, or holds something else.
        """
        check_archive(self.checkpoint(step))
        content = read_tensors(self.checkpoint(step), device)
        if not isinstance(content, dict):
            raise UserError(f"{self.checkpoint(step)} holds no weights")
        return content
