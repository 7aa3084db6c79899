"""Headline: the five figures of the project's README, computed from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks.markdown import table

if TYPE_CHECKING:
    from sdengine.benchmarks.report_sections import Records

Record = Mapping[str, Any]

_UNET = ("sd15-native", "unet", 512)


def headline(records: Records) -> str:
    """Return one table of five rows, on which processor they were measured, and what was not."""
    unet = native.newest_speed(records.networks, *_UNET)
    if unet is None:
        raise ValueError(f"no record times {_UNET} beside OpenVINO")
    requests = _requests_of(records.comparisons, "diffusers fp32")
    rows = [
        _prompt_following(records.prompt_following),
        _pictures(records.pictures),
        _unet(unet),
        _requests(requests),
        _memory(_requests_of(records.comparisons, "eager fp32")),
    ]
    places = dict.fromkeys(
        (record["machine"]["processor"], threads)
        for record, threads in (
            (unet, unet["threads"]),
            *((found, found["setting"]["threads"]) for found in requests.values()),
        )
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


def _requests_of(records: Sequence[Record], peer: str) -> dict[str, Record]:
    """Return the newest comparison of SD 1.5's whole requests with a peer, by our side."""
    found = {}
    for record in records:
        setting = record["setting"]
        asked = setting["arch"], setting["task"], setting["resolution"], setting["device"]
        if asked != ("sd15", "text", 512, "cpu") or record["peer"] != peer:
            continue
        for own in native.OWN:
            if own in record["ratios"]:
                found[own] = record
    if not found:
        raise ValueError(f"no record times SD 1.5's requests at 512 pixels beside {peer}")
    return found


def _requests(found: Mapping[str, Record]) -> list[str]:
    record = next(iter(found.values()))
    cells = []
    for own in native.OWN:
        ratio = found[own]["ratios"][own]["end_to_end"]["ratio"] if own in found else None
        cells.append(f"{ratio:.2f}x as fast" if ratio else "")
    setting = record["setting"]
    label = f"SD 1.5, {setting['resolution']} pixels: request of {setting['steps']} steps"
    return [label, record["peer"].replace(" ", " in "), *cells]


def _memory(found: Mapping[str, Record]) -> list[str]:
    record = next(iter(found.values()))
    peak = {name: side["memory"]["peak_bytes"] / 1e9 for name, side in record["sides"].items()
            if "memory" in side}  # fmt: skip
    label = f"SD 1.5, {record['setting']['resolution']} pixels: peak memory of a request"
    cells = [f"{peak[own]:.2f} GB" if own in peak else "" for own in native.OWN]
    return [label, f"{record['peer'].replace(' ', ' torch in ')}, {peak[record['peer']]:.2f} GB",
            *cells]  # fmt: skip
