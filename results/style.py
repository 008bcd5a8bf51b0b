"""The style and the file formats of figures: PNG and PDF for other uses, SVG for the page.

Text, grid and background have fixed colours in the files. In the page's SVG the style sheet sets
these colours, so a figure is readable on white and on black.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

matplotlib.use("Agg")
INK, FAINT, PAPER, GREY = "#222323", "#d9dadb", "#fefefd", "#80858c"
THEMED = {INK: "var(--ink)", FAINT: "var(--faint)", PAPER: "var(--paper)"}
MARKERS = ("D", "s", "^", "v", "P", "X", "o", "p", "h", "*")
"""The markers of published methods."""

pyplot.rcParams.update(
    {
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "axes.titlecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "grid.color": FAINT, "grid.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8.5, "legend.frameon": False, "svg.fonttype": "none",
        "axes.facecolor": "none",
    }
)  # fmt: skip


def save(figure: Figure, path: Path) -> str:
    """Write ``path``.png and ``path``.pdf. Returns the SVG for the page."""
    figure.savefig(path.with_suffix(".png"), dpi=130, facecolor="white")
    # Dates are left out, so that the same results give the same file.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    text = io.StringIO()
    # The ids inside the figures of one page must differ.
    with pyplot.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, themed in THEMED.items():
        svg = svg.replace(drawn, themed)
    width = figure.get_size_inches()[0] * 100
    for name in ("figure_", "axes_", "patch_", "text_", "line2d_", "matplotlib.axis_", "xtick_",
                 "ytick_", "legend_", "LineCollection_", "PathCollection_",
                 "FillBetweenPolyCollection_"):  # fmt: skip
        svg = svg.replace(f'<g id="{name}', f'<g class="{name}')
    return svg.replace("<svg", f'<svg style="max-width:{width:.0f}px"', 1)
