"""Learning curves as a figure, one panel per task."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pwm_core.domain import find_domain
from results.curves import Curve, over_seeds
from results.panels import Findings, Panel
from results.scores import Conditions, Score
from results.style import GREY, INK

WIDTH = 3
"""The number of panels in a row."""
FEW = 30
"""With fewer episodes, each is drawn as a dot, since a line of one point is invisible."""


def draw_curves(panel: Panel, findings: Findings) -> Figure:
    """Draw the mean return of training episodes over seeds, shaded from the lowest to the highest
    seed. Every seed is a thin line. Diamonds are evaluations of checkpoints."""
    known = [task for task in panel.frames.index if task in panel.curves]
    curves = {task: panel.curves[task] for task in [*known, *panel.curves]}
    rows, columns = -(-len(curves) // WIDTH), min(WIDTH, len(curves))
    width = max(2.9 * columns + 2.2, 6.5)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, 2.5 * rows + 0.3), squeeze=False, layout="constrained"
    )
    domain = find_domain(panel.benchmark).benchmark
    labels: set[str] = set()
    for axis, (task, groups) in zip(axes.flat, curves.items(), strict=False):
        for conditions, seeds in groups.items():
            runs = {curve.run for curve in seeds}
            scores = [s for s in findings.scores if s.run in runs and not s.evaluation.label]
            _draw_curve(axis, seeds, scores, findings.colours[conditions])
        axis.set_xlim(0, 1.04 * axis.dataLim.x1)
        labels |= _draw_references(axis, task, panel, findings)
        axis.set_title(task)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid()
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    figure.supxlabel(domain.frame_name, fontsize=9)
    figure.supylabel(domain.score_name, fontsize=9)
    figure.legend(handles=_handles(panel, findings, labels), loc="outside right upper")
    return figure


def _handles(panel: Panel, findings: Findings, labels: set[str]) -> list[pyplot.Line2D]:
    """The entries of the legend: our settings, the diamonds and the reference lines."""
    seeds: dict[Conditions, set[int]] = defaultdict(set)
    for groups in panel.curves.values():
        for conditions, curves in groups.items():
            seeds[conditions] |= {curve.seed for curve in curves}
    order = [conditions for conditions in findings.names if conditions in seeds]
    handles = [
        pyplot.Line2D([], [], color=findings.colours[c], lw=2, label=findings.names[c])
        for c in order
    ]
    handles.append(pyplot.Line2D([], [], color=GREY, ls="", marker="D", ms=5, label="evaluation"))
    for label in sorted(labels):
        style = ":" if label == "random play" else "--"
        handles.append(pyplot.Line2D([], [], color=INK, ls=style, lw=1.2, label=label))
    return handles


def _draw_curve(axis: Axes, seeds: list[Curve], scores: list[Score], colour: str) -> None:
    """Draw the curves of one task and setting, and its evaluations."""
    for curve in seeds:
        marker = "." if len(curve.frames) < FEW else None
        axis.plot(curve.frames, curve.returns, marker=marker, color=colour, lw=0.6, alpha=0.4)
    frames, mean, least, most = over_seeds(seeds)
    axis.plot(frames, mean, color=colour, lw=2)
    axis.fill_between(frames, least, most, color=colour, alpha=0.2, lw=0)
    points = sorted({row.frames for score in scores for row in score.rows})
    for frame in points:
        values = [row.mean for score in scores for row in score.rows if row.frames == frame]
        centre = float(np.mean(values))
        bounds = [[centre - min(values)], [max(values) - centre]]
        axis.errorbar(frame, centre, bounds, fmt="D", ms=5, color=colour, mec=INK, mew=0.6,
                      elinewidth=1, capsize=2.5)  # fmt: skip


def _draw_references(axis: Axes, task: str, panel: Panel, findings: Findings) -> set[str]:
    """Draw lines for random play and for the first published method that has the task. Returns
    their labels."""
    drawn = set()
    repeats = [r[task].evaluation.frame_skip for r in panel.results.values() if task in r]
    lines = {"random play": findings.random(panel.benchmark, task, (repeats or [1])[0])}
    for table in panel.tables[:1]:
        for method in table.headline[:1]:
            if task in table.scores.index:
                lines[f"{table.label(method)}, published"] = table.scores.loc[task, method]
    for label, value in lines.items():
        if pd.notna(value):
            axis.axhline(value, color=INK, lw=1.2, ls=":" if label == "random play" else "--")
            drawn.add(label)
    return drawn


def caption(panel: Panel) -> str:
    """The caption: what is drawn, and over how many seeds."""
    many = {len(seeds) for groups in panel.curves.values() for seeds in groups.values()}
    low, high = min(many), max(many)
    number = f"{low} to {high}" if low < high else f"{low}"
    frames = find_domain(panel.benchmark).benchmark.frame_name
    return (
        f"Returns of training episodes against {frames} (the action repeat counted), {number} "
        f"seed{'s' * (high > 1)} a setting. Thick: mean over seeds; shaded: from the lowest to the "
        "highest seed; thin: every seed. Diamonds: evaluated checkpoints, whiskers from the lowest "
        "to the highest seed. Dotted: random play; dashed: the published score at its full budget"
    )
