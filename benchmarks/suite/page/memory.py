"""View of memory and start: what each side takes at its peak, and until its first picture."""

from __future__ import annotations

from sdengine.benchmarks.suite.page.figures import MEMORY_NAMES, milliseconds, size
from sdengine.benchmarks.suite.page.gathered import Gathered, Together, marked
from sdengine.benchmarks.suite.page.markup import (
    Table,
    as_sentence,
    figure,
    grid,
    legend,
    paragraph,
)
from sdengine.benchmarks.suite.page.row_plots import Part, Row, bars

# Parts of a start in their order, and how strong their ink is.
_PHASES = {
    "import": ("import", 0.3),
    "load": ("load", 0.5),
    "pack": ("pack, compile or capture", 0.75),
    "first_request": ("first request", 1.0),
}


def memory_and_start(gathered: Gathered, one: Together) -> str:
    """Return a setting's peaks of memory, and the phases of each side's start."""
    known = dict.fromkeys(MEMORY_NAMES)
    for side in one.measured.values():
        known |= dict.fromkeys(side.get("memory", {}))
    cards = [
        card
        for number, key in enumerate(known)
        if (card := peak_card(gathered, one, key, f"m{number}x"))
    ]
    cards += filter(None, [_start(gathered, one)])
    if not cards:
        return paragraph("No side told its memory or its start.")
    said = "Each side alone in a process, from its start to the end of its first request and later."
    return paragraph(said) + grid(cards)


def peak_card(gathered: Gathered, one: Together, key: str, name: str) -> str:
    """Return a card of one kind of memory; "" where no side tells it.

    Args:
        gathered, one: whose sides are shown.
        key: of the sides' memory.
        name: the beginning of the drawing's identifier.
    """
    found = {
        label: value
        for label, side in one.measured.items()
        if (value := side.get("memory", {}).get(key)) is not None
    }
    if not found:
        return ""
    most = max(found.values())
    rows = [
        Row(
            label,
            size(value, most),
            parts=[Part(value, gathered.ink(label), gathered.strength(label))],
            is_ours=label in one.ours,
        )
        for label, value in found.items()
    ]
    cells = [[label, size(value)] for label, value in found.items()]
    title = MEMORY_NAMES.get(key, key)
    drawn = bars(rows, f"{name}{one.number}", f"{title}: {one.label}", as_sentence(cells))
    content = Table(("Side", title), cells, marked(one, cells))
    return figure(title, "shorter is better", drawn, content)


def _start(gathered: Gathered, one: Together) -> str:
    rows, cells = [], []
    for label, side in one.measured.items():
        seconds = side.get("start_seconds", {})
        if not any(seconds.get(key) for key in _PHASES):
            continue
        ink = gathered.ink(label)
        parts = [
            Part(seconds[key], ink, strength)
            for key, (_, strength) in _PHASES.items()
            if key in seconds
        ]
        total = milliseconds(1e3 * sum(part.value for part in parts))
        rows.append(Row(label, total, parts=parts, is_ours=label in one.ours))
        cells.append(
            [
                label,
                *(milliseconds(1e3 * seconds[key]) if key in seconds else "" for key in _PHASES),
                total,
            ]
        )
    if not rows:
        return ""
    drawn = bars(rows, f"a{one.number}", f"Start: {one.label}", as_sentence(cells))
    heads = ("Side", *(word for word, _ in _PHASES.values()), "Together")
    content = Table(heads, cells, marked(one, cells))
    swatches = [
        (f"s-text phase-{key.partition('_')[0]}", word) for key, (word, _) in _PHASES.items()
    ]
    shown = legend(swatches) + drawn
    return figure("Time to the first picture", "shorter is better", shown, content)
