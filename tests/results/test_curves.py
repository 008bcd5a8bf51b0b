"""Learning curves agree with values computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from results.curve_figure import caption, draw_curves
from results.curves import Curve, over_seeds, smooth
from results.scores import Conditions
from results.style import INK
from tests.results.folders import Folders


def test_curve_over_seeds_by_hand() -> None:
    """Windows have 10 frames. Values are averaged within a window and interpolated over an empty
    one. There are none outside the range that all seeds cover."""
    here = Conditions("atari", (("name", "pamorl"),), "atari")

    def curve(seed: int, frames: Sequence[float], returns: Sequence[float]) -> Curve:
        return Curve(f"r{seed}", "Pong", seed, here, np.array(frames), np.array(returns))

    first = curve(1, [1, 9, 25, 400], [0, 2, 5, 9])
    second = curve(2, [15, 25, 385], [1, 7, 7])
    edges = np.linspace(0, 40, 5)
    low = curve(1, [1, 9, 25], [0, 2, 5])
    np.testing.assert_allclose(smooth(low, edges), [1, 3, 5, np.nan])
    frames, mean, least, most = over_seeds([first, second])
    assert (frames[0], frames[-1]) == (15, 385)
    assert (mean[0], least[0], most[0]) == (2, 1, 3)
    assert (mean[1], least[1], most[1]) == (6, 5, 7)


def test_curves_have_lines_for_random_play_and_the_published_score(folders: Folders) -> None:
    """Every panel has the lines, whatever the runs reached. The legend is outside the panels."""
    for game in ("Pong", "Boxing"):
        folders.add(game, 1, 1.0)
    found = folders.gather()
    figure = draw_curves(found.panels[0], found)
    for axis, random, storm in zip(figure.axes, (0.1, -20.7), (79.68, 11.28), strict=True):
        level = {line.get_linestyle(): line.get_ydata()[0] for line in axis.lines
                 if line.get_color() == INK}  # fmt: skip
        assert level == {":": random, "--": storm}
        assert axis.get_legend() is None
    (legend,) = figure.legends
    texts = {text.get_text() for text in legend.get_texts()}
    assert texts == {"full", "evaluation", "random play", "STORM, published"}


def test_the_caption_says_how_many_seeds(folders: Folders) -> None:
    folders.add("Pong", 1, 1.0)
    assert "1 seed a setting" in caption(folders.panel())
    folders.add("Boxing", 1, 1.0)
    folders.add("Boxing", 2, 1.0)
    assert "1 to 2 seeds a setting" in caption(folders.panel())
