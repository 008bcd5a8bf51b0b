"""The figures of a study: learning curves, and final scores with their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from results.curves import Curve, over_seeds
from results.settings import COLOURS
from results.style import GREY, INK

TOGETHER = 4
"""The most variants in one panel of curves; the default is drawn in each."""

Curves = dict[str, dict[str, list[Curve]]]
"""Task -> variant -> the curves of the seeds."""


def _means(curves: Curves) -> Iterator[tuple[str, str, np.ndarray]]:
    """Task, variant and (4, n): frames, and mean, minimum and maximum over seeds."""
    for task, variants in curves.items():
        for name, seeds in variants.items():
            yield task, name, np.stack(list(over_seeds(seeds)))


def curve_table(curves: Curves) -> pd.DataFrame:
    """The curves of :func:`draw_curves` as a table, from which the figure can be made again."""
    columns = ["frames", "mean", "lowest seed", "highest seed"]
    parts = [
        pd.DataFrame({"task": task, "variant": name, **dict(zip(columns, values, strict=True))})
        for task, name, values in _means(curves)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def draw_curves(curves: Curves, variants: list[str]) -> Figure:
    """Draw the mean return of training episodes over seeds, shaded from the lowest to the highest
    seed: a row per task, a column for every few variants, each with the default (``variants[0]``)
    in grey."""
    default, *others = variants
    groups = [others[i : i + TOGETHER] for i in range(0, len(others), TOGETHER)] or [[]]
    size = 3.3 * len(groups), 2.6 * len(curves) + 0.3
    figure, axes = pyplot.subplots(
        len(curves), len(groups), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    lines = {(task, name): values for task, name, values in _means(curves)}
    for row, task in zip(axes, curves, strict=True):
        for axis, group in zip(row, groups, strict=True):
            for name, colour in zip([default, *group], [GREY, *COLOURS], strict=False):
                if (task, name) in lines:
                    _draw_curve(axis, lines[task, name], name, colour)
            axis.set_title(task)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.grid()
            axis.legend(fontsize=7)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("return", fontsize=9)
    return figure


def _draw_curve(axis: Axes, values: np.ndarray, name: str, colour: str) -> None:
    frames, mean, least, most = values
    axis.plot(frames, mean, color=colour, lw=1.8, label=name)
    axis.fill_between(frames, least, most, color=colour, alpha=0.15, lw=0)


def draw_scores(made: dict[str, pd.DataFrame], variants: list[str]) -> Figure:
    """Draw a row per variant: the normalised score of every run, the difference of their mean from
    the default's, and the probability that the variant is better, both with their intervals."""
    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(11, 0.32 * len(variants) + 1.2), sharey=True, layout="constrained"
    )
    places = {name: len(variants) - row for row, name in enumerate(variants)}
    for colour, (task, own) in zip(
        itertools.cycle(COLOURS), made["scores"].groupby("task"), strict=False
    ):
        heights = [places[name] for name in own["variant"]]
        left.plot(own["normalised"], heights, "o", ms=3, color=colour, alpha=0.7, label=task)
    _draw_intervals(middle, made["difference"], places)
    middle.axvline(0, color=GREY, lw=1)
    middle.set(xlabel=f"mean minus {variants[0]}'s")
    _draw_intervals(right, made["improvement"], places)
    left.set(yticks=list(places.values()), yticklabels=list(places), xlabel="normalised score")
    right.axvline(0.5, color=GREY, lw=1)
    right.set(xlim=(-0.03, 1.03), xlabel=f"P(better than {variants[0]})")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12 + 0.6 / len(variants)), ncols=3)
    for axis in (left, middle, right):
        axis.grid(axis="x")
    return figure


def _draw_intervals(axis: Axes, frame: pd.DataFrame, places: dict[str, int]) -> None:
    for _, row in frame.iterrows():
        height = places[row["variant"]]
        if pd.notna(row["low"]):
            axis.plot([row["low"], row["high"]], [height, height], color=INK, lw=1.5)
        axis.plot(row["value"], height, "D", ms=5, color=INK)
