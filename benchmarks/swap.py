"""Swaps of LoRAs on loaded networks of full size: time, memory, and the bits of A, B and A again.

    python benchmarks/swap.py --bundles sd15=BUNDLE sdxl=BUNDLE --models sd15=MODEL sdxl=MODEL

Each BUNDLE is one of target native, each MODEL a checkpoint of its architecture, as the one that it
was built from; weights may be synthetic. The LoRAs are made here, of rank 32,
for attention and feed-forward layers of U-Net and text encoders. Each bundle is measured in a
process of its own. The size of pictures makes no difference: no weights depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sdengine.adapters.library import AdapterLibrary
from sdengine.adapters.modules import bundle_modules
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import SessionOptions
from sdengine.backends.native import packed_cache
from sdengine.backends.native.backend import NativeBackend, NativeModule
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.benchmarks.measures import OtherLoad, Spread
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.pipeline.loaded_networks import Networks
from sdengine.request.request import FIELDS

RANK = 32
CHANGED = re.compile(
    r".*\.attentions\.\d+\.(proj_in|proj_out|.*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"
    r"|.*\.(self_attn\.\w+_proj|mlp\.fc[12])"
)
PRECISION = "bf16"
# Of a LoRA, in seconds on two cores.
GOALS = {"sd15": 1.0, "sd21": 1.0, "sdxl": 3.0}
CHECKPOINT_GOAL = 5.0


def make_lora(bundle: Bundle, path: Path, seed: int) -> int:
    """Write a LoRA for every layer that is usually trained; return their count."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for module in bundle_modules(bundle):
        if module.idle or module.weight is None or not CHANGED.fullmatch(module.path):
            continue
        out, inner, *kernel = module.weight
        stem = f"{module.network}.{module.path}"
        down = generator.standard_normal((RANK, inner, *kernel), np.float32) / inner**0.5
        up = generator.standard_normal((out, RANK, *[1] * len(kernel)), np.float32) * 0.01
        tensors[f"{stem}.lora_A.weight"] = down.astype(np.float16)
        tensors[f"{stem}.lora_B.weight"] = up.astype(np.float16)
    save_file(tensors, path)
    return len(tensors) // 2


@dataclass(frozen=True)
class Taken:
    """What a swap took: seconds by the clock, and of all cores."""

    seconds: float
    cpu_seconds: float


def spread(taken: Sequence[Taken]) -> dict[str, Any]:
    """Summarise some swaps."""
    return {
        "seconds": asdict(Spread.of([one.seconds for one in taken])),
        "cpu_seconds": asdict(Spread.of([one.cpu_seconds for one in taken])),
    }


class Swaps:
    """A bundle's networks in one session, whose weights are swapped."""

    def __init__(self, bundle: Bundle, threads: int, *, keeps: bool = False) -> None:
        self.bundle = bundle
        # Under low_memory nothing is kept, so that every swap merges anew.
        options = SessionOptions(PRECISION, threads, low_memory=not keeps)
        self.session = NativeBackend().open(bundle, options)
        self.networks = [
            name
            for name in bundle.manifest.networks
            if name in ("text_encoder", "text_encoder_2", "unet") or name.startswith("vae_")
        ]
        self.library = AdapterLibrary(bundle)
        self.loaded = Networks(bundle, self.session)
        self.size = bundle.manifest.resolutions[0][::-1]
        self.modules: dict[str, NativeModule] = {}

    def lora(self, path: Path, strength: float) -> WeightSet:
        """Read a LoRA, where that was not done yet."""
        return self.library.weight_set(FIELDS["loras"].checked({path: strength}))

    def model(self, path: str) -> WeightSet:
        """Read a checkpoint, where that was not done yet."""
        return self.library.weight_set((), FIELDS["model"].checked(path))

    def to(self, weights: WeightSet) -> Taken:
        """Let all networks compute with other weights."""
        started, started_cpu = time.perf_counter(), time.process_time()
        for network in self.networks:
            self.modules.pop(network, None)
            batch = 1 if network.startswith("vae") else 2
            module = self.loaded.get(network, batch, *self.size, weights=weights)
            assert isinstance(module, NativeModule)
            module.bound()
            self.modules[network] = module
        return Taken(time.perf_counter() - started, time.process_time() - started_cpu)

    @property
    def own_bytes(self) -> int:
        """What is merged, in memory of its own."""
        return sum(module._packed.own_bytes for module in self.modules.values())

    @property
    def packed_bytes(self) -> int:
        """What the networks read."""
        tensors = [m._packed.tensors for m in self.modules.values()]
        return sum(tensor.nbytes for one in tensors for tensor in one.values())

    def checksums(self) -> list[int]:
        """Return a checksum of everything that the networks read."""
        return [
            zlib.crc32(tensor.reshape(-1).view(np.uint8).data)
            for module in self.modules.values()
            for _, tensor in sorted(module._packed.tensors.items())
        ]


