"""The report's figures of the headline and the aggregates. Learning curves are in
:mod:`results.curve_figure`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pwm_core.domain import find_domain
from results.aggregates import METRICS
from results.headline import main_settings, random_scores
from results.panels import Findings, Panel
from results.settings import Result
from results.shown import counts
from results.style import GREY, MARKERS, PAPER

FAR = 3.0
"""The axis is logarithmic if a normalised score is larger than this."""


class Method(NamedTuple):
    """A published method in the figures: its label, marker and normalised or plain scores."""

    label: str
    marker: str
    scores: pd.Series


def drawn_methods(panel: Panel, findings: Findings) -> Iterator[Method]:
    """The methods that the published tables mark for the figures, each with a marker."""
    found = [(table, method) for table in panel.tables for method in table.headline]
    for (table, method), marker in zip(found, MARKERS, strict=False):
        scores = scaled(panel, findings, table.scores[method])
        yield Method(table.label(method), marker, scores.reindex(panel.tasks))


def scaled(panel: Panel, findings: Findings, scores: pd.Series) -> pd.Series:
    """Scores that can share an axis: unchanged if the tasks have one scale, else normalised."""
    if find_domain(panel.benchmark).benchmark.full_score is not None:
        return scores
    return pd.Series(
        {task: findings.normalise(panel.benchmark, task, value) for task, value in scores.items()},
        dtype=float,
    )


def axis_name(panel: Panel, findings: Findings) -> str:
    """The name of the axis that shows the result of :func:`scaled`."""
    domain = find_domain(panel.benchmark).benchmark
    if domain.full_score is not None:
        return f"{domain.score_name} (at most {domain.full_score:g})"
    return findings.normalise.unit(panel.benchmark)


def draw_headline(panel: Panel, findings: Findings) -> Figure:
    """Draw one row per task with the mean above them. It shows our runs with every seed, random
    play and published work."""
    tasks = panel.tasks
    settings = main_settings(panel)
    rows = len(tasks) + (len(tasks) > 1)
    figure, axis = pyplot.subplots(figsize=(10.8, 1.25 + 0.34 * rows), layout="constrained")
    places = dict(zip(tasks, range(len(tasks)), strict=True))
    _mark(axis, places, scaled(panel, findings, random_scores(panel, findings)),
          marker="|", ms=13, color=GREY, mew=2, label="random play")  # fmt: skip
    for i, method in enumerate(drawn_methods(panel, findings)):
        fill = GREY if i == 0 else "none"
        _mark(axis, places, method.scores, marker=method.marker, ms=6.5, color=GREY, mfc=fill,
              mew=1.2, label=f"{method.label}, published")  # fmt: skip
    for i, conditions in enumerate(settings):
        shift = (i - (len(settings) - 1) / 2) * 0.3
        results = panel.results[conditions]
        seeds = counts({len(r.values) for r in results.values()}, "seed")
        _draw_ours(axis, panel, findings, results, shift, findings.colours[conditions],
                   f"ours: {findings.names[conditions]} ({seeds})", places)  # fmt: skip
    if rows > len(tasks):
        axis.axhline(-0.5, color=GREY, lw=0.8)
        places = {f"mean, {len(tasks)} tasks": -1} | places
    axis.set_yticks(list(places.values()), list(places))
    axis.set_ylim(len(tasks) - 0.4, min(places.values()) - 0.6)
    axis.set_xlabel(axis_name(panel, findings))
    axis.grid(axis="x")
    if find_domain(panel.benchmark).benchmark.full_score is None and axis.dataLim.x1 > FAR:
        axis.set_xscale("symlog", linthresh=1)
    handles, labels = axis.get_legend_handles_labels()
    ours = len(settings)  # Ours are drawn last and named first.
    figure.legend(
        handles[-ours:] + handles[:-ours], labels[-ours:] + labels[:-ours],
        loc="outside right upper",
    )  # fmt: skip
    return figure


def _mark(axis: Axes, places: dict[str, int], scores: pd.Series, **style: object) -> None:
    """Draw one marker per task. If the method has all of several tasks, also draw one for the
    mean."""
    known = scores.reindex(list(places)).dropna()
    x, y = list(known), [places[task] for task in known.index]
    if len(known) == len(places) > 1:
        x, y = [known.mean(), *x], [-1, *y]
    axis.plot(x, y, ls="", **style)


def _draw_ours(
    axis: Axes,
    panel: Panel,
    findings: Findings,
    results: dict[str, Result],
    shift: float,
    colour: str,
    label: str,
    places: dict[str, int],
) -> None:
    """Draw the mean as a large dot, every seed as a small dot, and a line from the lowest to the
    highest seed."""
    means = {}
    for task, result in results.items():
        values = scaled_values(panel, findings, task, list(result.values.values()))
        means[task], y = float(np.mean(values)), places[task] + shift
        axis.plot([min(values), max(values)], [y, y], color=colour, lw=2, alpha=0.6)
        axis.plot(values, [y] * len(values), ls="", marker=".", ms=6, color=colour)
    x, y = list(means.values()), [places[task] + shift for task in means]
    if len(means) == len(places) > 1:
        x, y = [float(np.mean(x)), *x], [-1 + shift, *y]
    axis.plot(x, y, ls="", marker="o", ms=9, color=colour, mec=PAPER, mew=1, label=label, zorder=5)


def scaled_values(panel: Panel, findings: Findings, task: str, values: list[float]) -> list[float]:
    """The same as :func:`scaled`, for the values of one task."""
    if find_domain(panel.benchmark).benchmark.full_score is not None:
        return values
    return [float(findings.normalise(panel.benchmark, task, value)) for value in values]


def draw_aggregates(
    found: pd.DataFrame, others: pd.DataFrame, colours: dict[str, str], unit: str
) -> Figure:
    """Draw one panel per metric and one row per setting with its 95 % interval. The other methods
    follow; they have only a mean and a median."""
    settings = list(dict.fromkeys(found["setting"]))
    names = [*settings, *others.method]
    figure, axes = pyplot.subplots(
        1, len(METRICS), figsize=(10.8, 1.1 + 0.27 * len(names)), sharey=True, layout="constrained"
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        for i, setting in enumerate(settings):
            part = found[(found["setting"] == setting) & (found["metric"] == metric)].iloc[0]
            axis.plot([part.low, part.high], [i, i], color=colours[setting], lw=7, alpha=0.45,
                      solid_capstyle="butt")  # fmt: skip
            axis.plot(part.value, i, "o", ms=7, color=colours[setting], mec=PAPER)
        if metric in others:
            y = np.arange(len(others)) + len(settings)
            axis.plot(others[metric], y, "D", ms=5, color=GREY)
        better = "lower" if metric == "optimality gap" else "higher"
        axis.set_title(f"{metric} ({better} is better)")
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.grid(axis="x")
        axis.margins(x=0.1)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel(unit, fontsize=9)
    return figure


def draw_profiles(found: pd.DataFrame, colours: dict[str, str], unit: str) -> Figure:
    """Draw performance profiles with 95 % bands."""
    figure, axis = pyplot.subplots(figsize=(9, 3.4), layout="constrained")
    for setting, part in found.groupby("setting", sort=False):
        colour = colours[setting]
        axis.step(part["score"], part["fraction"], color=colour, lw=2, label=setting)
        axis.fill_between(
            part["score"], part["low"], part["high"], step="pre", color=colour, alpha=0.2, lw=0
        )
    axis.set(
        xlabel=f"{unit}, threshold", ylabel="share of runs above it", ylim=(-0.02, 1.02),
    )  # fmt: skip
    axis.grid()
    figure.legend(loc="outside right upper")
    return figure
