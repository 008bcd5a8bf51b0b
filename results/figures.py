"""The report's figures: matplotlib and rliable's own plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from results.aggregates import METRICS
from results.curves import Curve, over_seeds
from results.published import UNITS
from results.scores import Conditions, Score
from results.tables import SCORE

matplotlib.use("Agg")
COLOURS = pyplot.get_cmap("tab10").colors
WIDTH = 3
"""Panels beside each other."""
FEW = 30
"""Episodes below which each is a dot: a line of one point cannot be seen."""


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path``.png and ``path``.pdf."""
    written = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    figure.savefig(written[0], dpi=150, bbox_inches="tight")
    # Without dates, so that the same results make the same file.
    figure.savefig(written[1], bbox_inches="tight", metadata={"CreationDate": None})
    pyplot.close(figure)
    return written


def draw_curves(
    curves: dict[str, dict[Conditions, list[Curve]]],
    scores: list[Score],
    benchmark: str,
    references: pd.DataFrame,
) -> Figure:
    """One panel per task: mean over seeds of training episodes' returns, shaded from the least to
    the most of a seed, every seed a thin line; diamonds are evaluations of checkpoints."""
    conditions = sorted({c for groups in curves.values() for c in groups})
    colours = {c: COLOURS[i % len(COLOURS)] for i, c in enumerate(conditions)}
    rows = -(-len(curves) // WIDTH)
    columns = min(WIDTH, len(curves))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for axis, (task, groups) in zip(axes.flat, curves.items(), strict=False):
        for condition, seeds in groups.items():
            runs = {curve.run for curve in seeds}
            evaluated = [score for score in scores if score.run in runs]
            _draw_curve(axis, seeds, evaluated, colours[condition])
        _draw_references(axis, task, references)
        axis.set(title=task, xlabel="frames", ylabel=SCORE[benchmark])
        axis.set_xlim(0, 1.04 * axis.dataLim.x1)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    handles = [
        pyplot.Line2D([], [], color=colours[c], lw=2, label=f"{c.config}; {c.protocol_label}")
        for c in conditions
    ]
    handles.append(pyplot.Line2D([], [], color="0.3", ls="", marker="D", ms=5, label="evaluation"))
    figure.legend(handles=handles, loc="outside lower center", fontsize=8)
    return figure


def _draw_curve(axis: Axes, seeds: list[Curve], scores: list[Score], colour: tuple) -> None:
    """The curves of one task and condition, and its evaluations."""
    for curve in seeds:
        marker = "." if len(curve.frames) < FEW else None
        axis.plot(curve.frames, curve.returns, marker=marker, color=colour, lw=0.6, alpha=0.35)
    frames, mean, least, most = over_seeds(seeds)
    axis.plot(frames, mean, color=colour, lw=2)
    axis.fill_between(frames, least, most, color=colour, alpha=0.2, lw=0)
    points = sorted({row.frames for score in scores for row in score.rows})
    for frame in points:
        values = [row.mean for score in scores for row in score.rows if row.frames == frame]
        centre = float(np.mean(values))
        bounds = [[centre - min(values)], [max(values) - centre]]
        axis.errorbar(frame, centre, bounds, fmt="D", ms=5, color=colour, mec="k", capsize=3)


def _draw_references(axis: Axes, task: str, references: pd.DataFrame) -> None:
    """Random play and human score, where they are known and not far off what is drawn."""
    if task not in references.index:
        return
    low, high = axis.get_ylim()
    for name, style in (("Random", ":"), ("Human", "--")):
        value = references.loc[task, name]
        if not low - (high - low) < value < high + (high - low):
            continue
        axis.axhline(value, color="0.4", lw=1, ls=style)
        across = axis.get_yaxis_transform()  # x as a share of the panel, y as a score
        axis.text(0.99, value, name.lower(), transform=across, ha="right", va="bottom", fontsize=7)


def draw_intervals(found: pd.DataFrame, benchmark: str) -> Figure:
    """Aggregates with 95 % intervals, one panel per metric, one row per setting."""
    settings = list(dict.fromkeys(found["setting"]))
    figure, axes = pyplot.subplots(
        1,
        len(METRICS),
        figsize=(3 * len(METRICS), 1.3 + 0.4 * len(settings)),
        sharey=True,
        layout="constrained",
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        for i, setting in enumerate(settings):
            part = found[(found["setting"] == setting) & (found["metric"] == metric)].iloc[0]
            colour = COLOURS[i % len(COLOURS)]
            axis.barh(i, part.high - part.low, 0.6, left=part.low, color=colour, alpha=0.7)
            axis.plot([part.value] * 2, [i - 0.3, i + 0.3], color="k", lw=1.5)
        better = "lower" if metric == "optimality gap" else "higher"
        axis.set_title(f"{metric} ({better} is better)", fontsize=10)
        axis.set_yticks(range(len(settings)), settings)
        axis.set_ylim(len(settings) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.25)
        axis.set_xlabel(UNITS[benchmark])
        axis.use_sticky_edges = False  # bars otherwise begin at the very edge
        axis.margins(x=0.08)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylabel("setting")
    return figure


def draw_profiles(found: pd.DataFrame, benchmark: str) -> Figure:
    """Performance profiles with 95 % bands."""
    figure, axis = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    for i, (setting, part) in enumerate(found.groupby("setting", sort=False)):
        colour = COLOURS[i % len(COLOURS)]
        axis.step(part["score"], part["fraction"], color=colour, lw=2, label=f"setting {setting}")
        axis.fill_between(
            part["score"], part["low"], part["high"], step="pre", color=colour, alpha=0.2, lw=0
        )
    axis.set(
        xlabel=f"{UNITS[benchmark]} $\\tau$",
        ylabel="fraction of runs with a score above $\\tau$",
        ylim=(-0.02, 1.02),
    )
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


def draw_improvement(found: pd.DataFrame) -> Figure:
    """Probability of improvement with 95 % intervals, one row per pair."""
    figure, axis = pyplot.subplots(figsize=(7, 1.2 + 0.35 * len(found)), layout="constrained")
    for i, row in enumerate(found.itertuples()):
        axis.barh(i, row.high - row.low, 0.6, left=row.low, color=COLOURS[0], alpha=0.7)
        axis.plot([row.value] * 2, [i - 0.3, i + 0.3], color="k", lw=1.5)
    axis.axvline(0.5, color="0.4", ls="--", lw=1)
    axis.set_yticks(range(len(found)), [f"{r.x} over {r.y}" for r in found.itertuples()])
    axis.set(xlim=(-0.02, 1.02), ylim=(len(found) - 0.5, -0.5))
    axis.set_xlabel("probability that a run of X scores above Y, mean over tasks")
    axis.grid(axis="x", alpha=0.25)
    return figure
