"""Tests of the page's videos: gaps, frames around imagined images, and random beside trained
agents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pwm_core.runs.mp4 import VideoWriter
from pwm_core.training.model_videos import GIVEN, PREDICTED
from results.report import NOT_FILMED, Report, Side
from results.videos import GAP_COLOUR, IMAGINED, Video, laid_out, read_video, space
from tests.results.folders import Folders

SIZE, GAP = 16, 4


def write(path: Path, frames: np.ndarray) -> None:
    with VideoWriter(path, 5) as video:
        for frame in frames:
            video.write(frame)


def tile(frames: np.ndarray, panel: int, i: int) -> np.ndarray:
    """One tile of the spaced video together with its frame."""
    y, x = (GAP + k * (SIZE + GAP) for k in (panel, i))
    edge = GAP // 4
    return frames[:, y - edge : y + SIZE + edge, x - edge : x + SIZE + edge]


def test_tiles_are_set_apart_and_imagined_ones_framed() -> None:
    """In this open-loop prediction the second frame of the second sequence is predicted."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 3 * SIZE, 2 * SIZE, 3)).astype(np.uint8)
    frames[:, SIZE] = GIVEN
    frames[1, SIZE, SIZE:] = PREDICTED
    spaced = space(frames, "openloop")
    assert spaced.shape == (2, 3 * (SIZE + GAP) + GAP, 2 * (SIZE + GAP) + GAP, 3)
    for panel in range(3):
        for i in range(2):
            found, edge = tile(spaced, panel, i), GAP // 4
            original = frames[:, panel * SIZE : (panel + 1) * SIZE, i * SIZE : (i + 1) * SIZE]
            np.testing.assert_array_equal(found[:, edge:-edge, edge:-edge], original)
            for step in range(2):
                framed = (panel, i, step) == (1, 1, 1)
                colour = IMAGINED if framed else GAP_COLOUR
                assert (found[step, 0] == colour).all(), (panel, i, step)


@pytest.mark.parametrize(
    ("kind", "panels", "imagined"), [("imagination", 1, 0), ("comparison", 3, 2)]
)
def test_only_the_first_imagined_frame_is_real(kind: str, panels: int, imagined: int) -> None:
    spaced = space(np.zeros((3, panels * SIZE, SIZE, 3), np.uint8), kind)
    for panel in range(panels):
        edges = tile(spaced, panel, 0)[:, 0, 0]
        assert [tuple(edge) == IMAGINED for edge in edges] == [False, *[panel == imagined] * 2]


def test_videos_of_another_layout_stay_as_they_are(tmp_path: Path) -> None:
    assert space(np.zeros((1, 48, 50, 3), np.uint8), "openloop") is None
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    video = Video("run", "openloop", 1, tmp_path / "broken.mp4")
    problems: list[str] = []
    assert laid_out(video, problems) == b"no video"
    assert "broken.mp4: shown as it is" in problems[0]


def test_a_video_keeps_its_frames_and_their_rate(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write(path, np.zeros((7, 3 * 64, 2 * 64, 3), np.uint8))
    anew = tmp_path / "anew.mp4"
    anew.write_bytes(laid_out(Video("run", "comparison", 1, path), []))
    frames, rate = read_video(anew)
    assert (len(frames), rate) == (7, 5)
    assert min(frames.shape[1:3]) >= 256


def sides(folders: Folders) -> tuple[list[Side], str]:
    """The contents of the section of videos, and its text."""
    report = Report(folders.gather(), folders.scores / "report", 100, folders.scores / "random")
    (section,) = [section for section in report.sections if section.title == "Videos"]
    return section.blocks, section.text


def test_only_shown_videos_count_against_the_limit(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two videos fit. Of each game one of three runs is shown, so all that is shown fits."""
    for game in ("Alien", "Boxing", "Zaxxon"):
        for seed in (1, 2, 3):
            run = folders.add(game, seed, 1.0)
            (folders.scores / f"{run}.imagination.mp4").write_bytes(bytes(1000))
    monkeypatch.setattr("results.videos.MOST_BYTES", 2000)
    report = Report(folders.gather(), folders.scores / "report", 100, None)
    (section,) = [section for section in report.sections if section.title == "Videos"]
    assert [len(side.videos) for side in section.blocks] == [1, 1]
    (line,) = [line for line in report.problems if "not in the page" in line]
    assert "Zaxxon-0.25-seed1" in line


@pytest.mark.slow
def test_the_random_agent_stands_beside_the_trained_one(folders: Folders) -> None:
    """One run of every task and setting is shown: the one that was filmed in an evaluation."""
    picture = np.zeros((2, 64, 64, 3), np.uint8)
    for seed in (1, 2):
        run = folders.add("Pong", seed, 1.0)
        write(folders.scores / f"{run}.imagination.mp4", picture)
    blocks, text = sides(folders)
    assert [(side.title, side.random) for side in blocks] == [
        ("Pong, full (run Pong-0.25-seed1)", None)
    ]
    assert text.endswith(NOT_FILMED), "what is missing is said"
    write(folders.runs / run / "videos" / "evaluation0_000102000.mp4", picture)
    (folders.scores / "random").mkdir()
    write(folders.scores / "random" / "Pong.mp4", picture)
    (side,), text = sides(folders)
    assert side.title == "Pong, full (run Pong-0.25-seed2)"
    assert [video.kind for video in side.videos] == ["evaluation", "imagination"]
    assert side.random == folders.scores / "random" / "Pong.mp4"
    assert NOT_FILMED not in text
    assert folders.command().returncode == 0
    page = (folders.scores / "report" / "index.html").read_text()
    assert page.count("<video") == 3
    assert page.index("trained agent") < page.index("random agent") < page.index("imagined by")
