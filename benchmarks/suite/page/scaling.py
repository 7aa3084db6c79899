"""View of scaling: time over resolution, batch and threads, and how costs grow along an axis."""

from __future__ import annotations

from sdengine.benchmarks.suite.page.figures import (
    STAGE_NAMES,
    milliseconds,
    size,
    span,
    tick_of_size,
    tick_of_time,
    trimmed,
)
from sdengine.benchmarks.suite.page.gathered import (
    Gathered,
    Scaling,
    precision_of,
    system_of,
)
from sdengine.benchmarks.suite.page.ink import OURS, PEERS
from sdengine.benchmarks.suite.page.line_plots import Line, lines
from sdengine.benchmarks.suite.page.markup import (
    Table,
    as_sentence,
    escaped,
    figure,
    grid,
    paragraph,
)
from sdengine.benchmarks.suite.suite_records import Fit, Growth

_AXES = {
    "pixels": "pixels of a picture",
    "batch": "pictures of a request",
    "steps": "sampler steps",
    "chunks": "chunks of the prompt",
    "controls": "ControlNets",
    "loras": "LoRAs",
}
_STAGE_INKS = {
    "end_to_end": OURS[0],
    "unet_step": PEERS[1],
    "text_encoder": PEERS[2],
    "vae_decoder": PEERS[3],
    "outside": PEERS[0],
}


def scaling(gathered: Gathered) -> str:
    """Return figures of every axis along which there are two settings or more, and of growths."""
    html = ""
    for number, found in enumerate(gathered.scalings(), 1):
        cards = [
            card
            for stage in ("end_to_end", "unet_step")
            if (card := _scaling_card(gathered, found, stage, f"l{number}{stage}"))
        ]
        if cards:
            html += f"<h3>{escaped(found.title)} <small>{escaped(found.label)}</small></h3>"
            html += grid(cards)
    for number, growth in enumerate(gathered.growths, 1):
        html += _growth(growth, number)
    return html or paragraph(
        "The records have neither two settings that differ in resolution, batch or threads alone, "
        "nor a growth."
    )


def _scaling_card(gathered: Gathered, found: Scaling, stage: str, name: str) -> str:
    points = found.points(stage)
    if not points:
        return ""
    ours = {label for one in found.settings.values() for label in one.ours}
    drawn, cells, dashes = [], [], dict[str, int]()
    for label, spreads in points.items():
        system = system_of(label)
        drawn.append(
            Line(
                system,
                precision_of(label),
                [
                    (
                        value,
                        one["median"],
                        *((one["p10"], one["p90"]) if one["n"] > 1 else (None,) * 2),
                    )
                    for value, one in spreads
                ],
                gathered.ink(label),
                dashes.get(system, 0),
                label in ours,
            )
        )
        dashes[system] = dashes.get(system, 0) + 1
        by_value = {value: milliseconds(one["median"]) for value, one in spreads}
        cells.append([label, *(by_value.get(value, "") for value in found.settings)])
    title = f"{STAGE_NAMES[stage]} over {found.title.lower()}"
    shown = lines(drawn, _whole, tick_of_time, name, title, as_sentence(cells))
    heads = ("Side", *map(str, found.settings))
    content = Table(heads, cells, frozenset(i for i, row in enumerate(cells) if row[0] in ours))
    return figure(title, "lower is better; both scales are logarithmic", shown, content)


def _growth(growth: Growth, number: int) -> str:
    axis = _AXES.get(growth["axis"], growth["axis"])
    label = f"{growth['arch']}, {growth['backend']} {growth['precision']}"
    points = sorted(growth["points"], key=lambda point: point["value"])
    # No logarithm: nothing of what is counted, such as no ControlNet.
    shift = 1.0 if points and points[0]["value"] == 0 else 0.0
    drawn, cells = [], []
    for stage, name in STAGE_NAMES.items():
        found = [
            (point["value"] + shift, spread)
            for point in points
            if (spread := point["stages_ms"].get(stage)) and spread["median"] > 0
        ]
        fit = growth["fits"].get(stage)
        if not found:
            continue
        drawn.append(
            Line(
                name,
                _power(fit),
                [
                    (
                        value,
                        one["median"],
                        *((one["p10"], one["p90"]) if one["n"] > 1 else (None,) * 2),
                    )
                    for value, one in found
                ],
                _STAGE_INKS[stage],
                is_ours=stage == "end_to_end",
            )
        )
        by_value = {value: milliseconds(one["median"]) for value, one in found}
        cells.append(
            [name, *(by_value.get(point["value"] + shift, "") for point in points), _exponent(fit)]
        )
    cards = []
    heads = ("", *(_whole(point["value"]) for point in points), "Exponent, 95 %")
    note = f"n: {axis}; both scales are logarithmic; n^1 is proportional"

    def count(value: float) -> str:
        return _whole(value - shift)

    if drawn:
        title = f"Time over {axis}"
        shown = lines(drawn, count, tick_of_time, f"g{number}t", f"{title}: {label}",
                      as_sentence(cells))  # fmt: skip
        cards.append(figure(title, note, shown, Table(heads, cells)))
    peaks = [(p["value"] + shift, peak) for p in points if (peak := p.get("peak_bytes"))]
    if peaks:
        fit = growth["fits"].get("peak_bytes")
        line = Line("Peak memory", _power(fit), [(x, y, None, None) for x, y in peaks], OURS[0],
                    is_ours=True)  # fmt: skip
        by_value = {x: size(y) for x, y in peaks}
        cells = [["Peak memory", *(by_value.get(p["value"] + shift, "") for p in points),
                  _exponent(fit)]]  # fmt: skip
        title = f"Memory over {axis}"
        shown = lines(
            [line], count, tick_of_size, f"g{number}m", f"{title}: {label}", as_sentence(cells)
        )
        cards.append(figure(title, note, shown, Table(heads, cells)))
    title = f"Growth with {axis}"
    body = grid(cards) if cards else paragraph("Nothing was measured.")
    return f"<h3>{escaped(title)} <small>{escaped(label)}</small></h3>{body}"


def _power(fit: Fit | None) -> str:
    return "" if fit is None or "exponent" not in fit else f"∝ n^{fit['exponent']:.2f}"


def _exponent(fit: Fit | None) -> str:
    if fit is None or "exponent" not in fit:
        return ""
    low, high = fit.get("low"), fit.get("high")
    ends = "" if low is None or high is None else f" ({span(f'{low:.2f}', f'{high:.2f}')})"
    return f"{fit['exponent']:.2f}{ends}"


def _whole(value: float) -> str:
    """Return a count: of pixels that are a square's, its sides."""
    side = round(value**0.5)
    if value >= 4096 and side * side == value:
        return f"{side}²"
    return f"{value:g}" if value < 1e5 else trimmed(value)
