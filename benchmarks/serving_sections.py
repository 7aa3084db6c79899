"""Serving in the report: the server under load, and what HTTP costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.benchmarks.markdown import table

Record = Mapping[str, Any]


def serving(parts: Mapping[str, Record]) -> str:
    """Return the tables of benchmarks/serving_load.py."""
    return "\n\n".join([*_load(parts["load"]), _calls(parts["calls"])])


def _calls(record: Record) -> str:
    over = record["http_ms"] - record["engine_ms"]
    over_png = record["http_ms"] - record["engine_and_png_ms"]
    return (
        f"One picture of 128 pixels at a time, medians of {record['rounds']}, "
        f"{record['machine']['processor']}: the engine {record['engine_ms']:.1f} ms, with its PNG "
        f"file {record['engine_and_png_ms']:.1f} ms, a blocking call of OpenAI's API "
        f"{record['http_ms']:.1f} ms: {over_png:.1f} ms over the engine and its file, {over:.1f} "
        f"ms over the engine alone. Other programs took {record['other_load_percent']:.0f} %."
    )


def _load(record: Record) -> list[str]:
    sizes = ", ".join(
        "{}x{} ({:.0f} %)".format(*one["size"], 100 * one["share"]) for one in record["sizes"]
    )
    levels = record["levels"]
    shares = [one["share"] for one in levels]
    names = [
        f"{100 * share:.0f} %{' again' if share in shares[:index] else ''}"
        for index, share in enumerate(shares)
    ]
    least, most = ([f(one["rss"]) for one in levels] for f in (min, max))
    text = (
        f"A server of the demo model with {record['threads']} thread in a process of its own, and "
        f"clients in another, on {record['machine']['processor']}. Requests of "
        f"{record['steps']} steps and mixed sizes, {sizes}, arrive "
        f"by chance for {record['minutes']:g} minutes a level. The server can make "
        f"{record['capacity_per_second']:.2f} a second, as 8 clients measure that always wait. "
        f"Token a asks for {100 * record['share_of_a']:.0f} % of all; at most "
        f"{record['max_queue']} wait, half of them a token's. A latency lasts from a request's "
        "arrival to its whole picture. Lost is what was neither answered nor refused. Clients and "
        f"server had processor {', '.join(map(str, record['processors']))}, of "
        f"{record['machine']['cores']}, and no other work was put there; other "
        f"programs took {record['other_load_percent']:.0f} % of the whole machine."
    )
    heading = ["of capacity", "asked", "made a second", "refused (429)", "failed", "lost",
               "p50, s", "p95, s", "p99, s", "memory, MB"]  # fmt: skip
    rows = [
        [
            name, str(one["asked"]), f"{one['per_second']:.2f}",
            str(one["rejected"]), str(one["failed"]), str(one["lost"]),
            *(f"{one[key]:.2f}" for key in ("p50", "p95", "p99")),
            _memory(one["rss"]),
        ]
        for name, one in zip(names, levels, strict=True)
    ]  # fmt: skip
    fair = [
        [
            name, token, str(own["asked"]),
            str(own["asked"] - own["rejected"]), str(own["rejected"]),
            *("" if own[key] is None else f"{own[key]:.2f}" for key in ("p50", "p95", "p99")),
        ]
        for name, one in zip(names, levels, strict=True)
        for token, own in one["tokens"].items()
    ]  # fmt: skip
    return [
        text,
        table(heading, rows),
        "Memory is the server's at the begin of a level, in the middle and at its end; before the "
        "first one the server keeps as many results of each token as it ever does. In all levels "
        f"together it is between {min(least) / 1e6:.0f} and {max(most) / 1e6:.0f} MB. Behind the "
        f"last, {record['file_descriptors']} files and sockets are open.",
        "The two tokens. Turns are fair: where both wait, each gets half; the one that asks for "
        "less does not wait for the other's queue.",
        table(["of capacity", "token", "asked", "made", "refused", "p50, s", "p95, s", "p99, s"],
              fair, texts=2),
    ]  # fmt: skip


def _memory(rss: Sequence[int]) -> str:
    found = rss[0], rss[len(rss) // 2], rss[-1]
    return ", ".join(f"{bytes_ / 1e6:.0f}" for bytes_ in found)
