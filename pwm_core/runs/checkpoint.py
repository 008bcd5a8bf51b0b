"""Resume points, from which an interrupted or extended run continues exactly.

::

    ckpt/<run name>/
      resume/<step>.json      the point's files and their SHA-256; written last, so that a point
                              either exists whole or not at all
      resume/<step>.pt        optimisers, counters, random states, running episodes
      checkpoints/<step>.pt   the weights, which evaluation reads too
      replay/<from>-<to>.pt   transitions, deflated, each file written once

A point writes only the transitions since the previous point. Deflated, the frames of random play
take 1/25 (Kung-Fu Master) to 1/68 (Pong) of their memory. The last point of a finished run is kept,
so that the run can be extended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pwm_core.errors import UserError
from pwm_core.runs.files import numbers, sha256, write_text
from pwm_core.runs.tensor_files import read_tensors, write_tensors

POINTS = 2
"""The number of points kept. If the newest is damaged, the one before it is used."""
FILE = re.compile(r"(checkpoints|resume|replay)/[0-9]{9,}(-[0-9]{9,})?\.pt")
"""The file names that a manifest may contain."""


class Transitions(Protocol):
    """The replay that is saved; see ``pwm_core.training.replay_buffer.ReplayBuffer``.

    Attributes:
        total: steps of each environment stored since the run began.
        size: steps of each environment still held.
    """

    total: int
    size: int

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """The steps [first, last) of every environment, counted from the run's first."""


@dataclass(frozen=True)
class NewTransitions:
    """The transitions that were stored since the previous point.

    Attributes:
        oldest: the first step that the replay still holds.
        first, last: the steps [first, last) of every environment.
        fields: every field by name, (N, last - first, ...) in host memory; None if there are none.
    """

    oldest: int
    first: int
    last: int
    fields: dict[str, Tensor] | None


@dataclass(frozen=True)
class Chunk:
    """A file with the steps [first, last) of every environment."""

    first: int
    last: int
    sha256: str

    @property
    def file(self) -> str:
        """The path relative to the run's folder."""
        return f"replay/{self.first:09d}-{self.last:09d}.pt"


@dataclass
class Point:
    """The content of a manifest.

    Attributes:
        step: agent steps so far.
        files: paths relative to the run's folder, each with its SHA-256.
        chunks: the transitions.
    """

    step: int
    files: dict[str, str]
    chunks: list[Chunk] = field(default_factory=list)

    def all_files(self) -> dict[str, str]:
        """Every file that the point needs, with its SHA-256."""
        return self.files | {chunk.file: chunk.sha256 for chunk in self.chunks}


