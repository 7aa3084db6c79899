"""Markup: text of records made harmless, tables, figures with a table of what they show."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MOST = 2000
_IN_FIGURES = 34


@dataclass(frozen=True)
class Table:
    """Cells of text; the first row's are headings, and the first column's those of the rows.

    Args:
        heads: of the columns.
        rows: of as many cells each, or of one that is the heading of those below.
        marked: indices of rows that are ours.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()


def plain(text: object, most: int = _MOST) -> str:
    """Return a record's text with everything spelt out that is no character to see, and not long.

    Some characters turn the direction of what is read, and others stand in no XML.
    """
    said = str(text)
    if len(said) > most:
        said = f"{said[: most - 1]}…"
    if said.isprintable():
        return said
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in said)


def in_figure(text: object, most: int = _IN_FIGURES) -> str:
    """Return text that is short enough for a figure."""
    return plain(text, most)


def escaped(text: object) -> str:
    """Return text for HTML, in elements and in quoted attributes."""
    return html.escape(plain(text))


def paragraph(text: object, name: str = "note") -> str:
    """Return a paragraph of a class."""
    return f'<p class="{name}">{escaped(text)}</p>'


def code(text: object) -> str:
    """Return a command as it is typed."""
    return f'<pre tabindex="0"><code>{escaped(text)}</code></pre>'


def table(content: Table, caption: str) -> str:
    """Return a table that scrolls by itself where it is wider than the page."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in content.heads)
    body = "".join(
        f"<tr{_kind(content, index)}>{_row(cells, len(content.heads))}</tr>"
        for index, cells in enumerate(content.rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}">'
        f"<table><caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _kind(content: Table, index: int) -> str:
    if len(content.rows[index]) == 1:
        return ' class="group"'
    return ' class="ours"' if index in content.marked else ""


def _row(cells: Sequence[str], columns: int) -> str:
    first, *others = cells
    if not others:
        return f'<th scope="rowgroup" colspan="{columns}">{escaped(first)}</th>'
    return f'<th scope="row">{escaped(first)}</th>' + "".join(
        f"<td>{escaped(cell)}</td>" for cell in others
    )


def figure(title: str, note: str, drawn: str, content: Table, *, wide: bool = False) -> str:
    """Return a card: what is shown, the drawing, and the same figures as a table.

    Args:
        title, note: what it shows, and how to read it.
        drawn: inline SVG.
        content: the same figures.
        wide: it takes the page's width.
    """
    return (
        f'<figure class="card{" wide" if wide else ""}"><figcaption><h4>{escaped(title)}</h4>'
        f'<p class="note">{escaped(note)}</p></figcaption>{drawn}'
        f"<details><summary>Figures as a table</summary>{table(content, title)}</details></figure>"
    )


def grid(cards: Iterable[str]) -> str:
    """Return cards side by side, as many as fit."""
    return f'<div class="grid">{"".join(cards)}</div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return swatches with words.

    Args:
        entries: class of the colour, and the word.
    """
    items = "".join(
        f'<li><span class="swatch {name}"></span>{escaped(word)}</li>' for name, word in entries
    )
    return f'<ul class="legend">{items}</ul>'


def as_sentence(rows: Iterable[Sequence[str]]) -> str:
    """Return a table's rows as a sentence, which describes a figure."""
    return "; ".join(" ".join(filter(None, row)) for row in rows)
