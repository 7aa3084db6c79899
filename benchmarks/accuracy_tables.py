"""Tables of what is right: prompts, pictures, samplers, quantisation; Triton kernels' resources."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.benchmarks.markdown import table

_SPELLINGS = {"color": "colour"}
_PORTABLE_SHARED_KIB = 48


def prompt_following(records: Sequence[Mapping[str, Any]]) -> str:
    """Return percent right by size, precision and set of prompts."""
    aspects = list(
        dict.fromkeys(a for r in records for v in r["percent_right"].values() for a in v)
    )
    rows = []
    for record in records:
        for name, percent in record["percent_right"].items():
            figures = [f"{percent[a]:g}" for a in aspects[:-1]]
            place = [str(record["size"]), record["precision"], name]
            rows.append([*place, *figures, f"**{percent[aspects[-1]]:g}**"])
    heading = ["pixels", "precision", "% right", *(_SPELLINGS.get(a, a) for a in aspects)]
    return table(heading, rows, texts=3)


def roofline(record: Mapping[str, Any]) -> str:
    """Return what a step of each U-Net costs by arithmetic, as torch launches it and fused."""
    rows = []
    for label, ways in record["networks"].items():
        for way, found in ways.items():
            parts = [f"{value:.2f}" for value in found["tflop"].values()]
            rows.append(
                [
                    label,
                    way,
                    str(found["kernels"]),
                    *parts,
                    f"{found['gigabytes']:.1f}",
                    f"{found['least_ms']:.1f}",
                    f"{found['model_ms']:.1f}",
                ]
            )
    heading = ["U-Net", "kernels", "count", "convolutions, TFLOP", "products", "attention"]
    heading += ["moved, GB", "at peak, ms", "model, ms"]
    return table(heading, rows, texts=2)


def pictures(distances: Mapping[str, Mapping[Any, Sequence[float]]], heading: str) -> str:
    """Return the lowest and the median PSNR of each cell; the heading says of what."""
    columns = [str(column) for column in next(iter(distances.values()))]
    rows = [
        [name, *(f"{min(v):.1f} ({statistics.median(v):.1f})" for v in cells.values())]
        for name, cells in distances.items()
    ]
    return table([f"{heading}, dB: lowest (median)", *columns], rows)


def samplers(errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return one row a sampler and what it was compared with, one column a schedule."""
    schedules = list(dict.fromkeys(s for rows in errors.values() for s in rows))
    rows = [
        [name, oracle, *(_error(by_schedule.get(s, {}).get(oracle)) for s in schedules)]
        for name, by_schedule in errors.items()
        for oracle in dict.fromkeys(o for row in by_schedule.values() for o in row)
    ]
    return table(["largest relative error", "against", *schedules], rows, texts=2)


def worst_sampler_errors(
    errors: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, float]:
    """Return the largest error against each package, by its name."""
    worst: dict[str, float] = {}
    for by_schedule in errors.values():
        for row in by_schedule.values():
            for oracle, error in row.items():
                package = oracle.partition(" ")[0]
                worst[package] = max(error, worst.get(package, 0.0))
    return worst


def emphasis(record: Mapping[str, Any]) -> str:
    """Return the share of a colour at each weight, and how many seeds went the right way."""
    rows = list(record["colors"].values())
    weights = list(rows[0]["percent"])
    heading = ["% of the pixels in the colour", *(f"at {w}" for w in weights)]
    return table(
        [
            *heading,
            f"more / fewer at {weights[-1]} than at {weights[0]}, of {record['seeds']} seeds",
        ],
        [
            [
                f"`{row['prompt']}`",
                *(f"{row['percent'][w]:.2f}" for w in weights),
                f"{row['seeds_up']} / {row['seeds_down']}",
            ]
            for row in rows
        ],
    )


def guidance_interval(record: Mapping[str, Any]) -> str:
    """Return what each interval saves and how many pictures it gets right."""
    total = record["prompts_of_choice"]
    rows = [
        [
            f"**`{name}`**" if name == record["chosen"] else f"`{name}`",
            f"{row['guided_steps']} of {record['steps']}",
            f"{row['clock_seconds'] * 1000:.0f}",
            f"{row['clock_ratio']:.2f}x",
            f"{row['processors_seconds'] * 1000:.0f}",
            f"{row['processors_ratio']:.2f}x",
            f"{row['right_of_choice']}",
        ]
        for name, row in record["candidates"].items()
    ]
    times = ["request, ms", "as fast", "processor time, ms", "ratio"]
    return table(["interval", "guided steps", *times, f"right of {total}"], rows)


