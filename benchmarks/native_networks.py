"""Networks on the native target, timed in turns with OpenVINO and eager torch in one process.

    sdengine build CHECKPOINT -o native --target native --resolutions 512,768,1024
    sdengine build CHECKPOINT -o openvino --target openvino --resolutions 512,768,1024
    sdengine build CHECKPOINT -o torch --target torch --resolutions 512,768,1024
    python benchmarks/native_networks.py --native native --openvino openvino --torch torch \\
        --network unet --sizes 512,768 --record benchmarks/results/native-networks.jsonl

Every side reads the same inputs. Round after round each is loaded, compared with torch in fp32 (or
with the first side, where no torch bundle is given), timed and dropped before the next is loaded,
so that none is pressed for memory.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends import get_backend
from sdengine.backends.base import Module, SessionOptions
from sdengine.benchmarks.measures import OtherLoad, Spread, relative_rms
from sdengine.benchmarks.native_tables import network_records
from sdengine.benchmarks.records import append_record, stamped
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import numpy_dtype, resolve_shapes

# As many as guidance needs for one picture; the other networks have one row.
_ROWS = {"unet": 2, "text_encoder": 2, "text_encoder_2": 2}
_CALLS = 2  # timed in each round, after one that is not
Array = NDArray[Any]


@dataclass(frozen=True)
class Side:
    """A way to compute a network."""

    backend: str
    bundle: str
    precision: str

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.backend} {self.precision}"

    def load(self, network: str, size: int, threads: int) -> Module:
        """Load the network for square pictures."""
        bundle = open_bundle(self.bundle, verify="size")
        entry = bundle.network(network)
        sizes = {"batch": _ROWS.get(network, 1), "height": size, "width": size, "sequence": 77}
        shapes = resolve_shapes(network, entry.inputs, sizes)
        backend = get_backend(self.backend)
        session = backend.open(bundle, SessionOptions(precision=self.precision, threads=threads))
        return session.load(network, shapes)


def make_inputs(module: Module) -> dict[str, Array]:
    """Return seeded inputs; ControlNet residuals are zero, as they are without a ControlNet."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for spec in module.inputs:
        shape = [int(side) for side in spec.shape]
        if "_residual" in spec.name:
            inputs[spec.name] = np.zeros(shape, numpy_dtype(spec.dtype))
        elif spec.name == "timestep":
            inputs[spec.name] = np.full(shape, 481.0, numpy_dtype(spec.dtype))
        elif spec.name == "time_ids":
            sizes = np.array([1024, 1024, 0, 0, 1024, 1024], np.float32)[: shape[1]]
            inputs[spec.name] = np.tile(sizes, (shape[0], 1))
        elif spec.dtype == "int64":
            inputs[spec.name] = rng.integers(1, 76, shape)
        else:
            values = rng.standard_normal(shape, dtype=np.float32)
            inputs[spec.name] = values.astype(numpy_dtype(spec.dtype))
    return inputs


def first_output(module: Module, inputs: Mapping[str, Array]) -> Array:
    """Run and return a copy of the first output."""
    outputs = module.run(inputs)
    return np.array(outputs[module.outputs[0].name], np.float32)


def measure(
    sides: list[Side], truth: Side | None, network: str, size: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Return errors and times of every side."""
    first = truth or sides[0]
    with contextlib.closing(first.load(network, size, threads)) as module:
        inputs = make_inputs(module)
        expected = first_output(module, inputs)
    del module
    gc.collect()
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    loading: dict[str, list[float]] = {side.name: [] for side in sides}
    errors: dict[str, float] = {}
    watched = OtherLoad()
    for _ in range(rounds):
        for side in sides:
            started = time.perf_counter()
            with contextlib.closing(side.load(network, size, threads)) as module:
                loading[side.name].append(time.perf_counter() - started)
                found = first_output(module, inputs)
                errors[side.name] = relative_rms(found, expected)
                for _ in range(_CALLS):
                    started = time.perf_counter()
                    module.run(inputs)
                    seconds[side.name].append(time.perf_counter() - started)
            del module
            gc.collect()
    return {
        "network": network,
        "size": size,
        "threads": threads,
        "error_against": first.name,
        "other_load_percent": watched.percent(),
        "sides": {
            name: {
                "seconds": asdict(Spread.of(times)),
                "load_seconds": statistics.median(loading[name]),
                "relative_rms": errors[name],
            }
            for name, times in seconds.items()
        },
    }


def main() -> int:
    """Measure and print; a record is written where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", required=True, help="bundle of target native")
    parser.add_argument("--openvino", help="bundle of target openvino")
    parser.add_argument(
        "--openvino-precisions", default="bf16,fp32", help="fp32 is faster where bf16 is not native"
    )
    parser.add_argument("--torch", help="bundle of target torch: the truth in fp32")
    parser.add_argument("--network", default="unet")
    parser.add_argument("--sizes", default="512")
    parser.add_argument("--precisions", default="bf16,int8", help="of the native side")
    parser.add_argument("--eager", default="", help="precisions in which torch is timed, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    sides = [Side("native", options.native, p) for p in options.precisions.split(",")]
    if options.openvino:
        precisions = options.openvino_precisions.split(",")
        sides += [Side("openvino", options.openvino, precision) for precision in precisions]
    truth = Side("torch", options.torch, "fp32") if options.torch else None
    sides += [Side("torch", options.torch, p) for p in options.eager.split(",") if p]
    for size in (int(text) for text in options.sizes.split(",")):
        figures = measure(sides, truth, options.network, size, options.threads, options.rounds)
        record = stamped({"bundle": Path(options.native).name, **figures}, "openvino")
        print(network_records([record]), flush=True)
        if options.record:
            append_record(record, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
