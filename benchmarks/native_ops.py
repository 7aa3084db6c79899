"""Single operations of the native target, timed against oneDNN (through torch) and OpenVINO.

    python benchmarks/native_ops.py --record benchmarks/results/native-ops.jsonl

The shapes are those of Stable Diffusion 1.5's U-Net at 512 pixels, two rows. All sides compute in
bf16 unless named otherwise; results are compared with fp64 before anything is timed, and rounds of
all sides alternate. The share of the peak is of the products that are really computed (a quarter of
the plain algorithm's under Winograd F(4x4, 3x3)) against what the same instructions reach in a loop
that waits for nothing, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdengine import _native
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.benchmarks.measures import OtherLoad, relative_rms
from sdengine.benchmarks.native_sides import (
    Array,
    NativeRun,
    Operation,
    Run,
    attention,
    conv,
    draw,
    group_norm,
    linear,
    native_run,
    openvino_run,
    torch_run,
)
from sdengine.benchmarks.native_tables import operations as as_markdown
from sdengine.benchmarks.records import append_record, stamped

SCHEMA = 2  # of the records


def cases() -> list[Operation]:
    """Return the operations, the heaviest kinds first."""
    found = []
    for channels, columns, side in (
        (320, 320, 64), (640, 640, 32), (960, 640, 32), (1280, 1280, 16), (2560, 1280, 16),
        (1280, 1280, 8),
    ):  # fmt: skip
        found.append(conv(channels, columns, side))
    for queries, keys, dim in ((4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40)):
        found.append(attention(queries, keys, dim))
    for rows, inner, columns in ((8192, 320, 320), (2048, 640, 5120), (512, 5120, 1280)):
        found.append(linear(rows, inner, columns))
    found.append(group_norm(320, 64))
    return found


def measure(
    case: Operation, rounds: int, threads: int, peaks: Mapping[str, float]
) -> dict[str, Any]:
    """Return seconds and errors of every side, and the native side's share of the peaks."""
    maps, weights = draw(case)
    truth = torch_run(case, maps, weights, torch.float64)().numpy()
    runs: dict[str, Run] = {}
    found: dict[str, Array] = {}
    own: dict[str, NativeRun] = {}
    for precision in ("bf16", "int8") if case.step.kind == "linear" else ("bf16",):
        name = f"native {precision}"
        own[name] = native_run(case, maps, weights, precision, threads)
        runs[name], found[name] = own[name].run, own[name].result().copy()
    for name, dtype in (("torch bf16", torch.bfloat16), ("torch fp32", torch.float32)):
        runs[name] = torch_run(case, maps, weights, dtype)
        found[name] = runs[name]().float().numpy()
    for name, hint in (("openvino bf16", "bf16"), ("openvino fp32", "f32")):
        runs[name] = openvino_run(case, maps, weights, hint)
        found[name] = runs[name]().copy()
    errors = {name: relative_rms(one, truth) for name, one in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    shares = {n: one.flops / medians[n] / peaks[one.values] for n, one in own.items() if one.values}
    return {
        "case": case.name,
        "flops": case.flops,
        "values": {name: one.values for name, one in own.items()},
        "share_of_peak": shares,
        "seconds": medians,
        "errors": errors,
    }


def main() -> int:
    """Measure and print; a record is written where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[2], metavar="N")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    records = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        load = OtherLoad()
        peaks = {
            values: _native.peak_rate(values, threads, chosen_isa())
            for values in ("float32", "bfloat16", "int16", "int8")
        }
        rows = [measure(case, options.rounds, threads, peaks) for case in cases()]
        other = load.percent()
        figures = {"threads": threads, "isa": chosen_isa(), "other_load_percent": other}
        record = stamped({**figures, "peaks": peaks, "rows": rows}, "openvino", schema=SCHEMA)
        records.append(record)
        if options.record:
            append_record(record, options.record)
        print(f"{chosen_isa()}; other programs took {other:.0f} % of the machine; peaks, GFLOP/s: ")
        print(", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.items()), flush=True)
    print(f"\n{as_markdown(records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
