"""Compare a GPU's pictures of the demo model with the CPU's, equal seeds.

    python -m sdengine.benchmarks.device_parity --targets tensorrt-rtx,triton --cache DIR

The CPU computes in fp32. Builds the bundles that the cache lacks, prints a Markdown table, writes
device-parity.json, and fails when a picture is further from the CPU's than REQUIRED_DB.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.bundles import prepare
from sdengine.benchmarks.cases import GPU_SIDES, TARGETS, Case
from sdengine.benchmarks.gpu import describe, require_backends
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.pipeline_parity import GUIDANCE_SCALE, PROMPTS
from sdengine.benchmarks.records import software
from sdengine.cache_dir import cache_dir
from sdengine.errors import SdengineError

RESULTS = Path(__file__).parent / "results"
REQUIRED_DB = 30.0
Pictures = dict[int, list[NDArray[np.uint8]]]


def pictures(
    bundle: str, backend: str, precision: str, sides: Sequence[int], steps: int
) -> Pictures:
    """Return by side in pixels a picture of each of PROMPTS, picture i with seed i."""
    with sdengine.load(bundle, backend, precision) as engine:
        return {
            side: [
                engine.generate(
                    prompt,
                    steps=steps,
                    guidance_scale=GUIDANCE_SCALE,
                    seed=seed,
                    width=side,
                    height=side,
                ).arrays[0]
                for seed, prompt in enumerate(PROMPTS)
            ]
            for side in sides
        }


def compare(found: Mapping[str, Pictures], expected: Pictures) -> dict[str, dict[int, list[float]]]:
    """Return PSNR in dB by target and side, one value a picture."""
    return {
        target: {
            side: [round(psnr(a, e), 1) for a, e in zip(made[side], wanted, strict=True)]
            for side, wanted in expected.items()
        }
        for target, made in found.items()
    }


def failures(table: Mapping[str, Mapping[int, Sequence[float]]]) -> list[str]:
    """Return a line for each target and side with a picture below REQUIRED_DB."""
    return [
        f"{target} at {side}: {min(values)} dB, below {REQUIRED_DB:g} dB"
        for target, columns in table.items()
        for side, values in columns.items()
        if min(values) < REQUIRED_DB
    ]


def as_markdown(table: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """Return the lowest and the median PSNR by target and side as Markdown."""
    sides = list(next(iter(table.values())))
    lines = [
        f"| PSNR of {len(PROMPTS)} pictures against the CPU's in fp32, dB: lowest (median) | "
        + " | ".join(map(str, sides))
        + " |",
        "|---|" + "---:|" * len(sides),
    ]
    for target, columns in table.items():
        cells = [f"{min(v):.1f} ({np.median(v):.1f})" for v in columns.values()]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 when a picture misses what is required."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS["cuda"]))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    sides = GPU_SIDES["demo"]
    cache = options.cache or cache_dir("bench")
    found = {}
    try:
        cases = [
            Case(device="cuda", target=target, baseline_precision="fp16")
            for target in options.targets.split(",")
        ]
        require_backends(*(case.target for case in cases))
        expected = pictures("demo", "native", "fp32", sides, options.steps)
        for case in cases:
            bundle = prepare(case, cache, lambda _: None)["ours"].path
            found[case.target] = pictures(bundle, case.target, "auto", sides, options.steps)
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    table = compare(found, expected)
    record: dict[str, Any] = {
        "steps": options.steps,
        "guidance_scale": GUIDANCE_SCALE,
        "prompts": PROMPTS,
        "required_db": REQUIRED_DB,
        "psnr_db": table,
        "gpu": describe(),
        "versions": software("triton"),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "device-parity.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.output / "device-parity.md").write_text(as_markdown(table) + "\n")
    print(as_markdown(table))
    missed = failures(table)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