def inpainting(record: Mapping[str, Any]) -> str:
    """Return a row for each way to inpaint."""
    rows = [
        [kind, str(row["color_right"]), str(row["all_right"]), str(row["rest_equal"])]
        for kind, row in record["inpainting"].items()
    ]
    total = record["scenes"]
    return table([f"of {total}", "colour right", "everything right", "rest equal"], rows)


def inpainting_variant(record: Mapping[str, Any]) -> str:
    """Return one row: what is right of recoloured and of half hidden objects."""
    named = {
        "color_right": "colour right",
        "all_right": "everything right",
        "rest_equal": "rest equal",
        "halves_right": "halves right",
        "halves_alone": "without a prompt",
    }
    return _counts("demo-inpainting", record, named)


def depth_followed(record: Mapping[str, Any]) -> str:
    """Return one row: where objects are, and pictures with the right one before the other."""
    found = record["found"]
    order = [str(found[k]) for k in ("order_right", "exchanged_right", "both_right")]
    row = [f"{found['overlap']:.2f}", f"{found['overlap_with_another']:.2f}", *order]
    places = ["overlap", "with another scene's map"]
    heading = [f"of {record['scenes']}", *places, "order right", "exchanged right", "both right"]
    return table(heading, [["demo-depth", *row]])


def tiny_decoder(record: Mapping[str, Any]) -> str:
    """Return a row for each decoder: pictures that show what a prompt says, and its time."""
    found = record["found"]
    named = {"vae": "the autoencoder's", "tiny": "demo-tiny"}
    rows = [
        [name, str(found[kind]["right"]), f"{found[kind]['ms']:.2f}"]
        for kind, name in named.items()
    ]
    return table(["decoder", f"right, of {found['prompts']}", "ms"], rows)


def edges_followed(record: Mapping[str, Any]) -> str:
    """Return a row for each scale of a control."""
    named = {"f1": "F1 of edges", "one_object": "one object", "two_objects": "two objects"}
    rows = [[s, *(f"{row[k]:.2f}" for k in named)] for s, row in record["found"].items()]
    return table(["scale", *named.values()], rows)


def _counts(label: str, record: Mapping[str, Any], named: Mapping[str, str]) -> str:
    row = [label, *(str(record["found"][key]) for key in named)]
    return table([f"of {record['scenes']}", *named.values()], [row])


def image_to_image(record: Mapping[str, Any]) -> str:
    """Return a column for each strength."""
    found = record["image_to_image"]
    rows = [
        ["median distance", *(f"{d:.1f}" for d in found["median_distance"].values())],
        [
            f"everything that the prompt says, of {record['scenes']}",
            *map(str, found["follows_prompt"].values()),
        ],
    ]
    return table(["strength", *found["median_distance"]], rows)


def outpainting(record: Mapping[str, Any]) -> str:
    """Return a row for each way to enlarge a picture."""
    named = {
        "background_right": "background right",
        "all_right": "everything right",
        "no_seam": "no seam",
        "no_seam_beside_outlines": "beside outlines",
        "no_line": "no line",
        "rest_equal": "rest equal",
    }
    found = record["outpainting"]
    rows = [[kind, *(str(row[name]) for name in named)] for kind, row in found["kinds"].items()]
    return table([f"of {record['scenes']}", *named.values()], rows)


def seams(record: Mapping[str, Any]) -> str:
    """Return a row for each side of enlarged pictures."""
    named = {
        "seam": "over the border",
        "inside": "inside",
        "seam_less_inside": "the border's less the inside's",
        "drawn": "over the border as drawn",
    }
    rows = [
        [side, *(f"{found[name][0]:.1f} ± {found[name][1]:.1f}" for name in named)]
        for side, found in record["seams"]["sides"].items()
    ]
    return table(["mean step, of 255", *named.values()], rows)


def repeated_extensions(record: Mapping[str, Any]) -> str:
    """Return a row for each overlap, a column for each repeat."""
    found = record["repeated_extensions"]
    rows = [[kind, *(f"{off:.1f}" for off in offs)] for kind, offs in found.items()]
    count = len(next(iter(found.values())))
    return table(["tone off by, of 255", *(f"time {k + 1}" for k in range(count))], rows)


