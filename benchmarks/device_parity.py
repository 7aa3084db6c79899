"""Pictures of the demo model on a GPU, compared with the CPU's, equal seeds.

    python -m sdengine.benchmarks.device_parity --targets tensorrt-rtx,triton --cache DIR

The CPU computes in fp32. Builds the bundles that the cache lacks, prints a Markdown table, writes
device-parity.json, and fails when a picture is further from the CPU's than REQUIRED_DB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import sdengine
from sdengine.benchmarks.accuracy_tables import pictures as picture_table
from sdengine.benchmarks.bundles import Model, bundle_of
from sdengine.benchmarks.cases import GPU_SIDES, TARGETS, bundle_target
from sdengine.benchmarks.gpu import describe, require_backends
from sdengine.benchmarks.pictures import (
    GUIDANCE_SCALE,
    PROMPTS,
    Pictures,
    below_required,
    compare,
    finish,
    pictures,
)
from sdengine.benchmarks.records import RESULTS, stamped
from sdengine.errors import ConfigError, SdengineError
from sdengine.storage.cache_place import cache_dir

REQUIRED_DB = 30.0


def by_side(
    bundle: str, backend: str, precision: str, sides: Sequence[int], steps: int
) -> dict[int, Pictures]:
    """Return the pictures of a backend by side in pixels."""
    with sdengine.load(bundle, backend, precision) as engine:
        return {side: pictures(engine, steps, side) for side in sides}


def failures(table: Mapping[str, Mapping[int, Sequence[float]]]) -> list[str]:
    """Return a line for each target and side with a picture below REQUIRED_DB."""
    return below_required(table, lambda _: REQUIRED_DB, " at ")


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
        targets = options.targets.split(",")
        for target in targets:
            if target not in TARGETS["cuda"]:
                raise ConfigError.for_field("targets", target, ", ".join(TARGETS["cuda"]))
        require_backends(*targets)
        expected = by_side("demo", "native", "fp32", sides, options.steps)
        for target in targets:
            model = Model.on_gpu("demo")
            bundle = bundle_of(model, bundle_target(target), cache, lambda _: None).path
            found[target] = by_side(bundle, target, "auto", sides, options.steps)
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    table = compare(found, expected)
    figures = {
        "steps": options.steps,
        "guidance_scale": GUIDANCE_SCALE,
        "prompts": PROMPTS,
        "required_db": REQUIRED_DB,
        "psnr_db": table,
        "gpu": describe(),
    }
    path = options.output / "device-parity.json"
    shown = picture_table(table, f"PSNR of {len(PROMPTS)} pictures against the CPU's in fp32")
    status = finish(stamped(figures, "triton"), path, shown, failures(table))
    path.with_suffix(".md").write_text(f"{shown}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
