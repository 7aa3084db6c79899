"""Ink: figures of matplotlib as SVG that stands in the page and takes its colours from the page.

What matplotlib writes is rewritten: colours become classes, for which the style sheet has one value
in the light and one in the dark; style attributes, which the page's policy forbids, are gone, and
so is everything that is not seen.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from sdengine.benchmarks.suite.page.markup import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Element = ElementTree.Element[str]

# Colours of the style sheet: text, quiet text, hairlines and the ground; ours, peers and others.
INKS = (
    "text", "quiet", "line", "ground",
    *(f"ours{index}" for index in range(4)),
    *(f"peer{index}" for index in range(8)),
)  # fmt: skip
OURS = tuple(name for name in INKS if name.startswith("ours"))
PEERS = tuple(name for name in INKS if name.startswith("peer"))
# matplotlib gets a colour of its own for each, by which it is found again.
COLOURS = {name: f"#0000{index:02x}" for index, name in enumerate(INKS, start=1)}
_NAMES = {colour: name for name, colour in COLOURS.items()}
# Sizes of text in CSS pixels.
USUAL, SMALL = 12.5, 11.5
_KEPT = ("stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity",
         "text-anchor")  # fmt: skip
_NUMBER = r"(-?[0-9.]+(?:e-?[0-9]+)?)"
_POINT = re.compile(rf"([ML]) {_NUMBER} {_NUMBER}")
_START = re.compile(rf"M 0 {_NUMBER}")
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sdengine",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "path.simplify": False,
    "lines.linewidth": 1.0,
    "font.family": ["DejaVu Sans"],  # which comes with matplotlib
    "font.size": USUAL,
    "lines.solid_capstyle": "butt",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside this: the same on every machine, whatever the user's settings are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        # Browsers have letters that this font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many CSS pixels, and axes over all of it that count them downwards."""
    figure = blank(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of so many CSS pixels: a point is drawn as one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def inline(figure: Figure, name: str, title: str, description: str, shown: str = "") -> str:
    """Return a figure as an element of the page.

    Args:
        figure: drawn in COLOURS.
        name: of the figure, an identifier that no other in the page has.
        title, description: for people who do not see it.
        shown: a class that says on which widths it is shown.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Text in it is ours or has passed `plain`, and matplotlib escapes it.
    root = ElementTree.fromstring(buffer.getvalue())
    body = _Writer().element(root)
    return (
        f'<svg class="plot {shown}" viewBox="{root.get("viewBox")}" role="img"'
        f' aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{escaped(title)}</title>'
        f'<desc id="{name}-d">{escaped(description)}</desc>{body}</svg>'
    )


class _Writer:
    """Writes elements of one SVG anew. Markers are circles."""

    def __init__(self) -> None:
        self._radii: dict[str, str] = {}

    def element(self, element: Element) -> str:
        """Return an element with what is inside it; groups and invisible things are left out."""
        tag = element.tag.removeprefix(_SVG)
        if tag == "defs":
            self._radii |= {f"#{found.get('id')}": _radius(found) for found in element}
            return ""
        if tag in ("g", "svg"):
            return "".join(self.element(child) for child in element)
        if tag == "use":
            place = f'cx="{_rounded(element, "x")}" cy="{_rounded(element, "y")}"'
            size = self._radii[element.attrib[_LINK]]
            return f'<circle {place} r="{size}"{_presented(element)}/>'
        if tag == "path":
            return f'<path d="{_path(element.attrib["d"])}"{_presented(element)}/>'
        if tag == "text":
            place = f'x="{_rounded(element, "x")}" y="{_rounded(element, "y")}"'
            return f"<text {place}{_presented(element)}>{escape(element.text or '')}</text>"
        return ""  # what says who wrote it


def _radius(marker: Element) -> str:
    """Return a circle's radius: its path starts at its lowest point."""
    found = _START.match(marker.get("d", ""))
    return _short(found[1]) if found else "0"


def _rounded(element: Element, key: str) -> str:
    return _short(element.attrib[key])


def _presented(element: Element) -> str:
    """Return a style attribute's declarations as classes and attributes."""
    classes, attributes = [], ""
    for declaration in element.get("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in ("fill", "stroke") and value in _NAMES:
            classes.append(f"{'fk'[key == 'stroke']}-{_NAMES[value]}")
        elif key == "font-weight":
            classes.append("strong")
        elif key == "font-size" and value == f"{SMALL}px":
            classes.append("small")
        elif key in _KEPT:
            attributes += f' {key}="{value}"'
    return attributes + (f' class="{" ".join(classes)}"' if classes else "")


def _path(data: str) -> str:
    """Return a path's lines in as few characters as they need."""
    written, before = "", ("", "")
    for letter, x, y in _POINT.findall(data):
        here = _short(x), _short(y)
        if letter == "L" and here[1] == before[1]:
            written += f"H{here[0]}"
        elif letter == "L" and here[0] == before[0]:
            written += f"V{here[1]}"
        else:
            written += f"{letter}{here[0]} {here[1]}"
        before = here
    return written + "z" * data.rstrip().endswith("z")


def _short(number: str) -> str:
    return f"{round(float(number), 1) + 0.0:.1f}".removesuffix(".0")  # of -0.0 it makes 0.0
