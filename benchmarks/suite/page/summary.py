"""View of the summary: the main figures of a setting, and all settings in one table."""

from __future__ import annotations

from sdengine.benchmarks.suite.page.conditions import noises
from sdengine.benchmarks.suite.page.figures import (
    decibels,
    milliseconds,
    percent,
    ratio_interval,
    size,
    times,
)
from sdengine.benchmarks.suite.page.gathered import REFERENCE, Gathered, Together
from sdengine.benchmarks.suite.page.markup import Table, escaped, grid, paragraph, table
from sdengine.benchmarks.suite.page.memory import peak_card
from sdengine.benchmarks.suite.page.speed import ratio_card, stage_card, state_of
from sdengine.benchmarks.suite.suite_records import MEASURED, Ratio, Side


def glance(gathered: Gathered) -> str:
    """Return a table of all settings, with the speed-up over each peer end to end."""
    peers = dict.fromkeys(
        record["peer"] for one in gathered.settings for record in one.records if record["peer"]
    )
    heads = ["Ours", "End to end", "U-Net step", "Memory", *(f"to {p}" for p in peers)]
    rows: list[list[str]] = []
    noisy = False
    for one in gathered.settings:
        found = {(ours, peer): ratio for ours, peer, ratio in one.ratios("end_to_end")}
        doubtful = {record["peer"] for record in one.records if record["noise"]["is_noisy"]}
        noisy = noisy or bool(doubtful)
        rows.append([one.label])
        for ours in one.ours:
            side = one.sides[ours]
            memory = side.get("memory", {}).get("peak_bytes")
            rows.append([
                ours,
                _median(side, "end_to_end"),
                _median(side, "unet_step"),
                "" if memory is None else size(memory),
                *(_to_peer(one, found.get((ours, p)), p) + " !" * (p in doubtful) for p in peers),
            ])  # fmt: skip
    said = "Columns of peers: how many times as fast as the peer ours is end to end"
    said += "; ! marks what was measured among noise." if noisy else "."
    return paragraph(said) + table(Table(heads, rows), "All settings")


def _to_peer(one: Together, ratio: Ratio | None, peer: str) -> str:
    if ratio is not None:
        return times(ratio["ratio"])
    side = one.sides.get(peer)
    return state_of(side) if side is not None and side["state"] != MEASURED else ""


def overview(gathered: Gathered, one: Together) -> str:
    """Return what makes a setting doubtful, its main figures, large, and those of all sides."""
    cards = (
        stage_card(gathered, one, "end_to_end", "se"),
        ratio_card(gathered, one, "end_to_end", "sr"),
        peak_card(gathered, one, "peak_bytes", "sm"),
    )
    return noises(one) + _tiles(one) + grid(filter(None, cards))


def _median(side: Side, stage: str) -> str:
    spread = side.get("stages_ms", {}).get(stage)
    if spread is None:
        return state_of(side) if side["state"] != MEASURED else ""
    scaled = "≈ " if stage == "end_to_end" and side.get("scaled_from_steps") else ""
    return scaled + milliseconds(spread["median"])


def _tiles(one: Together) -> str:
    """Return the setting's main figures of our first measured side, large."""
    label = next((label for label in one.ours if label in one.measured), None)
    if label is None:
        return paragraph("No side of ours was measured in this setting.")
    side = one.sides[label]
    stages = side.get("stages_ms", {})
    found: list[tuple[str, str, str]] = []
    if "end_to_end" in stages:
        found.append((_median(side, "end_to_end"), "a picture, end to end", label))
    best = [entry for entry in one.ratios("end_to_end") if entry[0] == label]
    chosen = [entry for entry in best if entry[1] == REFERENCE] or best
    if chosen:
        _, peer, ratio = chosen[0]
        ends = ratio_interval(ratio)
        found.append(
            (times(ratio["ratio"]), f"the speed of {peer}", f"95 %: {ends}" if ends else "")
        )
        slowest = min(best, key=lambda entry: entry[2]["ratio"])
        if slowest[1] != peer:
            ends = ratio_interval(slowest[2])
            said = f"the speed of {slowest[1]}, the fastest peer"
            found.append((times(slowest[2]["ratio"]), said, f"95 %: {ends}" if ends else ""))
    if "unet_step" in stages:
        peak = side.get("percent_of_peak")
        share = f"{percent(peak['percent'])} of the {peak['dtype']} peak" if peak else ""
        said = f"{share}, by plain algorithms" if share else ""
        found.append((_median(side, "unet_step"), "a U-Net step", said))
    memory = side.get("memory", {}).get("peak_bytes")
    if memory is not None:
        found.append((size(memory), "memory at its peak", "of the process"))
    psnr = side.get("errors", {}).get("image_psnr_db")
    if psnr is not None:
        found.append((decibels(psnr), f"to {REFERENCE}'s picture", "PSNR"))
    items = "".join(
        f"<li><strong>{escaped(big)}</strong><span>{escaped(said)}</span>"
        f"<small>{escaped(more)}</small></li>"
        for big, said, more in found
    )
    return f'<ul class="tiles">{items}</ul>'
