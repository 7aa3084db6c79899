"""Memory estimate: what a model's networks will take on a GPU, before any engine is built.

It adds up weights, scratch, latents and images. Engines that were built say what they take; for
others it follows from the graphs.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from sdengine import _native
from sdengine.backends.shared_arena import MAX_EVALUATIONS, MAX_REGISTERS
from sdengine.backends.tensorrt.arena import rows_of
from sdengine.building import kept_scratch
from sdengine.building.architecture import own_size
from sdengine.building.options import float_precision
from sdengine.bundle.controls import is_control
from sdengine.bundle.manifest import Manifest
from sdengine.checkpoints.checkpoint import TEXT_ENCODERS
from sdengine.checkpoints.part_source import PartSource
from sdengine.errors import ConfigError
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter, part_of
from sdengine.export.fusion import fuse
from sdengine.export.liveness import peak_activation_bytes
from sdengine.export.sizes import check_batch, check_multiples, parse_sizes
from sdengine.export.static_shapes import fix_shapes
from sdengine.export.trace import placeholders, trace
from sdengine.export.weights import attach_weights
from sdengine.models.contracts import has_weight, size_multiple
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig

_RGB = 3
# What only some requests run, in memory of its own.
_OF_SOME = ("vae_encoder", "tiny_decoder", "tiny_encoder", "image_encoder")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SizeEstimate:
    """The estimate for one image size, in bytes.

    Args:
        width, height: of an image, in pixels.
        batch: images that one run makes.
        scratch_bytes: by network, the tensors between its nodes; networks run one after the other
            and share one block, so the largest counts.
        told: networks whose scratch the engine's builder told; that of the others follows from
            their graphs.
        pool_bytes: latents, noise, the sampler's table, the images, and what controls compute in.
        total_bytes: with all weights resident.
        low_total_bytes: with `low_memory`, where each network is freed once it is done.
        more_bytes: by network that only some requests run, such as the VAE encoder of those that
            start from a picture: its weights and scratch, which are in none of the totals.
    """

    width: int
    height: int
    batch: int
    scratch_bytes: dict[str, int]
    told: list[str]
    pool_bytes: int
    total_bytes: int
    low_total_bytes: int
    more_bytes: dict[str, int]


@dataclass(frozen=True)
class BuiltMemory:
    """Memory of a bundle's engines, as their builder told it.

    Args:
        precision: of the bundle.
        batch: images that one run of its engines makes.
        weight_bytes: by network, what the engine keeps on the GPU.
        scratch_bytes: by network and image size, what a context computes in.
    """

    precision: str
    batch: int
    weight_bytes: Mapping[str, int]
    scratch_bytes: Mapping[str, Mapping[tuple[int, int], int]]


@dataclass(frozen=True)
class MemoryEstimate:
    """The estimate for a model.

    Args:
        name: of the model.
        precision: of weights and tensors.
        weight_bytes: by network.
        sizes: one for each size, in the order asked for.
    """

    name: str
    precision: str
    weight_bytes: dict[str, int]
    sizes: list[SizeEstimate]


def estimate_memory(
    source: PartSource,
    *,
    precision: str = "fp16",
    resolutions: Sequence[int | tuple[int, int]] | None = None,
    batch: int = 1,
    built: BuiltMemory | None = None,
    progress: Progress | None = None,
) -> MemoryEstimate:
    """Trace the networks, without their weights, and add up what running them takes.

    Where the builder did not tell, the scratch is that of the fused graph, each tensor freed once
    nobody reads it; a compiler fuses more, joins the rows of prompts of up to four chunks and takes
    workspace for its kernels. The CUDA context and what the driver keeps for captured graphs are
    not in it.

    Args:
        source: a checkpoint, or an architecture.
        precision: "fp32", "bf16" or "fp16".
        resolutions: as for `build`; None is what the model was trained at, and 1.5 and 2 times it.
        batch: images that one run makes.
        built: what the builder of the model's engines told, which counts where precision and batch
            are those.
        progress: called before each graph with what is found in it, the networks done, and all.

    Raises:
        ConfigError: an argument is invalid.
        ExportError: a network cannot be traced.
    """
    if precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", precision, ", ".join(TORCH_DTYPES))
    check_batch(batch)
    sizes = _usual_sizes(source) if resolutions is None else parse_sizes(resolutions)
    steered = any(is_control(part) for part in source.parts)
    exporter = Exporter(source, OnnxCache(), controlnet=steered)
    check_multiples(sizes, exporter.multiple)
    item_bytes = TORCH_DTYPES[precision].itemsize
    every = exporter.networks
    networks = [name for name in every if name not in _OF_SOME]
    weight_bytes = {name: _weight_bytes(source, name, item_bytes) for name in every}
    scratch: dict[str, dict[tuple[int, int], int]] = {name: {} for name in every}
    told: dict[str, Mapping[tuple[int, int], int]] = {}
    if built is not None and (built.precision, built.batch) == (precision, batch):
        weight_bytes |= {n: size for n, size in built.weight_bytes.items() if n in weight_bytes}
        told = {n: by_size for n, by_size in built.scratch_bytes.items() if n in scratch}
    for done, name in enumerate(every):
        scratch[name] |= {size: n for size, n in told.get(name, {}).items() if size in sizes}
        left = [size for size in sizes if size not in scratch[name]]
        tell = functools.partial(_tell, progress, done, len(every))
        if left:
            scratch[name] |= _scratch_bytes(exporter, name, precision, left, batch, tell)
    estimates = []
    of_some = {name: (weight_bytes.pop(name), scratch.pop(name)) for name in {*every} - {*networks}}
    resident = sum(weight_bytes.values())
    for size in sizes:
        needed = {name: by_size[size] for name, by_size in scratch.items()}
        told_here = [name for name in networks if size in told.get(name, {})]
        pool = _pool_bytes(exporter, size, batch, item_bytes)
        # Controls compute in memory of their own, as they take turns with the U-Net.
        pool += sum(scratch for name, scratch in needed.items() if is_control(name))
        total = resident + max(s for name, s in needed.items() if not is_control(name)) + pool
        low = _largest_stage(weight_bytes, needed) + pool
        more = {name: weights + by_size[size] for name, (weights, by_size) in of_some.items()}
        estimates.append(SizeEstimate(*size, batch, needed, told_here, pool, total, low, more))
    return MemoryEstimate(source.name, precision, weight_bytes, estimates)


def _usual_sizes(source: PartSource) -> list[tuple[int, int]]:
    unet, vae = source.config("unet"), source.config("vae")
    assert isinstance(unet, UNetConfig) and isinstance(vae, VAEConfig)
    (side, _), multiple = own_size(unet, vae), size_multiple(unet, vae.downscale)
    between = round(1.5 * side / multiple) * multiple
    return parse_sizes([side, between, 2 * side])


def built_memory(manifest: Manifest) -> BuiltMemory | None:
    """Return what the builder told when a bundle was built; None where it told nothing."""
    weight_bytes: dict[str, int] = {}
    scratch: dict[str, dict[tuple[int, int], int]] = {}
    for name, network in manifest.networks.items():
        options = network.options
        if options.weight_bytes is not None:
            weight_bytes[name] = options.weight_bytes
        if options.scratch_from != "builder" or not options.scratch_bytes:
            continue
        told = {size: options.scratch_at(size) for size in manifest.resolutions}
        scratch[name] = {size: value for size, value in told.items() if value is not None}
    if not weight_bytes and not scratch:
        return None
    precision = float_precision(manifest.precision)
    return BuiltMemory(precision, manifest.max_batch, weight_bytes, scratch)


def _largest_stage(weight_bytes: dict[str, int], scratch_bytes: dict[str, int]) -> int:
    """Return the most that a stage takes alone: text encoders, or the U-Net with its controls."""
    weights: Counter[str] = Counter()
    scratch: Counter[str] = Counter()
    for name, size in weight_bytes.items():
        stage = TEXT_ENCODERS[0] if name in TEXT_ENCODERS else name
        stage = "unet" if is_control(name) else stage
        weights[stage] += size
        if not is_control(name):
            scratch[stage] = max(scratch[stage], scratch_bytes[name])
    return max(weights[stage] + scratch[stage] for stage in weights)


def _weight_bytes(source: PartSource, network: str, item_bytes: int) -> int:
    """Count a network's weights; the token table stays with the host."""
    shapes = source.shapes(part_of(network))
    return item_bytes * sum(
        math.prod(shape) for name, shape in shapes.items() if has_weight(network, name)
    )


