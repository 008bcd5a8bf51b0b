"""A table to read, and how numbers are written in all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NONE = "-"


@dataclass
class Shown:
    """A table whose cells are text already.

    Attributes:
        head: rows of (text, columns it spans).
        rows: a line break in a cell divides the number from what belongs to it.
        notes: footnotes.
        strong: rows of means, set apart.
        marked: columns of our own runs.
        words: columns that hold words.
        folded: shown on demand.
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
    """A score: one decimal, thousands apart."""
    return NONE if value is None or np.isnan(value) else f"{value + 0.0:,.1f}"


def share(value: float | None) -> str:
    """A normalised score or a probability: three decimals."""
    return NONE if value is None or np.isnan(value) else f"{value + 0.0:.3f}"


def count(value: float | None) -> str:
    """A whole number, thousands apart."""
    return NONE if value is None or np.isnan(value) else f"{round(value):,}"


def counts(values: set[int], unit: str = "") -> str:
    """Several of them: ``1 seed``, ``1 to 3 seeds``."""
    low, high = min(values), max(values)
    text = count(low) if low == high else f"{count(low)} to {count(high)}"
    return f"{text} {unit}{'s' * (high != 1)}" if unit else text


def spread(low: float, high: float, written: object = score) -> str:
    """``low`` to ``high``, empty where either is unknown."""
    return "" if np.isnan(low) or np.isnan(high) else f"{written(low)} to {written(high)}"
