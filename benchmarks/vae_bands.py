"""The VAE in bands against whole maps: memory, processor time, and the difference of the results.

    python benchmarks/vae_bands.py --native NATIVE

NATIVE is a bundle of target native with the VAE of Stable Diffusion 1.5; weights may be synthetic.
Each run is a process of its own, whose largest resident memory is read before and behind it; the
sides take turns. Processor time is what others' load disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend, NativeModule
from sdengine.backends.native.banded_module import BandedModule
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.benchmarks.measures import OtherLoad, peak_bytes, relative_rms
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import resolve_shapes

NETWORKS = ("vae_decoder", "vae_encoder")
SIDES = {"whole maps": "never", "bands": "always"}
PRECISION = "bf16"
ERROR_SIDE = 256


def module_of(
    place: str, network: str, side: int, tiles: str, threads: int, precision: str = PRECISION
) -> BandedModule | NativeModule:
    """Load a network of a bundle at a side in pixels."""
    bundle = open_bundle(place, verify="size")
    sizes = {"batch": 1, "height": side, "width": side}
    shapes = resolve_shapes(network, bundle.network(network).inputs, sizes)
    options = SessionOptions(precision, threads, vae_tiles=tiles)
    module = NativeBackend().open(bundle, options).load(network, shapes)
    assert isinstance(module, BandedModule | NativeModule)
    return module


def drawn(module: BandedModule | NativeModule) -> dict[str, Any]:
    """Return seeded inputs."""
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal([int(n) for n in spec.shape], dtype=np.float32)
        for spec in module.inputs
    }


def errors(options: argparse.Namespace, network: str) -> dict[str, float]:
    """Compare both sides in bf16, and bands in fp32, with whole maps in fp32 at a small size."""
    found = {}
    for precision in ("fp32", PRECISION):
        for name, tiles in SIDES.items():
            module = module_of(
                options.native, network, ERROR_SIDE, tiles, options.threads, precision
            )
            ((_, result),) = module.run(drawn(module)).items()
            found[f"{name}, {precision}"] = result.copy()
    exact = found.pop("whole maps, fp32")
    return {name: relative_rms(result, exact) for name, result in found.items()}


def planned_bytes(module: BandedModule | NativeModule) -> int:
    """Return what a network's maps take."""
    if isinstance(module, BandedModule):
        return module.plan.planned_bytes
    return module.prepared.program().arena_bytes


def planned(options: argparse.Namespace, network: str, side: int) -> dict[str, Any]:
    """Return what both sides would take, without a run."""
    sides = {
        name: {
            "planned_bytes": planned_bytes(
                module_of(options.native, network, side, tiles, options.threads)
            )
        }
        for name, tiles in SIDES.items()
    }
    return {"network": network, "side": side, "sides": sides}


def run_once(place: str, network: str, side: int, tiles: str, threads: int, output: str) -> None:
    """Compute a network once on seeded inputs; write the result, print figures as JSON."""
    module = module_of(place, network, side, tiles, threads)
    inputs = drawn(module)
    assert module._packed is not None
    for tensor in module._packed.tensors.values():  # so that memory grows by maps alone
        tensor.reshape(-1).view(np.uint8)[::1024].sum()
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory is what it is now
    before = peak_bytes()
    started, started_cpu = time.perf_counter(), time.process_time()
    ((_, found),) = module.run(inputs).items()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    figures = {
        "planned_bytes": planned_bytes(module),
        "grown_bytes": peak_bytes() - before,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }
    np.save(output, found)
    print(json.dumps(figures))


def measure(options: argparse.Namespace, network: str, side: int, folder: Path) -> dict[str, Any]:
    """Run both sides in turns; return medians, and the difference of the results."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for _ in range(options.rounds):
        for name, tiles in SIDES.items():
            own = ["--run", network, str(side), tiles, str(folder / f"{tiles}.npy")]
            shared = ["--native", options.native, "--threads", str(options.threads)]
            # By its file: with -m a checkout that it is started in would stand for the package.
            command = [sys.executable, __file__, *own, *shared]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(done.stdout))
    whole, bands = (np.load(folder / f"{tiles}.npy") for tiles in SIDES.values())
    row = {
        "network": network,
        "side": side,
        "relative_rms": relative_rms(bands, whole),
        "sides": {
            name: {key: statistics.median(one[key] for one in found) for key in found[0]}
            for name, found in runs.items()
        },
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--native", required=True, help="bundle of target native")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048], metavar="PIXELS")
    parser.add_argument("--planned", type=int, nargs="*", default=[], help="sizes not to be run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        network, side, tiles, output = options.run
        run_once(options.native, network, int(side), tiles, options.threads, output)
        return
    for network in NETWORKS:  # which packs their weights where that was never done
        module_of(options.native, network, 64, "never", options.threads)
    load = OtherLoad()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(options, network, side, Path(folder))
            for side in options.sizes
            for network in NETWORKS
        ]
    rows += [planned(options, n, side) for side in options.planned for n in NETWORKS]
    record = {
        "bundle": Path(options.native).name,
        "precision": PRECISION,
        "isa": chosen_isa(),
        "threads": options.threads,
        "rounds": options.rounds,
        "other_load_percent": load.percent(),
        "error_side": ERROR_SIDE,
        "errors": {network: errors(options, network) for network in NETWORKS},
        "rows": rows,
    }
    write_record(stamped(record), RESULTS / "vae-bands.json")


if __name__ == "__main__":
    main()