def _scratch_bytes(
    exporter: Exporter,
    network: str,
    precision: str,
    sizes: list[tuple[int, int]],
    batch: int,
    progress: Callable[[str], None],
) -> dict[tuple[int, int], int]:
    """Return what is kept of the sizes, and find the others in a graph that is traced for them."""
    rows = rows_of(network, batch)
    content = {
        "network": network,
        "config": exporter.source.config(part_of(network)).to_dict(),
        "options": exporter.options,
        "precision": precision,
        "rows": rows,
    }
    known = kept_scratch.find(content)
    missing = [size for size in sizes if size not in known]
    if not missing:
        return {size: known[size] for size in sizes}
    progress(f"trace {network}")
    contract = exporter.contract(network, precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{network}.onnx"
        with placeholders(contract.module, contract.dtype) as state:
            model: onnx.ModelProto = trace(contract, path)
            attach_weights(model, state, contract, path.with_suffix(".data"), write=False)
    found: dict[tuple[int, int], int] = {}
    for width, height in missing:
        progress(f"{network} at {width}x{height}")
        if network in TEXT_ENCODERS and found:
            found[width, height] = next(iter(found.values()))
            continue
        fixed = fix_shapes(model, contract.at_size(rows, height, width))
        found[width, height] = peak_activation_bytes(fuse(fixed)[0])
    kept_scratch.keep(content, found)
    return {size: {**known, **found}[size] for size in sizes}


def _tell(progress: Progress | None, done: int, total: int, what: str) -> None:
    if progress is not None:
        progress(what, done, total)


def _pool_bytes(exporter: Exporter, size: tuple[int, int], batch: int, item_bytes: int) -> int:
    width, height = size
    (sample, *_) = exporter.contract("unet").at_size(batch, height, width).inputs
    shape = [int(side) for side in sample.shape]
    regions = _native.trajectory_regions(shape, 2, MAX_EVALUATIONS, MAX_REGISTERS)
    image_bytes = _RGB * width * height * (item_bytes + 1)  # decoded, and as pixels
    return sum(size_bytes for _, size_bytes, _, _ in regions) + image_bytes
