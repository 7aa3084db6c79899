"""Where a bundle's tensors lie in a GPU's memory: regions for every image size, planned ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sdengine import _native
from sdengine.backends.memory_budget import SizeNeeds
from sdengine.bundle.manifest import Manifest, NetworkEntry
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BundleError

# Of a sampler program; what is longer or wider takes the host's path.
MAX_EVALUATIONS, MAX_REGISTERS = 2048, 8
MAX_GRAPHS = 8
# Kept back for the driver's side of captured graphs: an allowance, not a measurement.
GRAPH_BYTES = MAX_GRAPHS * (8 << 20)
MAX_CHUNKS = 4
# U-Net, as the native runtime numbers it; text encoders come one before the other ahead of it.
_DENOISE, _DECODE = 1, 2
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
# Tensors of the U-Net that the native trajectory reads and writes, under its own names.
STEP_TENSORS = ("sample", "timestep", "noise_pred")
STEP_DTYPES = ("float32", "float16", "bfloat16")

Region = tuple[str, int, int, int]
Sizes = Mapping[str, int]


def region_of(network: str, tensor: str) -> str:
    """Return the name of a tensor's region."""
    own = network == "unet" and tensor in STEP_TENSORS
    return tensor if own else f"{network}.{tensor}"


def scratch_of(network: str) -> str:
    """Return the name of the region that a network's context computes in."""
    return f"{network}.scratch"


def text_encoders(manifest: Manifest) -> list[str]:
    """Return the names of the text encoders' networks."""
    return [encoder.network for encoder in manifest.architecture.text_encoders]


def usual_sizes(manifest: Manifest, network: str, width: int, height: int) -> dict[str, int]:
    """Return the sizes that an engine was built for, as builds choose them."""
    rows = {"unet": 2 * manifest.max_batch, "vae_decoder": 1}.get(network, 2)
    sequence = MAX_CHUNKS * manifest.architecture.text_encoders[0].max_length
    return {"batch": rows, "height": height, "width": width, "sequence": sequence}


def plan_size(
    manifest: Manifest,
    size: tuple[int, int],
    sizes: Mapping[str, Sizes],
    scratch_bytes: Mapping[str, int | None],
) -> list[Region]:
    """Return the regions of one image size.

    Networks never run at once, so each has a stage of its own; the registers alone last from the
    U-Net to the decoder. A trajectory that is interrupted saves what it needs.

    Args:
        manifest: of the bundle.
        size: width and height in pixels.
        sizes: by network, the value of each symbol of its shapes; the largest that it runs.
        scratch_bytes: by network.

    Raises:
        BundleError: the manifest's U-Net is none.
    """
    encoders = text_encoders(manifest)
    stages = {name: 1 - len(encoders) + i for i, name in enumerate(encoders)}
    stages |= {"unet": _DENOISE, "vae_decoder": _DECODE}
    regions: list[Region] = []
    for name, entry in manifest.networks.items():
        if name not in stages:
            continue
        stage = stages[name]
        for tensor, size_bytes in tensor_bytes(name, entry, sizes[name]).items():
            if name != "unet" or tensor not in STEP_TENSORS:
                regions.append((region_of(name, tensor), size_bytes, stage, stage))
        regions.append((scratch_of(name), scratch_bytes.get(name) or 0, stage, stage))
    regions += _step_regions(manifest, sizes["unet"])
    width, height = size
    regions += [("pixels", 3 * width * height, _DECODE, _DECODE), ("flag", 4, _DECODE, _DECODE)]
    return regions


def _step_regions(manifest: Manifest, sizes: Sizes) -> list[Region]:
    entry = manifest.networks["unet"]
    shapes = resolve_shapes("unet", entry.inputs, sizes)
    dtypes = {tensor.name: tensor.dtype for tensor in entry.inputs}
    if len(shapes.get("sample", ())) != 4 or dtypes["sample"] not in STEP_DTYPES:
        raise BundleError("unet: its input 'sample' is missing or not [rows,C,h,w] of floats.")
    rows, *rest = shapes["sample"]
    # Two rows an image, which is what engines are built for.
    shape = (-(-rows // 2), manifest.architecture.vae.latent_channels, *rest[1:])
    regions = _native.trajectory_regions(
        shape, 2, MAX_EVALUATIONS, MAX_REGISTERS, dtypes["sample"], rows
    )
    # Wider than the latents where the U-Net reads more channels than it predicts.
    wide = _ITEM_BYTES[dtypes["sample"]] * math.prod(shapes["sample"])
    return [
        (name, max(size, wide) if name == "sample" else size, first, last)
        for name, size, first, last in regions
    ]


def tensor_bytes(network: str, entry: NetworkEntry, sizes: Sizes) -> dict[str, int]:
    """Return what each input and output of a network takes."""
    tensors = (*entry.inputs, *entry.outputs)
    shapes = resolve_shapes(network, tensors, sizes)
    return {t.name: math.prod(shapes[t.name]) * _ITEM_BYTES[t.dtype] for t in tensors}


def needs_of(
    bundle: Bundle,
    size: tuple[int, int],
    regions: Sequence[Region],
    scratch_bytes: Mapping[str, int | None],
) -> SizeNeeds:
    """Add up what one image size takes; an engine's file is about as large as its weights."""
    manifest = bundle.manifest
    files = {entry.path: entry.size_bytes for entry in manifest.files}
    weights = {
        name: sum(files[path] for path in manifest.networks[name].files) for name in scratch_bytes
    }
    encoders = text_encoders(manifest)
    others = [size_bytes for name, size_bytes in weights.items() if name not in encoders]
    scratch = {scratch_of(name) for name in scratch_bytes}
    return SizeNeeds(
        *size,
        weight_bytes=weights,
        scratch_bytes=dict(scratch_bytes),
        tensor_bytes=_native.plan_regions([r for r in regions if r[0] not in scratch])[0],
        arena_bytes=_native.plan_regions(regions)[0],
        graph_bytes=GRAPH_BYTES,
        stage_weight_bytes=max([sum(weights.get(name, 0) for name in encoders), *others]),
    )


def recorded_scratch(manifest: Manifest, size: tuple[int, int]) -> dict[str, int | None]:
    """Return the scratch that a build wrote down for each network that requests run."""
    found: dict[str, int | None] = {}
    for name in (*text_encoders(manifest), "unet", "vae_decoder"):
        if name in manifest.networks:
            recorded = manifest.networks[name].options.get("scratch_bytes")
            value = recorded.get("x".join(map(str, size))) if isinstance(recorded, dict) else None
            found[name] = value if type(value) is int and 0 <= value < 1 << 50 else None
    return found
