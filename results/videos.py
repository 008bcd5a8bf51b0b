"""The videos of runs for the page, with gaps between sequences and frames around imagined
images."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pwm_core.runs.mp4 import VideoWriter, read_video


@dataclass(frozen=True)
class Kind:
    """The content of a kind of video.

    Attributes:
        rows: its panels from top to bottom; empty if it is a single picture.
    """

    caption: str
    rows: tuple[str, ...] = ()


KINDS = {
    "evaluation": Kind("trained agent, an evaluated episode"),
    "openloop": Kind(
        "open-loop prediction: from the first quarter of a sequence the world model predicts the "
        "rest, given the real actions alone",
        ("truth", "prediction", "error"),
    ),
    "comparison": Kind(
        "what was seen, what the world model makes of it, and what the policy imagines from the "
        "first frame on",
        ("seen", "rebuilt", "imagined"),
    ),
    "imagination": Kind("imagined by the policy from a real frame on", ("imagined",)),
}
"""The kinds of video in the order shown. Other kinds add nothing to these."""
MOST_BYTES = 40_000_000
"""The largest total size of all videos in one page, in bytes."""
LEAST = 256
"""Laid-out videos are enlarged until both sides have at least this many pixels."""
IMAGINED, GAP_COLOUR = (214, 60, 200), (128, 133, 140)


@dataclass(frozen=True)
class Video:
    """One mp4 and its content. ``step`` is None if the file's name does not contain it."""

    run: str
    kind: str
    step: int | None
    path: Path

    @property
    def caption(self) -> str:
        """What the video shows, and when it was recorded."""
        when = f", step {self.step:,}" if self.step is not None else ""
        return f"{KINDS[self.kind].caption}{when}"


def find_videos(scores: Path, runs: Path) -> list[Video]:
    """The newest video of each kind of each run, from run folders and from ``<run>.<kind>.mp4`` in
    ``scores``.

    Of a run's evaluated episodes only the first is shown.
    """
    found: dict[tuple[str, str], Video] = {}
    for path in sorted(scores.glob("*.mp4")):
        name, _, kind = path.stem.rpartition(".")
        if kind in KINDS:
            found[name, kind] = Video(name, kind, None, path)
    for path in sorted(runs.glob("*/videos/*.mp4")):
        match = re.fullmatch(r"([a-z]+?)0?_(\d+)", path.stem)
        if match and match[1] in KINDS:  # Names sort by step, so the newest is kept.
            run = path.parents[1].name
            found[run, match[1]] = Video(run, match[1], int(match[2]), path)
    for run, kind in list(found):
        if kind == "imagination" and (run, "comparison") in found:
            del found[run, kind]
    return sorted(found.values(), key=_order)


def _order(video: Video) -> tuple[str, int]:
    return video.run, list(KINDS).index(video.kind)


def best_run(videos: list[Video], seeds: dict[str, int]) -> str:
    """The run in ``videos`` to show. A run filmed in an evaluation is preferred, then the most
    kinds of video, then the lowest seed."""

    def rank(run: str) -> tuple[bool, int, int, str]:
        kinds = [video.kind for video in videos if video.run == run]
        return "evaluation" not in kinds, -len(kinds), seeds.get(run, 0), run

    return min({video.run for video in videos}, key=rank)


class Allowance:
    """How much room is left for videos in a page of :data:`MOST_BYTES`."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def take(self, videos: list[Video], problems: list[str]) -> list[Video]:
        """As many of ``videos`` as still fit. The others are named in ``problems``."""
        kept = []
        for video in videos:
            size = video.path.stat().st_size
            if size > self._left:
                problems.append(
                    f"{video.path}: not in the page, which would hold more than "
                    f"{MOST_BYTES // 10**6} MB of videos"
                )
                continue
            self._left -= size
            kept.append(video)
        return kept


def laid_out(video: Video, problems: list[str]) -> bytes:
    """The mp4 with gaps between its sequences and a coloured frame around imagined images.

    A video that cannot be read, or whose layout is not that of the world model's videos, is left
    unchanged.
    """
    content, panels = video.path.read_bytes(), len(KINDS[video.kind].rows)
    if not panels:
        return content
    try:
        frames, fps = read_video(video.path)
    except (OSError, ValueError) as error:
        problems.append(f"{video.path}: shown as it is: {' '.join(str(error).split())}")
        return content
    spaced = space(frames, video.kind)
    if spaced is None:
        return content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, fps=round(fps), least=LEAST) as writer:
            for frame in spaced:
                writer.write(frame)
        return path.read_bytes()


def space(frames: np.ndarray, kind: str) -> np.ndarray | None:
    """Separate the tiles of ``frames``, (T, P*S, R*S, 3) uint8 with P panels of R square tiles
    without gaps. Imagined tiles get a frame in the colour :data:`IMAGINED`. Returns None for
    another layout."""
    panels = len(KINDS[kind].rows)
    length, height, width, _ = frames.shape
    size, rest = divmod(height, panels)
    if rest or size < 8 or width % size:
        return None
    gap = max(4, size // 8)
    count, pitch, border = width // size, size + gap, gap // 4
    whole = np.full((length, panels * pitch + gap, count * pitch + gap, 3), GAP_COLOUR, np.uint8)
    for panel in range(panels):
        for i in range(count):
            y, x = gap + panel * pitch, gap + i * pitch
            tile = frames[:, panel * size : (panel + 1) * size, i * size : (i + 1) * size]
            imagined = _imagined(tile, KINDS[kind].rows[panel])
            framed = whole[:, y - border : y + size + border, x - border : x + size + border]
            framed[imagined] = IMAGINED
            whole[:, y : y + size, x : x + size] = tile
    return whole


def _imagined(tile: np.ndarray, row: str) -> np.ndarray:
    """(T,) bool: the frames of a tile (T, S, S, 3) that no environment showed. Open-loop
    predictions have a line at the top, which is red for predicted frames and green for given
    ones."""
    length, size = tile.shape[:2]
    if row == "imagined":
        return np.arange(length) > 0
    if row == "prediction":
        line = tile[:, : max(1, size // 32)].mean(axis=(1, 2))
        return line[:, 0] > line[:, 1]
    return np.zeros(length, bool)
