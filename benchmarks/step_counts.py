"""Step counts: multistep samplers in bf16 and int8 against the same in fp32, from 5 to 150 steps.

    python benchmarks/step_counts.py [--bundle DIR] [--output DIR]

A sampler that extrapolates from its last steps to a much longer one multiplies the rounding of the
network's output, so that more steps make a worse picture. Prints a Markdown table, writes
step-counts.json, and fails when a picture is further from that in fp32 than REQUIRED_DB says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sdengine
from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.pictures import GUIDANCE_SCALE, PROMPTS, finish
from sdengine.benchmarks.records import RESULTS, stamped
from sdengine.samplers import SCHEDULES

MULTISTEP = (
    "pndm",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "deis",
    "unipc",
    "unipc_3",
)
STEPS = (5, 10, 20, 25, 30, 50, 70, 100, 150)
PRECISIONS = ("bf16", "int8")
REQUIRED_DB = 30.0
# Precision, then sampler, schedule and steps, which JSON wants as text.
Distances = dict[str, dict[str, dict[str, dict[str, float]]]]


def measure(bundle: str, side: int, steps: Sequence[int]) -> Distances:
    """Return the PSNR in dB of one picture of each combination."""
    found: Distances = {precision: {} for precision in PRECISIONS}
    engines = {p: sdengine.load(bundle, "auto", p) for p in ("fp32", *PRECISIONS)}
    for sampler in MULTISTEP:
        for schedule in SCHEDULES:
            for count in steps:
                made = {
                    precision: engine.generate(
                        PROMPTS[1],
                        steps=count,
                        guidance_scale=GUIDANCE_SCALE,
                        seed=1,
                        width=side,
                        height=side,
                        sampler=sampler,
                        schedule=schedule,
                    ).arrays[0]
                    for precision, engine in engines.items()
                }
                for precision in PRECISIONS:
                    row = found[precision].setdefault(sampler, {}).setdefault(schedule, {})
                    row[str(count)] = round(psnr(made[precision], made["fp32"]), 1)
        print(f"{sampler} is done", file=sys.stderr)
    for engine in engines.values():
        engine.close()
    return found


def as_markdown(distances: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the lowest PSNR over the schedules, and whose it is, by sampler and steps."""
    rows = []
    for precision, samplers in distances.items():
        for sampler, schedules in samplers.items():
            counts = next(iter(schedules.values()))
            lowest = [
                min((row[count], name) for name, row in schedules.items()) for count in counts
            ]
            rows.append([sampler, precision, *(f"{db:.1f} {name}" for db, name in lowest)])
    return table(["lowest PSNR in dB, of which schedule", "precision", *counts], rows, texts=2)


def failures(distances: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each picture below REQUIRED_DB."""
    return [
        f"{sampler} {schedule} {count} steps in {precision}: {db} dB, below {REQUIRED_DB:g} dB"
        for precision, samplers in distances.items()
        for sampler, schedules in samplers.items()
        for schedule, row in schedules.items()
        for count, db in row.items()
        if db < REQUIRED_DB
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 when a picture misses what is required."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    distances = measure(options.bundle, options.side, options.steps)
    figures = {
        "side": options.side,
        "guidance_scale": GUIDANCE_SCALE,
        "prompt": PROMPTS[1],
        "required_db": REQUIRED_DB,
        "psnr_db": distances,
    }
    path = options.output / "step-counts.json"
    return finish(stamped(figures), path, as_markdown(distances), failures(distances))


if __name__ == "__main__":
    sys.exit(main())
