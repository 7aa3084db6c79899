"""Tables of the native target's records: networks, operations, hard values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdengine.benchmarks.markdown import table

Record = Mapping[str, Any]
OWN = ("native bf16", "native int8")
PEERS = ("torch bf16", "torch fp32", "openvino bf16", "openvino fp32")
TRUTH = "torch fp32"
# Where other programs took more than this share of the machine, times are not shown.
_BUSY_PERCENT = 10.0
_NETWORKS = {"unet": "U-Net", "vae_decoder": "VAE decoder", "text_encoder": "text encoder"}
_MODELS = {"sd15": "SD 1.5", "sd15t": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}


def network_speed(records: Sequence[Record]) -> str:
    """Return the newest times beside OpenVINO's, and the newest errors against torch in fp32."""
    rows = []
    for key in _keys(records):
        timed = newest(records, key, "openvino")
        if timed is None:
            continue
        name, baseline = fastest_openvino(timed)
        cells = [str(timed["threads"]), f"{_digits(baseline)} ({name.partition(' ')[2]})"]
        for own in OWN:
            ratio = speed_ratio(timed, own)
            error = newest_error(records, key, own)
            seconds = _digits(_median(timed, own)) if ratio else ""
            cells += [seconds, f"**{ratio:.2f}x**" if ratio else "", _error(error)]
        rows.append([_network(key), *cells])
    columns = [cell for own in OWN for cell in (f"{own}, s", "faster by", "error")]
    return table(["median of a call", "threads", "fastest OpenVINO, s", *columns], rows)


def network_errors(records: Sequence[Record]) -> str:
    """Return the newest error of every side against torch in fp32."""
    sides = [*OWN, "openvino bf16", "torch bf16"]
    rows = [
        [_network(key), *(_error(newest_error(records, key, side)) for side in sides)]
        for key in _keys(records)
    ]
    return table(["relative RMS error", *sides], rows)


def slower_precisions(records: Sequence[Record]) -> str:
    """Return how many times as long OpenVINO and torch take in bf16 as OpenVINO in fp32."""
    sides = ("openvino bf16", "torch bf16")
    rows = []
    for key in _keys(records):
        cells = []
        for side in sides:
            found = newest(records, key, side, "openvino fp32")
            seconds = [_median(found, s) for s in (side, "openvino fp32")] if found else None
            cells.append(f"{seconds[0] / seconds[1]:.2f}x" if seconds else "")
        if any(cells):
            rows.append([_network(key), *cells])
    return table(["times OpenVINO's time in fp32", *sides], rows) if rows else ""


def threads(records: Sequence[Record]) -> str:
    """Return the newest times with one thread beside those of the same sides with more."""
    rows = []
    for key in _keys(records, single=True):
        alone = newest(records, key)
        if alone is None:
            continue
        more = [r for r in records if _key(r)[:-1] == key[:-1] and r["threads"] > 1]
        pair = [r for r in more if list(r["sides"]) == list(alone["sides"])]
        for side in alone["sides"] if pair else ():
            one, several = _median(alone, side), _median(pair[-1], side)
            ratio = f"{one / several:.2f}x"
            name = f"{_network(key)}, {side}"
            rows.append([name, f"{one:.2f}", f"{several:.2f}", str(pair[-1]["threads"]), ratio])
    columns = ["", "one thread, s", "several, s", "threads", "faster by"]
    return table(columns, rows) if rows else ""


def network_records(records: Iterable[Record]) -> str:
    """Return every side of every record, oldest first."""
    rows = []
    for record in records:
        for name, side in record["sides"].items():
            place = [record["time"][:16], _network(_key(record)), str(record["threads"]), name]
            load, error = f"{side['load_seconds']:.2f}", f"{side['relative_rms']:.1e}"
            spread = side["seconds"]
            against = record["error_against"]
            busy = f"{record['other_load_percent']:.0f}"
            rows.append([*place, f"{_spread(spread)}, {spread['n']}", load, error, against, busy])
    columns = ["time", "network", "threads", "side"]
    figures = ["s: median (10th to 90th percentile), calls", "load, s", "error", "against"]
    return table([*columns, *figures, "others, %"], rows, texts=4)