def _digest(point: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's content. The manifest holds it too."""
    return hashlib.sha256(json.dumps(point).encode()).hexdigest()


class ResumePoints:
    """Writes and reads the points of one run.

    Args:
        folder: the run's folder.
        keep: how many of the newest points to keep.
    """

    def __init__(self, folder: Path, keep: int = POINTS) -> None:
        self.folder, self.keep = folder, keep
        self._chunks: list[Chunk] = []

    def read(self, replay: Transitions) -> NewTransitions:
        """A copy of the transitions that no point has yet. The point before must be written."""
        oldest = replay.total - replay.size
        first = max(oldest, self._chunks[-1].last if self._chunks else 0)
        fields = replay.read(first, replay.total) if first < replay.total else None
        return NewTransitions(oldest, first, replay.total, fields)

    def save(
        self, step: int, files: dict[str, str], state: Any, transitions: NewTransitions
    ) -> None:
        """Write the point of ``step``.

        Args:
            files: files that belong to the point and are already written, with their SHA-256.
            state: everything but the weights and the replay; tensors and plain values.
            transitions: what :meth:`read` returned at that step.

        Raises:
            OSError: the point cannot be written. Earlier points are untouched.
        """
        self._save_transitions(transitions)
        name = f"resume/{step:09d}.pt"
        files = {**files, name: write_tensors(self.folder / name, state)}
        point = {
            "step": step,
            "files": files,
            "chunks": [[chunk.first, chunk.last, chunk.sha256] for chunk in self._chunks],
        }
        manifest = {"point": point, "sha256": _digest(point)}
        write_text(self._manifest(step), json.dumps(manifest) + "\n")
        self._prune()

    def _save_transitions(self, new: NewTransitions) -> None:
        """Write the transitions that are in no chunk yet, and forget chunks that the replay has
        dropped."""
        if new.fields is not None:
            chunk = Chunk(new.first, new.last, "")
            digest = write_tensors(self.folder / chunk.file, new.fields, compress=True)
            self._chunks.append(Chunk(new.first, new.last, digest))
        self._chunks = [chunk for chunk in self._chunks if chunk.last > new.oldest]

    def _manifest(self, step: int) -> Path:
        return self.folder / "resume" / f"{step:09d}.json"

    def steps(self) -> list[int]:
        """The steps of all points, ascending. Their files are not checked."""
        return numbers(self.folder / "resume", ".json")

    def _prune(self) -> None:
        """Remove old points and the files that only they need."""
        for step in self.steps()[: -self.keep]:
            self._manifest(step).unlink()
        needed = self.needed()
        for kind in ("resume/*.pt", "replay/*.pt"):
            for path in self.folder.glob(kind):
                if str(path.relative_to(self.folder)) not in needed:
                    path.unlink()

    def needed(self) -> set[str]:
        """The files that at least one point needs, relative to the run's folder."""
        names: set[str] = set()
        for step in self.steps():
            # Damage is reported when a run continues from the point.
            with contextlib.suppress(UserError):
                names |= self._read(step).all_files().keys()
        return names

    def _read(self, step: int) -> Point:
        path = self._manifest(step)
        try:
            content = json.loads(path.read_bytes())
            written = content["point"]
            point = Point(step, dict(written["files"]), [Chunk(*row) for row in written["chunks"]])
            own = {f"resume/{step:09d}.pt", f"checkpoints/{step:09d}.pt"}
            good = content["sha256"] == _digest(written) and own <= point.files.keys()
            good = good and all(FILE.fullmatch(name) for name in point.all_files())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise UserError(f"{path} is damaged")
        return point

    def _check(self, step: int) -> Point:
        """Read the point of ``step`` and verify the checksum of each of its files.

        Raises:
            UserError: names what is damaged or missing.
        """
        point = self._read(step)
        for name, digest in point.all_files().items():
            path = self.folder / name
            try:
                good = sha256(path) == digest
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from None
            if not good:
                raise UserError(f"{path} is damaged (its checksum differs)")
        return point

    def newest(self) -> Point | None:
        """The newest undamaged point, or None if there are no points.

        Raises:
            UserError: there are points, and all are damaged.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                point = self._check(step)
            except UserError as reason:
                reasons.append(str(reason))
                print(f"warning: the checkpoint of step {step} is passed over: {reason}")
                continue
            self._chunks = point.chunks
            for later in self.steps():
                if later > step:
                    self._manifest(later).unlink()
            return point
        if reasons:
            raise UserError(
                f"there is no undamaged checkpoint to continue from in {self.folder / 'resume'}: "
                f"{reasons[0]}; "
                "move the run's folder away to start afresh"
            )
        return None

    def state(self, point: Point) -> Any:
        """The ``state`` that :meth:`save` was given; its tensors are in host memory."""
        return read_tensors(self.folder / f"resume/{point.step:09d}.pt")

    def transitions(self, point: Point) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The first step and the fields (N, steps, ...) of every chunk, in order."""
        for chunk in point.chunks:
            yield chunk.first, read_tensors(self.folder / chunk.file)

    def finish(self) -> None:
        """At the end of the run, keep only the newest point, from which the run can be extended."""
        for step in self.steps()[:-1]:
            self._manifest(step).unlink()
        self._prune()
        for path in self.folder.glob("replay/*.bin"):  # The replay sampled from these files.
            path.unlink()
