"""One page of all records: views that a script switches, and one long page without it.

Everything is inside the file. Its policy lets the browser run the one script and use the one style
sheet that are known here by their hashes, show pictures that are inside the file too, and nothing
else, whatever a record says.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdengine.benchmarks.suite.page import (
    conditions,
    memory,
    operations,
    pictures,
    scaling,
    speed,
    summary,
)
from sdengine.benchmarks.suite.page.gathered import Gathered, Sourced, Together, gather
from sdengine.benchmarks.suite.page.ink import drawing
from sdengine.benchmarks.suite.page.markup import escaped
from sdengine.errors import ConfigError, OutputError
from sdengine.storage.whole_file import whole_file

_FOLDER = Path(__file__).parent
TITLE = "sdengine benchmark"


@dataclass(frozen=True)
class _View:
    """One view.

    Args:
        name: its anchor.
        title: in the navigation.
        each: returns what it shows of a setting; None for nothing.
        whole: returns what it shows of all records; stands below, or above with `is_first`.
    """

    name: str
    title: str
    each: Callable[[Gathered, Together], str] | None = None
    whole: Callable[[Gathered], str] | None = None
    heading: str = ""


_VIEWS = (
    _View("summary", "Summary", summary.overview, summary.glance, "All settings"),
    _View("speed", "Speed", speed.speed),
    _View("memory", "Memory and start", memory.memory_and_start),
    _View("scaling", "Scaling", None, scaling.scaling),
    _View("roofline", "Roofline and profile", operations.step_roofline, operations.profiles),
    _View("parity", "Parity", lambda _, one: pictures.parity(one)),
    _View("conditions", "Conditions", lambda _, one: conditions.conditions(one),
          conditions.environment, "Environment"),
)  # fmt: skip


def render(sources: Sequence[Sourced], title: str = TITLE) -> str:
    """Return the page of records, the same for the same records.

    Args:
        sources: at least one.
        title: of the page.

    Raises:
        ConfigError: there is no record.
    """
    if not sources:
        raise ConfigError("The files have no records, so there is nothing to show.")
    style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    gathered = gather(sources)
    with drawing():
        views = {view: html for view in _VIEWS if (html := _view(view, gathered))}
    links = "".join(f'<a href="#{view.name}">{escaped(view.title)}</a>' for view in views)
    options = "".join(
        f'<option value="{one.number}">{escaped(one.label)}</option>' for one in gathered.settings
    )
    sections = "".join(
        f'<section class="view" id="{view.name}" aria-labelledby="{view.name}-h">'
        f'<h2 id="{view.name}-h">{escaped(view.title)}</h2>{html}</section>'
        for view, html in views.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="records" content="{digest(sources)}">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title><style>{style}</style><script>{script}</script></head>\n"
        f'<body><header><div class="bar"><h1>{escaped(title)}</h1>'
        '<button type="button" id="theme" class="scripted">Dark</button></div>'
        f"{conditions.lede(gathered)}</header>\n"
        f'<nav aria-label="Views"><div class="links">{links}</div>'
        '<label class="scripted" id="choice"><span>Setting</span> '
        f'<select id="setting">{options}</select></label></nav>\n<main>{sections}</main>\n'
        "<footer>Made by <code>sdengine bench report</code>; all figures are those of its records."
        "</footer>"
        "</body></html>\n"
    )


def write(sources: Sequence[Sourced], output: Path, title: str = TITLE) -> None:
    """Write the page of records, whole or not at all.

    Raises:
        ConfigError: there is no record.
        OutputError: the file cannot be written.
    """
    page = render(sources, title)
    try:
        with whole_file(output) as file:
            file.write(page.encode())
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}.") from None


def digest(sources: Sequence[Sourced]) -> str:
    """Return what tells a page's records from others; its drawing may differ by libraries."""
    text = json.dumps([source.record for source in sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _view(view: _View, gathered: Gathered) -> str:
    """Return a view's blocks, one for each setting, and what is of all of them."""
    html = ""
    if view.each is not None:
        html += "".join(
            f'<div class="setting" data-setting="{one.number}"><h3>{escaped(one.label)}</h3>'
            f"{view.each(gathered, one)}</div>"
            for one in gathered.settings
        )
    if view.whole is not None:
        whole = view.whole(gathered)
        if whole and view.heading and (gathered.settings or view.name != "summary"):
            html += f"<h3>{escaped(view.heading)}</h3>{whole}"
        elif whole and not view.heading:
            html += whole
    return html


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