def anonymous_bytes() -> int:
    """Return what the process has of memory that is no file's."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    ]
    return int(line.split()[1]) * 1024


def measure(place: str, checkpoint: str | None, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one bundle."""
    bundle = open_bundle(place, verify="size")
    with tempfile.TemporaryDirectory() as folder:
        a, b = (Path(folder) / f"{name}.safetensors" for name in "ab")
        layers = [make_lora(bundle, path, seed) for seed, path in enumerate((a, b))]
        swaps = Swaps(bundle, threads)
        swaps.to(PRISTINE)  # which packs the weights where that was never done
        started = time.perf_counter()
        first = swaps.lora(a, 1.0)
        reading = time.perf_counter() - started
        before = anonymous_bytes()
        taken_first = swaps.to(first)
        grown, own_bytes, packed_bytes = (
            anonymous_bytes() - before,
            swaps.own_bytes,
            swaps.packed_bytes,
        )
        wanted = swaps.checksums()
        taken, back = [], []
        for turn in range(rounds):
            for path in (b, a):
                taken.append(swaps.to(swaps.lora(path, 0.9 - 0.01 * turn)))
            back.append(swaps.to(PRISTINE))
        after = anonymous_bytes()
        swaps.to(swaps.lora(b, 1.0))
        swaps.to(first)
        is_same = swaps.checksums() == wanted
        figures = {} if checkpoint is None else whole_checkpoint(swaps, checkpoint, rounds)
        del swaps
        packed_cache._open.clear()
        fresh = Swaps(bundle, threads)
        fresh.to(fresh.lora(a, 1.0))
        is_fresh = fresh.checksums() == wanted
        del fresh
        kept = Swaps(bundle, threads, keeps=True)
        sets = [kept.lora(path, 1.0) for path in (a, b)]
        for weights in sets:
            kept.to(weights)
        to_kept = [kept.to(sets[turn % 2]) for turn in range(2 * rounds)]
        return {
            "lora_bytes": a.stat().st_size,
            "lora_layers": layers[0],
            "reading_seconds": reading,
            "first": spread([taken_first]),
            "swap": spread(taken),
            "back": spread(back),
            "kept": spread(to_kept),
            "own_bytes": own_bytes,
            "grown_bytes": grown,
            "grown_after_all_bytes": after - before,
            "packed_bytes": packed_bytes,
            "a_b_a_is_a": is_same,
            "a_is_a_fresh_load": is_fresh,
            **figures,
        }


def whole_checkpoint(swaps: Swaps, checkpoint: str, rounds: int) -> dict[str, Any]:
    """Swap all networks to a checkpoint and back."""
    started = time.perf_counter()
    weights = swaps.model(checkpoint)
    reading = time.perf_counter() - started
    taken = []
    for _ in range(rounds):
        swaps.to(PRISTINE)
        taken.append(swaps.to(weights))
    figures = {"whole_reading_seconds": reading, "whole": spread(taken)}
    swaps.to(PRISTINE)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--bundles", nargs="+", metavar="ARCH=BUNDLE", help=f"of {', '.join(GOALS)}"
    )
    parser.add_argument(
        "--models", nargs="+", metavar="ARCH=MODEL", default=[], help="for swaps of all weights"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        place, *models = options.run
        model = models[0] if models else None
        print(json.dumps(measure(place, model, options.rounds, options.threads)))
        return
    places = dict(one.split("=", 1) for one in options.bundles or ())
    models = dict(one.split("=", 1) for one in options.models)
    if not places or places.keys() - GOALS.keys():
        parser.error(f"--bundles: expected ARCH=BUNDLE, with ARCH of {', '.join(GOALS)}")
    rows = []
    for arch, place in places.items():
        load = OtherLoad()
        # By its file: with -m a checkout that it is started in would stand for the package.
        checkpoint = [models[arch]] if arch in models else []
        command = [sys.executable, __file__, "--run", place, *checkpoint]
        command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = {"other_load_percent": load.percent(), **json.loads(done.stdout)}
        rows.append({"arch": arch, "goal_seconds": GOALS[arch], **figures})
        print(json.dumps(rows[-1]), flush=True)
    record = {
        "precision": PRECISION,
        "isa": chosen_isa(),
        "threads": options.threads,
        "rounds": options.rounds,
        "rank": RANK,
        "whole_goal_seconds": CHECKPOINT_GOAL,
        "rows": rows,
    }
    write_record(stamped(record), RESULTS / "swap.json")


if __name__ == "__main__":
    main()
