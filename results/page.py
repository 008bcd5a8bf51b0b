"""The report as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pandas as pd

from results.report import Report, Section
from results.videos import Video

TITLE = "PaMoRL: results"
NONE = "-"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
caption { min-width: 40em; } .scroll { overflow-x: auto; margin-top: 1.2em; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, .text { text-align: left; }
thead th { border-bottom: 2px solid #888; } figure { margin: 1.5em 0; } img { max-width: 100%; }
caption, figcaption { text-align: left; color: #555; font-size: 13px; padding: 4px 0; }
.notes { background: #fff6df; border: 1px solid #e5cf8c; padding: .5em 1em; }
.videos { display: flex; flex-wrap: wrap; gap: 1em; align-items: end; }
.videos figure { margin: 0; width: 340px; }
video { width: 100%; image-rendering: pixelated; background: #000; }
"""


def cell(value: object) -> str:
    """A value to read: four significant digits, thousands apart, "-" for none."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, int) or hasattr(value, "__index__"):
        return f"{value:,}"
    return str(value)


def write_markdown(report: Report, path: Path) -> None:
    """The report with links to its figures; videos are in the page alone."""
    lines = [f"# {TITLE}", "", *_notes_markdown(report.problems)]
    for section in report.sections:
        if section.videos:
            continue
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        for caption, table in section.tables:
            lines += [f"{caption}:", "", *_table_markdown(table), ""]
        for caption, figure in section.figures:
            lines += [f"![{caption}]({figure.name})", "", f"{caption}.", ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _notes_markdown(problems: list[str]) -> list[str]:
    if not problems:
        return []
    return ["## Left out, missing or apart", "", *(f"- {line}" for line in problems), ""]


def _table_markdown(table: pd.DataFrame) -> Iterator[str]:
    def row(cells: list[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    yield row([str(column) for column in table.columns])
    yield "|" + "---|" * len(table.columns)
    for values in table.itertuples(index=False):
        yield row([cell(value) for value in values])


def write_html(report: Report, path: Path) -> None:
    """One file that needs no other: figures and videos are inside."""
    body = [f"<h1>{TITLE}</h1>", *_notes_html(report.problems)]
    for section in report.sections:
        body += _section_html(section)
    path.write_text(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{TITLE}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n",
        encoding="utf-8",
    )


def _notes_html(problems: list[str]) -> Iterator[str]:
    if problems:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in problems)
        yield f"<div class='notes'><h3>Left out, missing or apart</h3><ul>{items}</ul></div>"


def _section_html(section: Section) -> Iterator[str]:
    yield f"<h2>{html.escape(section.title)}</h2>"
    if section.text:
        yield f"<p>{html.escape(section.text)}</p>"
    for caption, table in section.tables:
        yield _table_html(caption, table)
    for caption, figure in section.figures:
        text = html.escape(caption)
        yield (
            f"<figure><img alt='{text}' src='{_data(figure, 'image/png')}'>"
            f"<figcaption>{text}.</figcaption></figure>"
        )
    for run, videos in groupby(section.videos, key=lambda video: video.run):
        shown = "".join(_video_html(video) for video in videos)
        yield f"<h3>{html.escape(run)}</h3><div class='videos'>{shown}</div>"


def _table_html(caption: str, table: pd.DataFrame) -> str:
    head = "".join(
        f"<th{' class=text' * any(isinstance(value, str) for value in table[column])}>"
        f"{html.escape(str(column))}</th>"
        for column in table.columns
    )
    rows = []
    for values in table.itertuples(index=False):
        cells = "".join(
            f"<td{' class=text' * isinstance(value, str)}>{html.escape(cell(value))}</td>"
            for value in values
        )
        rows.append(f"<tr>{cells}</tr>")
    return (
        f"<div class='scroll'><table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _video_html(video: Video) -> str:
    return (
        f"<figure><video controls loop muted playsinline "
        f"src='{_data(video.path, 'video/mp4')}'></video>"
        f"<figcaption>{html.escape(video.caption)}</figcaption></figure>"
    )


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
