"""Hard values: how single operations of the native target err, beside torch's error in bf16.

    python benchmarks/native_numerics.py --json benchmarks/results/native-numerics.json

Both sides get the same fp32 values; errors are relative root mean squares against fp64, over the
whole result and, where a channel or a pixel is loud, over the quiet rest, which a scale shared with
the loud part would drown. Exits with 1 where bf16 errs more than twice as much as torch's bf16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.benchmarks.measures import relative_rms
from sdengine.benchmarks.native_sides import (
    Array,
    Operation,
    attention,
    conv,
    draw,
    group_norm,
    layer_norm,
    linear,
    native_run,
    torch_run,
)
from sdengine.benchmarks.native_tables import hard_values as as_markdown
from sdengine.benchmarks.records import stamped, write_record

RULE = 2.0
Values = dict[str, Array]


@dataclass(frozen=True)
class Hard:
    """An operation on values that low precision finds hard.

    Args:
        case: the operation.
        what: what is hard about the values.
        change: makes them so, in place.
        quiet: keeps the part of a result [n,c,h,w] that the loud values do not touch.
    """

    case: Operation
    what: str
    change: Callable[[Values, Values], None] = lambda maps, weights: None
    quiet: Callable[[Array], Array] | None = None


def hard_cases() -> Iterator[Hard]:
    """Yield operations and values."""
    for case in (conv(320, 320, 64), linear(8192, 320, 320)):
        yield Hard(case, "normal")
        yield Hard(case, "an input channel at 100x", _loud_channel)
        yield Hard(case, "a pixel at 1000x", _loud_pixel, _without_first)
        yield Hard(case, "an output channel at 100x", _loud_column, lambda y: np.delete(y, 7, 1))
        yield Hard(case, "values of 1e-6", _scaled(1e-6))
    for dim, keys in ((40, 4096), (160, 256)):
        case = attention(256, keys, dim)
        yield Hard(case, "normal")
        yield Hard(case, "logits of 30 (standard deviation)", _large_logits)
        yield Hard(case, "a channel of queries and keys at 100x", _loud_head_channel)
        yield Hard(case, "a key at 100x", _loud_key)
    for case in (group_norm(320, 64), layer_norm(2048, 640)):
        yield Hard(case, "normal")
        yield Hard(case, "mean of 30 deviations", _shifted)
        yield Hard(case, "deviation of 1e-4", _scaled(1e-4))
        yield Hard(case, "deviation of 1e4", _scaled(1e4))
        yield Hard(case, "a channel at 100x", _loud_channel)


def _loud_channel(maps: Values, weights: Values) -> None:
    maps["x"][:, 7] *= 100


def _loud_pixel(maps: Values, weights: Values) -> None:
    maps["x"][:, :, 0, 0] *= 1000


def _without_first(result: Array) -> Array:
    # A 3x3 kernel spreads the first pixel to its neighbours, Winograd's scales to its tile.
    return result[..., 8:] if result.shape[2] == 1 else result[:, :, 8:]


def _loud_column(maps: Values, weights: Values) -> None:
    weights["weight"][7] *= 100


def _large_logits(maps: Values, weights: Values) -> None:
    maps["q"] *= 30


def _loud_head_channel(maps: Values, weights: Values) -> None:
    maps["q"][:, 5] *= 100
    maps["k"][:, 5] *= 100


def _loud_key(maps: Values, weights: Values) -> None:
    maps["k"][..., 3] *= 100


def _shifted(maps: Values, weights: Values) -> None:
    maps["x"] += 30


def _scaled(factor: float) -> Callable[[Values, Values], None]:
    def change(maps: Values, weights: Values) -> None:
        maps["x"] *= factor

    return change


def measure(hard: Hard, threads: int) -> dict[str, Any]:
    """Return the errors of both sides on one case."""
    maps, weights = draw(hard.case)
    hard.change(maps, weights)
    truth = torch_run(hard.case, maps, weights, torch.float64)().numpy()
    found = {"torch bf16": torch_run(hard.case, maps, weights, torch.bfloat16)().double().numpy()}
    precisions = ["bf16", "fp32"] + (["int8"] if hard.case.step.kind == "linear" else [])
    for precision in precisions:
        run = native_run(hard.case, maps, weights, precision, threads)
        found[f"native {precision}"] = run.result().copy()
    parts: dict[str, Callable[[Array], Array]] = {"all": lambda result: result}
    if hard.quiet:
        parts["quiet"] = hard.quiet
    return {
        "case": hard.case.name,
        "values": hard.what,
        "errors": {
            part: {name: relative_rms(keep(y), keep(truth)) for name, y in found.items()}
            for part, keep in parts.items()
        },
    }


def main() -> int:
    """Measure and print; the exit status says whether the rule holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    rows = [measure(hard, options.threads) for hard in hard_cases()]
    print(f"{chosen_isa()}\n\n{as_markdown(rows)}")
    if options.json:
        write_record(stamped({"isa": chosen_isa(), "rows": rows}), options.json)
    broken = [
        f"{row['case']}, {row['values']}"
        for row in rows
        for errors in row["errors"].values()
        if not errors["native bf16"] <= RULE * errors["torch bf16"]
    ]
    for one in broken:
        print(f"more than {RULE:g} times torch's error: {one}", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
