"""The report as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pwm_core.runtime import git_commit
from results.report import Drawn, Report, Section, Side
from results.shown import Shown
from results.videos import KINDS, Video, laid_out

TITLE = "PaMoRL: results"
STYLE = Path(__file__).with_name("page.css")
WIDE = 14
"""A table with more columns is set in smaller type."""
SHORT = 27
"""A cell with fewer characters is not broken into lines."""
NOTES = "Notes: what is left out, missing or apart"


def written() -> str:
    """When the report was made, and from which commit."""
    commit, _, dirty = (git_commit() or "unknown").partition("-")
    code = commit[:12] + (" with changes" if dirty else "")
    return f"Written on {datetime.now(UTC):%Y-%m-%d at %H:%M} UTC by commit {code}"


def anchor(title: str) -> str:
    """The anchor of a heading, which links point to."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def write_markdown(report: Report, path: Path) -> None:
    """Write the report with links to its figures. Videos are only in the page."""
    shown = [section for section in report.sections if not _only_videos(section)]
    lines = [f"# {TITLE}", "", f"{written()}.", ""]
    lines += [f"- [{s.title}](#{_github(s.title)})" for s in shown] + [""]
    for section in shown:
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        for block in section.blocks:
            lines += _block_markdown(block)
    if report.problems:
        lines += [f"## {NOTES}", "", *(f"- {line}" for line in report.problems), ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _github(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _only_videos(section: Section) -> bool:
    return bool(section.blocks) and all(isinstance(block, Side) for block in section.blocks)


def _block_markdown(block: Shown | Drawn | Side) -> Iterator[str]:
    if isinstance(block, Drawn):
        yield from (f"![{block.caption}]({block.png.name})", "", f"{block.caption}.", "")
    elif isinstance(block, Shown):
        yield from (f"{block.caption}:", "", *_table_markdown(block), "")
        if block.notes:
            yield from (*(f"- {note}" for note in block.notes), "")


def _table_markdown(table: Shown) -> Iterator[str]:
    """A Markdown table. Markdown has one row of headings, so a method's heading is followed by that
    of its group."""

    def row(cells: list[str]) -> str:
        safe = (text.replace("|", "\\|").replace("\n", "<br>") for text in cells)
        return "| " + " | ".join(safe) + " |"

    heads = [[text for text, span in line for _ in range(span)] for line in table.head]
    names = ["\n".join(filter(None, reversed(parts))) for parts in zip(*heads, strict=True)]
    yield row(names)
    align = ("---|" if i in table.words else "--:|" for i in range(len(names)))
    yield "|" + "".join(align)
    for number, cells in enumerate(table.rows):
        yield row([f"**{c}**" if c and number in table.strong else c for c in cells])


def write_html(report: Report, path: Path) -> None:
    """Write one file that needs no other: figures and videos are embedded."""
    titles = [section.title for section in report.sections]
    body = [line for section in report.sections for line in _section_html(section, report.problems)]
    titles += [NOTES.partition(":")[0]] if report.problems else []
    links = "".join(f"<li><a href='#{anchor(t)}'>{html.escape(t)}</a></li>" for t in titles)
    top = (
        f"<h1>{TITLE}</h1><p class='when'>{html.escape(written())}.</p>"
        f"<nav aria-label='contents'><ul>{links}</ul></nav>"
    )
    path.write_text(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{TITLE}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
        + "\n".join([top, *body, *_notes_html(report.problems)])
        + "\n</body></html>\n",
        encoding="utf-8",
    )


def _notes_html(problems: list[str]) -> Iterator[str]:
    if problems:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in problems)
        name = anchor(NOTES.partition(":")[0])
        yield f"<h2 id='{name}'>Notes</h2><details><summary>{len(problems)} of them: what is left"
        yield f" out, missing or apart</summary><ul>{items}</ul></details>"


def _section_html(section: Section, problems: list[str]) -> Iterator[str]:
    yield f"<h2 id='{anchor(section.title)}'>{html.escape(section.title)}</h2>"
    if section.text:
        yield f"<p>{html.escape(section.text)}</p>"
    for block in section.blocks:
        if isinstance(block, Drawn):
            text = html.escape(block.caption)
            figure = (
                f"<figure role='img' aria-label='{text}'><div class='scroll'>{block.svg}</div>"
                f"<figcaption>{text}.</figcaption></figure>"
            )
            yield _folded(text.partition(":")[0], figure) if block.folded else figure
        elif isinstance(block, Shown):
            yield _table_html(block)
        else:
            yield _side_html(block, problems)


def _table_html(table: Shown) -> str:
    """The table with its caption and footnotes. It is folded if the table says so."""
    head = []
    for level, line in enumerate(table.head):
        last, cells = level == len(table.head) - 1, []
        for place, (text, span) in enumerate(line):
            kind = _kind(table, place, " " * SHORT) if last else " class=group"
            cells.append(f"<th{kind} colspan={span}>{html.escape(text)}</th>")
        head.append(f"<tr>{''.join(cells)}</tr>")
    rows = []
    for number, cells in enumerate(table.rows):
        texts = (f"<td{_kind(table, i, text)}>{_cell(text)}</td>" for i, text in enumerate(cells))
        first = " first" * (number - 1 not in table.strong)
        strong = f" class='strong{first}'" if number in table.strong else ""
        rows.append(f"<tr{strong}>{''.join(texts)}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    wide = " class=wide" * (sum(span for _, span in table.head[0]) > WIDE)
    whole = (
        f"<div class='scroll'><table{wide}><thead>{''.join(head)}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    whole += f"<ul class='notes'>{notes}</ul>" if notes else ""
    caption = html.escape(table.caption)
    if table.folded:
        return _folded(caption, whole)
    return f"<div class='caption'>{caption}</div>{whole}"


def _folded(caption: str, content: str) -> str:
    return f"<details><summary>{caption}</summary>{content}</details>"


def _kind(table: Shown, column: int, text: str) -> str:
    names = ["words"] * (column in table.words) + ["own"] * (column in table.marked)
    names += ["short"] * (len(text) < SHORT)
    return f" class='{' '.join(names)}'" if names else ""


def _cell(text: str) -> str:
    first, *rest = (html.escape(line) for line in text.split("\n"))
    return first + "".join(f"<small>{line}</small>" for line in rest)


def _side_html(side: Side, problems: list[str]) -> str:
    shown = [_video_html(video, problems) for video in side.videos]
    if side.random:
        content = side.random.read_bytes()
        shown.insert(1, _figure_html(content, "random agent, an episode of uniform actions", ()))
    return f"<h3>{html.escape(side.title)}</h3><div class='videos'>{''.join(shown)}</div>"


def _video_html(video: Video, problems: list[str]) -> str:
    return _figure_html(laid_out(video, problems), video.caption, KINDS[video.kind].rows)


def _figure_html(content: bytes, caption: str, rows: tuple[str, ...]) -> str:
    """A figure that holds a video, with the names of its panels beside it."""
    names = "".join(
        f"<span class='{'imagined' if row in ('imagined', 'prediction') else ''}'>{row}</span>"
        for row in rows
    )
    data = f"data:video/mp4;base64,{base64.b64encode(content).decode('ascii')}"
    return (
        f"<figure{' class=single' * (not rows)}><div class='panes'><div class='rows'>{names}</div>"
        f"<video controls loop muted playsinline src='{data}'></video></div>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
