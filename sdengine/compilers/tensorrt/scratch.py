"""Scratch of a network at each image size, from its graph, for bundles to say before they load."""

from __future__ import annotations

from pathlib import Path

import onnx

from sdengine.backends.tensorrt.arena import rows_of
from sdengine.bundle.tensors import size_name
from sdengine.compilers.base import CompileSpec
from sdengine.export.fusion import fuse
from sdengine.export.liveness import peak_activation_bytes
from sdengine.export.static_shapes import fix_shapes
from sdengine.models.network_contract import NetworkContract


def scratch_by_size(path: Path, contract: NetworkContract, spec: CompileSpec) -> dict[str, int]:
    """Return the bytes of the tensors between a graph's nodes, by "WIDTHxHEIGHT".

    Args:
        path: the graph; its weights are not read.
        contract: what it was exported from.
        spec: the sizes and the batch that it is compiled for.
    """
    model = onnx.load(path, load_external_data=False)
    rows = rows_of(contract.name, spec.batch)
    found: dict[str, int] = {}
    by_shapes: dict[str, int] = {}  # a text encoder's are the same for every size
    for width, height in spec.sizes:
        fixed = contract.at_size(rows, height, width)
        shapes = str(fixed.inputs)
        if shapes not in by_shapes:
            by_shapes[shapes] = peak_activation_bytes(fuse(fix_shapes(model, fixed))[0])
        found[size_name((width, height))] = by_shapes[shapes]
    return found
