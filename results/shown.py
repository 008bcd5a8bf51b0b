"""Tables for reading, and the format of numbers in all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NONE = "-"


@dataclass
class Shown:
    """A table whose cells are already text.

    Attributes:
        head: rows of (text, number of columns it spans).
        rows: a line break in a cell separates the number from its additional information.
        notes: footnotes.
        strong: rows of means, which are emphasised.
        marked: columns of our own runs.
        words: columns that hold words.
        folded: whether the table is shown only on demand.
    """

    caption: str
    head: list[list[tuple[str, int]]]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    strong: set[int] = field(default_factory=set)
    marked: set[int] = field(default_factory=set)
    words: set[int] = field(default_factory=lambda: {0})
    folded: bool = False


def simple(caption: str, head: list[str], rows: list[list[str]], **options: object) -> Shown:
    """A table with one row of headings."""
    return Shown(caption, [[(text, 1) for text in head]], rows, **options)


def score(value: float | None) -> str:
    """Format a score with one decimal and a thousands separator."""
    return NONE if value is None or np.isnan(value) else f"{value + 0.0:,.1f}"


def share(value: float | None) -> str:
    """Format a normalised score or a probability with three decimals."""
    return NONE if value is None or np.isnan(value) else f"{value + 0.0:.3f}"


def count(value: float | None) -> str:
    """Format a whole number with a thousands separator."""
    return NONE if value is None or np.isnan(value) else f"{round(value):,}"


def counts(values: set[int], unit: str = "") -> str:
    """Format the range of several numbers: ``1 seed``, ``1 to 3 seeds``."""
    low, high = min(values), max(values)
    text = count(low) if low == high else f"{count(low)} to {count(high)}"
    return f"{text} {unit}{'s' * (high != 1)}" if unit else text


def spread(low: float, high: float, written: object = score) -> str:
    """Format the range from ``low`` to ``high``; empty if either is unknown."""
    return "" if np.isnan(low) or np.isnan(high) else f"{written(low)} to {written(high)}"
