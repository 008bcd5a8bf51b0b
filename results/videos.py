"""The videos of runs, for the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "evaluation": "evaluated episode",
    "openloop": "truth, open-loop prediction (green line: frame given, red: predicted), error",
    "comparison": "observed, reconstructed, imagined by the policy",
    "imagination": "imagined by the policy",
}
"""What is shown, in this order; the others hold nothing that these do not."""
MOST_BYTES = 40_000_000
"""Of all videos in one page."""


@dataclass(frozen=True)
class Video:
    """One mp4 and what it shows; ``step`` is None where its name does not tell."""

    run: str
    kind: str
    step: int | None
    path: Path

    @property
    def caption(self) -> str:
        """What is to be seen, and when it was recorded."""
        when = f", step {self.step:,}" if self.step is not None else ""
        return f"{KINDS[self.kind]}{when}"


def find_videos(scores: Path, runs: Path, problems: list[str]) -> list[Video]:
    """The newest of each kind of each run: of run folders, and ``<run>.<kind>.mp4`` in ``scores``.

    A run's first evaluated episode stands for its others.
    """
    found: dict[tuple[str, str], Video] = {}
    for path in sorted(scores.glob("*.mp4")):
        name, _, kind = path.stem.rpartition(".")
        if kind in KINDS:
            found[name, kind] = Video(name, kind, None, path)
    for path in sorted(runs.glob("*/videos/*.mp4")):
        match = re.fullmatch(r"([a-z]+?)0?_(\d+)", path.stem)
        if match and match[1] in KINDS:  # names sort by step, so the newest stays
            run = path.parents[1].name
            found[run, match[1]] = Video(run, match[1], int(match[2]), path)
    for run, kind in list(found):
        if kind == "imagination" and (run, "comparison") in found:
            del found[run, kind]
    return _within(sorted(found.values(), key=_order), problems)


def _order(video: Video) -> tuple[str, int]:
    return video.run, list(KINDS).index(video.kind)


def _within(videos: list[Video], problems: list[str]) -> list[Video]:
    """As many as fit into :data:`MOST_BYTES`; the others are named."""
    kept, total = [], 0
    for video in videos:
        size = video.path.stat().st_size
        if total + size > MOST_BYTES:
            problems.append(
                f"{video.path}: not in the page, which would hold more than "
                f"{MOST_BYTES // 10**6} MB of videos"
            )
            continue
        total += size
        kept.append(video)
    return kept
