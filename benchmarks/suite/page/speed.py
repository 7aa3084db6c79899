"""View of speed: how long each stage takes on all sides, and how many times as fast ours is."""

from __future__ import annotations

from sdengine.benchmarks.suite.page.figures import (
    STAGE_NAMES,
    STAGE_NOTES,
    digits,
    interval,
    milliseconds,
    ratio_interval,
    times,
)
from sdengine.benchmarks.suite.page.gathered import (
    Gathered,
    Together,
    marked,
    precision_of,
    system_of,
)
from sdengine.benchmarks.suite.page.markup import (
    Table,
    as_sentence,
    figure,
    grid,
    paragraph,
)
from sdengine.benchmarks.suite.page.row_plots import Part, Row, bars, ratios
from sdengine.benchmarks.suite.suite_records import Side

STAGES = tuple(STAGE_NAMES)
_STATES = ("not run", "failed", "out of memory")


def state_of(side: Side) -> str:
    """Return what a side that was not measured became."""
    return side["state"] if side["state"] in _STATES else "not measured"


def speed(gathered: Gathered, one: Together) -> str:
    """Return a setting's stages of all sides, and the speed-up over each peer."""
    times_of = [card for stage in STAGES if (card := stage_card(gathered, one, stage, "t"))]
    pace = _pace_card(gathered, one)
    faster = [card for stage in STAGES if (card := ratio_card(gathered, one, stage, "r"))]
    scaled = {
        label: steps
        for label, side in one.measured.items()
        if (steps := side.get("scaled_from_steps"))
    }
    said = (
        "Medians; the line on a bar and the range beside it span the 10th to the 90th percentile."
    )
    if scaled:
        named = ", ".join(f"{label} from {steps}" for label, steps in scaled.items())
        said += f" ≈: scaled to {one.first['setting']['steps']} steps: {named}."
    html = f"<h4>Time</h4>{paragraph(said)}{grid([*times_of, *pace])}"
    if faster:
        note = (
            "The peer's time as a multiple of ours in the same rounds, with the 95 % interval of a "
            "bootstrap where there are three values or more. Right of the mark at 1 ours is faster."
        )
        html += f"<h4>Speed-up over each peer</h4>{paragraph(note)}{grid(faster)}"
    return html


def stage_card(gathered: Gathered, one: Together, stage: str, name: str) -> str:
    spreads = {
        label: side["stages_ms"][stage]
        for label, side in one.measured.items()
        if stage in side.get("stages_ms", {})
    }
    if not spreads:
        return ""
    most = max(spread["median"] for spread in spreads.values())
    rows, cells = [], []
    for label, side in one.sides.items():
        is_ours = label in one.ours
        if label not in spreads:
            said = state_of(side) if label not in one.measured else "not told apart"
            rows.append(Row(label, said, is_ours=is_ours))
            cells.append([label, said, "", "", ""])
            continue
        spread = spreads[label]
        is_scaled = stage == "end_to_end" and bool(side.get("scaled_from_steps"))
        has_ends = spread["n"] > 1
        rows.append(
            Row(
                label,
                ("≈ " if is_scaled else "") + milliseconds(spread["median"], most),
                interval(spread, most),
                [Part(spread["median"], gathered.ink(label), gathered.strength(label))],
                spread["p10"] if has_ends else None,
                spread["p90"] if has_ends else None,
                is_ours,
            )
        )
        cells.append(
            [
                label,
                *(milliseconds(spread[key]) for key in ("median", "p10", "p90")),
                str(spread["n"]),
            ]
        )
    title, note = STAGE_NAMES[stage], f"{STAGE_NOTES[stage]}; shorter is better"
    drawn = bars(rows, f"{name}{one.number}{stage}", f"{title}: {one.label}", as_sentence(cells))
    content = Table(("Side", "Median", "p10", "p90", "n"), cells, marked(one, cells))
    return figure(title, note, drawn, content)


def _pace_card(gathered: Gathered, one: Together) -> list[str]:
    rows, cells = [], []
    for label, side in one.measured.items():
        pace = side.get("pictures_per_minute")
        if pace is not None:
            joules = side.get("joules_per_picture")
            energy = "" if joules is None else f"{digits(joules)} J"
            part = Part(pace, gathered.ink(label), gathered.strength(label))
            rows.append(Row(label, digits(pace), energy, [part], is_ours=label in one.ours))
            cells.append([label, digits(pace), energy])
    if not rows:
        return []
    has_energy = any(row.also for row in rows)
    note = "longer is better" + ("; joules a picture beside it" if has_energy else "")
    drawn = bars(rows, f"p{one.number}", f"Pictures per minute: {one.label}", as_sentence(cells))
    content = Table(("Side", "A minute", "Energy a picture"), cells, marked(one, cells))
    return [figure("Pictures per minute", note, drawn, content)]


def ratio_card(gathered: Gathered, one: Together, stage: str, name: str) -> str:
    rows, cells = [], []
    several = len(one.ours) > 1
    is_one_system = len({system_of(label) for label in one.ours}) == 1
    for ours, peer, found in one.ratios(stage):
        short = precision_of(ours) if is_one_system else ours
        row_name = f"{short} to {peer}" if several else peer
        ends = ratio_interval(found)
        part = Part(found["ratio"], gathered.ink(ours), gathered.strength(ours))
        rows.append(Row(row_name, times(found["ratio"]), ends, [part], found["low"], found["high"]))
        cells.append([ours, peer, times(found["ratio"]), ends, str(found.get("n", ""))])
    if not rows:
        return ""
    title = f"{STAGE_NAMES[stage]}: speed-up"
    who = system_of(cells[0][0]) if is_one_system and several else "" if several else cells[0][0]
    note = f"{who}: times as fast as each peer".removeprefix(": ")
    drawn = ratios(rows, f"{name}{one.number}{stage}", f"{title}, {one.label}", as_sentence(cells))
    heads = ("Ours", "Peer", "Ratio", "95 % interval", "n")
    return figure(title, note, drawn, Table(heads, cells))