def operations(records: Sequence[Record]) -> str:
    """Return milliseconds beside the faster precision of each peer.

    Args:
        records: one for each number of threads; that of the most is compared with the peers.
    """
    most = max(records, key=lambda record: record["threads"])
    others = sorted((r for r in records if r is not most), key=lambda record: record["threads"])
    rows = []
    for index, row in enumerate(most["rows"]):
        seconds = row["seconds"]
        peers = [
            min(seconds[p] for p in PEERS if p.startswith(start)) for start in ("torch", "openvino")
        ]
        fewer = [f"{r['rows'][index]['seconds'][OWN[0]] * 1e3:.2f}" for r in others]
        own, eight = ([*_operation(row, side), _over(row, side, peers)] for side in OWN)
        errors = [_error(row["errors"].get(side)) for side in (*OWN, "torch bf16")]
        shown = [f"{one * 1e3:.2f}" for one in peers]
        rows.append([row["case"], *own[:2], *fewer, *shown, own[2], *eight, *errors])
    unit = f"ms, {most['threads']} threads"
    before = ["best oneDNN", "best OpenVINO", "over the best"]
    after = ["int8", "% of peak", "over the best", "error bf16", "error int8", "error torch bf16"]
    fewer = [f"bf16, threads: {r['threads']}" for r in others]
    return table([unit, "bf16", "% of peak", *fewer, *before, *after], rows)


def hard_values(rows: Iterable[Record]) -> str:
    """Return errors on values that low precision finds hard, beside torch's in bf16."""
    lines = []
    for row in rows:
        for part, errors in row["errors"].items():
            what = row["values"] + (", the rest" if part == "quiet" else "")
            own, peer = errors["native bf16"], errors["torch bf16"]
            cells = [_error(errors[name]) for name in ("native fp32", "native bf16", "torch bf16")]
            lines.append(
                [row["case"], what, *cells, f"{own / peer:.2f}", _error(errors.get("native int8"))]
            )
    columns = ["operation", "values", "native fp32", "native bf16", "torch bf16", "ratio"]
    return table([*columns, "native int8"], lines, texts=2)


def worst_ratio(rows: Iterable[Record]) -> float:
    """Return the largest ratio of the native target's error in bf16 to torch's."""
    every = [errors for row in rows for errors in row["errors"].values()]
    return max(float(errors["native bf16"] / errors["torch bf16"]) for errors in every)


