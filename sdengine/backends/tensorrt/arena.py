"""Arena: regions of a GPU's memory for a bundle's tensors at every image size, planned ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sdengine import _native
from sdengine.backends.memory_budget import SizeNeeds
from sdengine.backends.shared_arena import (
    MAX_EVALUATIONS,
    MAX_GRAPHS,
    MAX_REGISTERS,
    SAMPLE,
    STEP_TENSORS,
    Region,
    region_of,
)
from sdengine.bundle.controls import is_control
from sdengine.bundle.manifest import Manifest, NetworkEntry
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import ITEM_BYTES, resolve_shapes
from sdengine.errors import BundleError

# Kept back for the driver's side of contexts and graphs until it is measured: an allowance.
GRAPH_BYTES = MAX_GRAPHS * (4 << 20)
# Tokens of a chunk, and the most chunks of a prompt: what engines are built for.
CHUNK_TOKENS, MAX_CHUNKS = 77, 4
# U-Net, as the native runtime numbers it; text encoders come one before the other ahead of it.
_DENOISE, _DECODE = 1, 2
# Regions of the decoder: the images' pixels, and whether a value was not finite.
PIXELS, FLAG = "pixels", "flag"
STEP_DTYPES = ("float32", "float16", "bfloat16")

Sizes = Mapping[str, int]


def scratch_of(network: str) -> str:
    """Return the name of the region that a network's context computes in."""
    return f"{network}.scratch"


def text_encoders(manifest: Manifest) -> list[str]:
    """Return the names of the text encoders' networks."""
    return [encoder.network for encoder in manifest.architecture.text_encoders]


def rows_of(network: str, batch: int) -> int:
    """Return the most rows that an engine computes at once.

    Guidance evaluates prompt and negative prompt of each image together; images are decoded one
    by one.
    """
    if network == "unet" or is_control(network):
        return 2 * batch
    return 2 if network.startswith("text_encoder") else 1


def row_counts(network: str, batch: int) -> list[int]:
    """Return the numbers of rows that an engine has profiles for: powers of two, and the most.

    So a request that has few rows, such as one image without guidance, computes no others.
    """
    most = rows_of(network, batch)
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def engine_sizes(size: tuple[int, int], rows: int, chunks: int = 1) -> dict[str, int]:
    """Return the value of each symbol in an engine's shapes, for width and height in pixels.

    All are fixed in a profile but the length of the prompt: 1 to MAX_CHUNKS chunks.
    """
    width, height = size
    return {"batch": rows, "height": height, "width": width, "sequence": chunks * CHUNK_TOKENS}


def built_chunks(manifest: Manifest) -> int:
    """Return the most chunks of CHUNK_TOKENS that the U-Net's engine was built for."""
    unet = manifest.networks.get("unet")
    return (unet.options.max_chunks if unet is not None else None) or MAX_CHUNKS


def max_chunks(manifest: Manifest) -> int:
    """Return the most chunks of a prompt that a bundle's engines take."""
    length = manifest.architecture.text_encoders[0].chunk_length
    return max(1, built_chunks(manifest) * CHUNK_TOKENS // length)


def used_networks(manifest: Manifest) -> list[str]:
    """Return the names of the networks that every request runs, in their order."""
    return [*text_encoders(manifest), "unet", "vae_decoder"]


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
    regions += [(PIXELS, 3 * width * height, _DECODE, _DECODE), (FLAG, 4, _DECODE, _DECODE)]
    return regions


def own_regions(
    network: str, entry: NetworkEntry, sizes: Sizes, scratch_bytes: int
) -> list[Region]:
    """Return the regions of a network that has an arena of its own, at one image size.

    Args:
        network, entry: as the manifest names and describes it.
        sizes: the value of each symbol of its shapes; the largest that it runs.
        scratch_bytes: what its contexts compute in.
    """
    tensors = tensor_bytes(network, entry, sizes).items()
    regions = [(region_of(network, name), size, 0, 0) for name, size in tensors]
    return [*regions, (scratch_of(network), scratch_bytes, 0, 0)]


def _step_regions(manifest: Manifest, sizes: Sizes) -> list[Region]:
    entry = manifest.networks["unet"]
    shapes = resolve_shapes("unet", entry.inputs, sizes)
    dtypes = {tensor.name: tensor.dtype for tensor in entry.inputs}
    if len(shapes.get(SAMPLE, ())) != 4 or dtypes[SAMPLE] not in STEP_DTYPES:
        raise BundleError("unet: its input 'sample' is missing or not [rows,C,h,w] of floats.")
    rows, *rest = shapes[SAMPLE]
    # Two rows an image, which is what engines are built for.
    shape = (-(-rows // 2), manifest.architecture.vae.latent_channels, *rest[1:])
    regions = _native.trajectory_regions(
        shape, 2, MAX_EVALUATIONS, MAX_REGISTERS, dtypes[SAMPLE], rows
    )
    # Wider than the latents where the U-Net reads more channels than it predicts.
    wide = ITEM_BYTES[dtypes[SAMPLE]] * math.prod(shapes[SAMPLE])
    return [
        (name, max(size, wide) if name == SAMPLE else size, first, last)
        for name, size, first, last in regions
    ]


def tensor_bytes(network: str, entry: NetworkEntry, sizes: Sizes) -> dict[str, int]:
    """Return what each input and output of a network takes."""
    tensors = (*entry.inputs, *entry.outputs)
    shapes = resolve_shapes(network, tensors, sizes)
    return {t.name: math.prod(shapes[t.name]) * ITEM_BYTES[t.dtype] for t in tensors}


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
    return {
        name: manifest.networks[name].options.scratch_at(size) for name in used_networks(manifest)
    }
