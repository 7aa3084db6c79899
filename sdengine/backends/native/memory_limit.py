"""Memory limit of a native bundle: what it takes, and how its weights shrink to fit.

Winograd's transformed weights are four times as large as a convolution's own at tiles of 4x4, 1.8
times at 2x2. Under a limit the largest give way first; what is left is refused with its figures.
Counted are weights and the maps between operations; scratch of each operation, some tens of
megabytes, comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.native.packing import packed_bytes
from sdengine.backends.native.prepare import Prepared, prepare
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import resolve_shapes


def plan_native_memory(
    bundle: Bundle, memory_bytes: int, low_memory: bool, precision: str, isa: str
) -> tuple[MemoryBudget, dict[str, int]]:
    """Return the budget of a bundle, and the most that each network's packed weights may take.

    Args:
        bundle: of target native.
        memory_bytes: the limit.
        low_memory: networks are freed once a request is done with them.
        precision: what they compute in.
        isa: the instruction set that they run on.
    """
    sizes = [tuple(size) for size in bundle.manifest.resolutions]
    largest = max(sizes, key=math.prod)
    plain = _prepared(bundle, largest, precision, isa, {})
    maps = sum(one.program().arena_bytes for one in plain.values())
    weights = {name: packed_bytes(one.packing) for name, one in plain.items()}
    left = max(memory_bytes - maps, 1)
    limits = {}
    if sum(weights.values()) > left and not low_memory:
        limits = {name: size * left // sum(weights.values()) for name, size in weights.items()}
    elif low_memory and max(weights.values()) > left:
        limits = {name: left for name in weights}
    needs = []
    for width, height in sizes:
        prepared = _prepared(bundle, (width, height), precision, isa, limits)
        weights = {name: packed_bytes(one.packing) for name, one in prepared.items()}
        maps = sum(one.program().arena_bytes for one in prepared.values())
        most = max(weights.values())
        needs.append(SizeNeeds(width, height, weights, {}, maps, maps, 0, most))
    return MemoryBudget(needs, memory_bytes, "memory_bytes", low_memory), limits


def _prepared(
    bundle: Bundle,
    size: tuple[int, ...],
    precision: str,
    isa: str,
    limits: Mapping[str, int],
) -> dict[str, Prepared]:
    """Prepare what an image needs, with the rows that guidance takes for one."""
    length = bundle.manifest.architecture.text_encoders[0].chunk_length
    found = {}
    for name, entry in bundle.manifest.networks.items():
        if name == "vae_encoder":
            continue
        rows = 1 if name == "vae_decoder" else 2
        sides = {"batch": rows, "width": size[0], "height": size[1], "sequence": length}
        shapes = resolve_shapes(name, entry.inputs, sides)
        found[name] = prepare(bundle, name, shapes, precision, isa, limits.get(name))
    return found