def by_processor(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records by processor, that of the newest first."""
    names = dict.fromkeys(record["machine"]["processor"] for record in reversed(records))
    return {n: [r for r in records if r["machine"]["processor"] == n] for n in names}


def newest(records: Iterable[Record], key: tuple[Any, ...], *sides: str) -> Record | None:
    """Return the last record of a network on an idle machine that has these sides.

    Args:
        records: oldest first.
        key: bundle, network, size in pixels and threads.
        sides: names such as "openvino fp32", or the first words of such.
    """
    found = [
        record
        for record in records
        if _key(record) == key
        and record["other_load_percent"] <= _BUSY_PERCENT
        and all(any(name.startswith(side) for name in record["sides"]) for side in sides)
    ]
    return found[-1] if found else None


def newest_error(records: Iterable[Record], key: tuple[Any, ...], side: str) -> float | None:
    """Return the last error of a side against torch in fp32."""
    found = [
        record["sides"][side]["relative_rms"]
        for record in records
        if _key(record) == key and record["error_against"] == TRUTH and side in record["sides"]
    ]
    return found[-1] if found else None


def newest_speed(records: Sequence[Record], bundle: str, network: str, size: int) -> Record | None:
    """Return the last record that times a network with several threads beside OpenVINO."""
    for key in _keys(records):
        if key[:3] == (bundle, network, size):
            return newest(records, key, "openvino")
    return None


def fastest_openvino(record: Record) -> tuple[str, float]:
    """Return name and median seconds of OpenVINO's faster precision in a record."""
    names = [name for name in record["sides"] if name.startswith("openvino")]
    return min(((name, _median(record, name)) for name in names), key=lambda pair: pair[1])


def speed_ratio(record: Record, own: str) -> float | None:
    """Return how many times as fast a side of ours is as OpenVINO's faster precision."""
    return fastest_openvino(record)[1] / _median(record, own) if own in record["sides"] else None


def _keys(records: Iterable[Record], single: bool = False) -> list[tuple[Any, ...]]:
    """Return what records of one thread, or of several, are about: the U-Nets first."""
    found = {_key(record) for record in records if (record["threads"] == 1) == single}
    order = list(_NETWORKS)
    return sorted(found, key=lambda key: (order.index(key[1]), key[0], key[2]))


def _key(record: Record) -> tuple[Any, ...]:
    return (record["bundle"], record["network"], record["size"], record["threads"])


def _network(key: tuple[Any, ...]) -> str:
    model = model_name(key[0])
    place = "" if key[1] == "text_encoder" else f", {key[2]}"
    return f"{model} {_NETWORKS[key[1]]}{place}"


def model_name(bundle: str) -> str:
    """Return the model that a bundle's name begins with."""
    start = bundle.partition("-")[0]
    return _MODELS.get(start, start)


def _median(record: Record, side: str) -> float:
    return float(record["sides"][side]["seconds"]["median"])


def _operation(row: Record, side: str) -> list[str]:
    seconds, share = row["seconds"].get(side), row["share_of_peak"].get(side)
    return [f"{seconds * 1e3:.2f}" if seconds else "", f"{100 * share:.0f}" if share else ""]


def _over(row: Record, side: str, peers: Sequence[float]) -> str:
    return f"{min(peers) / row['seconds'][side]:.2f}x" if side in row["seconds"] else ""


def _spread(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:.3f} ({figures['p10']:.3f} to {figures['p90']:.3f})"


def _digits(seconds: float) -> str:
    """Return three digits."""
    return f"{seconds:#.3g}".rstrip(".")


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


_ARCHITECTURES = {
    "sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1", "sdxl": "SDXL",
}  # fmt: skip


def swaps(record: Record) -> str:
    """Return what it takes to let loaded networks compute with a LoRA, and to go back."""
    columns = (
        "", "layers", "file, MB", "reading it, s", "first swap, s", "swap, s",
        "processor time, s", "goal",
        "to a kept set, s", "to the bundle's own, s", "merged, MB", "of packed, MB",
        "whole checkpoint, s", "processor time, s", "goal", "A, B, A is A", "a fresh load's bits",
    )  # fmt: skip
    rows = []
    for row in record["rows"]:
        whole = row.get("whole")
        rows.append(
            [
                _ARCHITECTURES[row["arch"]],
                f"{row['lora_layers']}",
                f"{row['lora_bytes'] / 1e6:.0f}",
                f"{row['reading_seconds']:.2f}",
                f"{row['first']['seconds']['median']:.2f}",
                _spread(row["swap"]["seconds"]),
                f"{row['swap']['cpu_seconds']['median']:.2f}",
                f"< {row['goal_seconds']:g}",
                f"{row['kept']['seconds']['median']:.3f}",
                f"{row['back']['seconds']['median']:.3f}",
                f"{row['own_bytes'] / 1e6:.0f}",
                f"{row['packed_bytes'] / 1e6:.0f}",
                _spread(whole["seconds"]) if whole else "not run",
                f"{whole['cpu_seconds']['median']:.2f}" if whole else "",
                f"< {record['whole_goal_seconds']:g}",
                *("yes" if row[name] else "no" for name in ("a_b_a_is_a", "a_is_a_fresh_load")),
            ]
        )
    loads = ", ".join(
        f"{_ARCHITECTURES[row['arch']]} {row['other_load_percent']:.0f} %" for row in record["rows"]
    )
    return "\n\n".join(
        [
            f"LoRAs of rank {record['rank']} for attention and feed-forward layers of U-Net and "
            f"text encoders, on networks with synthetic weights in {record['precision']}, "
            f"`{record['isa']}`, {record['threads']} threads. A swap merges the LoRA into the "
            "bundle's own weights in fp32, lays the changed layers out again and lets the loaded "
            "networks read them; nothing else is built, and what is not changed stays mapped. The "
            "first swap of a process, which is not among the others, also reads the bundle's own "
            "weights from the disk and takes memory that the system has to give. A whole "
            "checkpoint is text encoders, U-Net and VAE, after its first reading. Medians, "
            f"with 10th and 90th percentile; rounds: {record['rounds']}. Processor time is that of "
            "all cores; other programs took of the machine, and lengthened what the clock shows: "
            f"{loads}.",
            table(columns, rows),
        ]
    )
