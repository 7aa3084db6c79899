"""Headline: the five figures of the project's README, computed from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.measures import median_ratio

if TYPE_CHECKING:
    from sdengine.benchmarks.report_sections import Records

_UNET = ("sd15-native", "unet", 512)
_REFERENCE = "diffusers fp32"


def headline(records: Records) -> str:
    """Return one table of five rows, on which processor they were measured, and what was not."""
    unet = native.newest_speed(records.networks, *_UNET)
    if unet is None:
        raise ValueError(f"no record times {_UNET} beside OpenVINO")
    *_, requests = native.request_groups(records.requests).values()
    memory = next(r for r in reversed(records.comparisons) if r["case"]["arch"] == "sd15")
    rows = [
        _prompt_following(records.prompt_following),
        _pictures(records.pictures),
        _unet(unet),
        _requests(requests),
        _memory(memory),
    ]
    places = dict.fromkeys(
        (record["machine"]["processor"], record["threads"]) for record in (unet, requests[-1])
    )
    where = "; ".join(f"{name}, {threads} threads" for name, threads in places)
    below = f"SD 1.5 has synthetic weights; times and memory: {where}."
    if not any("gpu" in record for record in records.comparisons):
        below += " **Nothing is measured on a GPU yet.**"
    return f"{table(['', 'against', 'bf16', 'int8'], rows, texts=2)}\n\n{below}"


def _prompt_following(records: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {(r["size"], r["precision"]): r["percent_right"] for r in records}
    size = min(pixels for pixels, _ in found)
    cells = []
    for precision in ("bf16", "int8"):
        right = found[size, precision]
        cells.append(f"{right['one object']['all']:g} % / {right['two objects']['all']:g} %")
    return [f"demo model, {size} pixels: prompts followed", "prompts of one object / two", *cells]


def _pictures(record: Mapping[str, Any]) -> list[str]:
    lowest, exact = (
        min(min(cells[precision]) for cells in record["psnr_db"].values())
        for precision in ("bf16", "fp32")
    )
    label = f"demo model, {record['side']} pixels: lowest PSNR"
    return [label, "diffusers in fp32", f"{lowest:.1f} dB (in fp32 {exact:.1f} dB)", ""]


def _unet(record: Mapping[str, Any]) -> list[str]:
    name, seconds = native.fastest_openvino(record)
    against = f"OpenVINO in {name.partition(' ')[2]}, {seconds:.2f} s"
    ratios = [native.speed_ratio(record, own) for own in native.OWN]
    shown = [f"{ratio:.2f}x as fast" if ratio else "" for ratio in ratios]
    return [f"SD 1.5, {record['size']} pixels: U-Net", against, *shown]


def _requests(records: Sequence[Mapping[str, Any]]) -> list[str]:
    last = records[-1]
    cells = []
    for own in native.OWN:
        theirs, ours = zip(*native.pairs(records, _REFERENCE, own), strict=True)
        cells.append(f"{median_ratio(theirs, ours):.2f}x as fast")
    label = f"SD 1.5, {last['side']} pixels: request of {last['steps']} steps"
    return [label, _REFERENCE.replace(" ", " in "), *cells]


def _memory(record: Mapping[str, Any]) -> list[str]:
    ours, baseline = (record["alone"][side]["peak_bytes"] / 1e9 for side in ("ours", "baseline"))
    label = f"SD 1.5, {record['case']['resolution']} pixels: peak memory of a request"
    return [label, f"{record['backends']['baseline']}, {baseline:.2f} GB", f"{ours:.2f} GB", ""]