def variations(record: Mapping[str, Any]) -> str:
    """Return a column for each strength."""
    found, total = record["variations"], record["scenes"]
    rows = [
        [f"caption holds, of {total}", *(str(row["caption_holds"]) for row in found.values())],
        [f"original known again, of {total}", *(str(row["known_again"]) for row in found.values())],
        ["median distance", *(f"{row['median_distance']:.1f}" for row in found.values())],
    ]
    return table(["strength", *found], rows)


def enlarging(record: Mapping[str, Any]) -> str:
    """Return a row for each way to enlarge pictures."""
    rows = [
        [name if name == "Lanczos" else f"strength {name}", f"{row['median_db']:.1f}",
         str(row["caption_holds"])]
        for name, row in record["enlarging"].items()
    ]  # fmt: skip
    return table(["", "PSNR in dB, median", f"caption holds, of {record['scenes'] // 2}"], rows)


def codec(record: Mapping[str, Any]) -> str:
    """Return a row for each size of pictures."""
    rows = [
        [side, str(row["bytes"]), f"{row['db']:.1f}", str(row["jpeg_bytes"]),
         f"{row['jpeg_db']:.1f}", str(row["better_than_jpeg"])]
        for side, row in record["codec"].items()
    ]  # fmt: skip
    latents, jpeg = ["bytes", "PSNR in dB"], ["JPEG's bytes", "its PSNR in dB"]
    better = f"better than JPEG, of {record['scenes']}"
    return table(["pixels a side", *latents, *jpeg, better], rows)


def quantisation(record: Mapping[str, Any]) -> str:
    """Return a row for each model and precision of its U-Net."""
    rows = []
    for model, found in record["models"].items():
        for precision, row in found.items():
            layers, errors = "", ["", "", ""]
            if "layers" in row:
                layers = f"{row['layers']} of {row['layers'] + row['kept']}"
                worst = max(row["error_by_evaluation"].values())
                errors = [f"{e:.1e}" for e in (row["worst_layer"], row["error"], worst)]
            decibels = row["psnr_db"]
            shown = f"{min(decibels):.1f} ({statistics.median(decibels):.1f})"
            rows.append([model, precision, layers, *errors, shown])
    heading = ["model", "U-Net in", "layers in eight bits", "worst layer alone", "U-Net"]
    return table([*heading, "its worst step", "PSNR, dB: lowest (median)"], rows, texts=2)


def kernel_resources(record: Mapping[str, Any]) -> str:
    """Return in a sentence or two what the compiled Triton kernels need."""
    rows = record["resources"]
    capabilities = sorted({row["cc"] for row in rows})
    spilling = sum(row["spill_bytes"] > 0 for row in rows)
    least: dict[tuple[Any, ...], float] = {}
    for row in rows:
        key = (row["kernel"], row["case"], row["dtype"], row["cc"])
        least[key] = min(row["shared_bytes"] / 1024, least.get(key, float("inf")))
    missing = [
        f"{op} not for {', '.join(_capability(cc) for cc in lacking)}"
        for op in dict.fromkeys(row["op"] for row in rows)
        if (lacking := set(capabilities) - {row["cc"] for row in rows if row["op"] == op})
    ]
    return (
        f"Compiled by Triton {record['triton']} for compute capabilities "
        f"{', '.join(map(_capability, capabilities))}{''.join(f' ({one})' for one in missing)}: "
        f"of {len(rows)} kernels {spilling or 'none'} spill{'' if spilling else 's'} a register, "
        f"and each has a variant with at most {max(least.values()):.0f} KiB of shared memory, "
        f"where {_PORTABLE_SHARED_KIB} are available everywhere."
    )


def _capability(cc: int) -> str:
    return f"{cc // 10}.{cc % 10}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def adapter_formats(record: Mapping[str, Any]) -> str:
    """Return the PSNR of each format and family, and why some cells are empty."""
    families: Sequence[str] = record["families"]
    numbers: dict[str, int] = {}
    rows = []
    for title, by_family in record["psnr_db"].items():
        cells = []
        for family in families:
            if family in by_family:
                cells.append(" / ".join(f"{db:.1f}" for db in by_family[family].values()))
            else:
                reason = record["absent"][title][family]
                cells.append(f"- [{numbers.setdefault(reason, len(numbers) + 1)}]")
        rows.append([title, record["references"][title], *cells])
    shown = table(["format", "reference", *families], rows, texts=2)
    notes = "; ".join(f"[{number}] {reason}" for reason, number in numbers.items())
    return f"{shown}\n\nNo such files: {notes}." if notes else shown
