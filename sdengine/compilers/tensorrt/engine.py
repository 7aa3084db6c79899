"""Compiler of targets tensorrt and tensorrt-rtx: an engine of an ONNX graph, built in a process."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from sdengine import _native
from sdengine.backends import nvidia_driver
from sdengine.backends.cache_file import capability_name, present_gpu
from sdengine.backends.tensorrt.arena import MAX_CHUNKS, engine_sizes, row_counts, rows_of
from sdengine.backends.tensorrt.backend import TensorRtRtxBackend
from sdengine.bundle.manifest import NetworkOptions
from sdengine.bundle.tensors import resolve_shapes, size_name
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.compilers.tensorrt.gpus import compute_capabilities, known_gpus
from sdengine.compilers.tensorrt.kernel_choice import NATIVE, TRITON, node_name
from sdengine.compilers.tensorrt.plugin_nodes import (
    KernelPlan,
    Run,
    forced_plan,
    measured_plan,
    native_plan,
    supported_nodes,
)
from sdengine.compilers.tensorrt.process import run_job
from sdengine.compilers.tensorrt.quantisation.graph import written_beside
from sdengine.compilers.tensorrt.whole_choice import build_fastest, rivals
from sdengine.errors import ConfigError, OutOfMemoryError
from sdengine.export.fusion import FusionReport, fuse
from sdengine.export.layer_choice import choose_layer
from sdengine.export.lowering import to_plugins, to_standard
from sdengine.export.process_memory import free_bytes
from sdengine.kernels.ptx import OLDEST_DRIVERS_PTX, version_of_cuda, version_written

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork

_log = logging.getLogger(__name__)
# Peak of the builder's process by size of the graph's weights: what was seen, rounded up.
_MEMORY_PER_WEIGHT_BYTE = 3.0
_MEMORY_BASE_BYTES = 500_000_000

Shapes = dict[str, tuple[list[int], list[int], list[int]]]


@dataclass(frozen=True)
class Flavour:
    """What tells the two products apart.

    Args:
        target: name of the target.
        module: that is imported.
        extra: of the package, that installs it.
        capabilities: that engines can be built for on any machine; empty where the builder needs
            the GPU itself.
    """

    target: str
    module: str
    extra: str
    capabilities: tuple[int, ...]


RTX = Flavour(
    "tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", TensorRtRtxBackend.compute_capabilities
)
FULL = Flavour("tensorrt", "tensorrt", "tensorrt", ())
FLAVOURS = {flavour.target: flavour for flavour in (RTX, FULL)}


def target_capabilities(flavour: Flavour, gpus: tuple[str, ...]) -> list[int]:
    """Return the compute capabilities to name to the builder; full TensorRT is told none.

    Where no GPU is named it is the one that is present. TensorRT-RTX must be told that one too:
    untold, it builds for 8.0 to 12.0 but not for 7.5.

    Raises:
        ConfigError: a GPU is unknown, the target does not build for it, or none is named where
            none is present.
    """
    if gpus and not flavour.capabilities:
        raise ConfigError(
            f"gpu: target {flavour.target} builds for the GPU of the machine that it runs on, so "
            f"{', '.join(gpus)} cannot be named. Leave gpu out, or build for target {RTX.target}, "
            "which builds ahead for other GPUs."
        )
    if not gpus and not _native.cuda_available()[0]:
        if not flavour.capabilities:
            raise ConfigError(
                f"gpu: this machine has none, and target {flavour.target} builds for the GPU that "
                f"is present. Build on a machine that has one, or for target {RTX.target}."
            )
        raise ConfigError(
            f"gpu: this machine has none to build for, so target {flavour.target} wants to be told "
            f"one: {known_gpus(flavour.capabilities)}."
        )
    if not gpus and flavour.capabilities:
        return [_present_capability(flavour)]
    return compute_capabilities(gpus, flavour.target, flavour.capabilities)


def _present_capability(flavour: Flavour) -> int:
    name, capability = present_gpu()
    if capability not in flavour.capabilities:
        raise ConfigError(
            f"gpu: {name}, the GPU of this machine, has compute capability "
            f"{capability_name(capability)}, which target {flavour.target} does not build for. "
            f"Build for target {FULL.target} or torch, or name a GPU to build ahead for: "
            f"{known_gpus(flavour.capabilities)}."
        )
    return capability


def profiles_by_size(network: ExportedNetwork, spec: CompileSpec) -> dict[str, list[Shapes]]:
    """Return the profiles of each image size, "512x768", by growing number of rows.

    A profile has the least, usual and largest shape of each input.
    """
    found: dict[str, list[Shapes]] = {}
    for size in spec.sizes:
        profiles = []
        for rows in row_counts(network.name, spec.batch):
            least, most = (
                resolve_shapes(network.name, network.inputs, engine_sizes(size, rows, chunks))
                for chunks in (1, MAX_CHUNKS)
            )
            profiles.append(
                {name: (list(least[name]), list(least[name]), list(most[name])) for name in least}
            )
        found[size_name(size)] = profiles
    return found


def make_profiles(network: ExportedNetwork, spec: CompileSpec) -> list[Shapes]:
    """Return the engine's profiles; a text encoder has the same for all image sizes."""
    profiles: list[Shapes] = []
    for shapes in itertools.chain(*profiles_by_size(network, spec).values()):
        if shapes not in profiles:
            profiles.append(shapes)
    return profiles


def largest_by_size(network: ExportedNetwork, spec: CompileSpec) -> dict[str, dict[str, Any]]:
    """Return what an engine is timed at: by image size, its profile and its tensors.

    That is the profile with most rows, at the usual length of a prompt.
    """
    profiles = make_profiles(network, spec)
    found = {}
    for size, (name, by_rows) in zip(
        spec.sizes, profiles_by_size(network, spec).items(), strict=True
    ):
        sizes = engine_sizes(size, rows_of(network.name, spec.batch))
        specs = (*network.inputs, *network.outputs)
        shapes = resolve_shapes(network.name, specs, sizes)
        tensors = {s.name: [list(shapes[s.name]), s.dtype] for s in specs}
        inputs = [s.name for s in network.inputs]
        found[name] = {
            "profile": profiles.index(by_rows[-1]), "tensors": tensors, "inputs": inputs
        }  # fmt: skip
    return found


def compile_rtx(network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
    """Write an engine of TensorRT-RTX; see `compile_engine`."""
    return compile_engine(network, out_dir, spec, RTX)


def compile_full(network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
    """Write an engine of full TensorRT; see `compile_engine`."""
    return compile_engine(network, out_dir, spec, FULL)


def compile_engine(
    network: ExportedNetwork, out_dir: Path, spec: CompileSpec, flavour: Flavour
) -> Compiled:
    """Write `<name>.engine`, a profile for each image size and number of rows, weights shared.

    Args:
        network: an exported network, in the precision that it shall be computed in.
        out_dir: an existing folder.
        spec: sizes, batch, GPUs and limits.
        flavour: which of the two products.

    Raises:
        ConfigError: see `target_capabilities`.
        OutOfMemoryError: building takes more memory than is free.
        EngineBuildError: the builder failed; the message ends with its log.
    """
    assert network.onnx_path is not None
    output = out_dir / f"{network.name}.engine"
    shared = {
        "module": flavour.module,
        "capabilities": target_capabilities(flavour, spec.tensorrt.gpus),
        "workspace_bytes": spec.tensorrt.workspace_bytes,
        "optimization_level": spec.tensorrt.optimization_level,
        "timing_cache": _timing_cache(flavour, spec),
    }
    _check_memory(network.name, network.onnx_path)
    model, network = choose_layer(onnx.load(network.onnx_path, load_external_data=False), network)
    assert network.onnx_path is not None
    fused, report = fuse(model)

    def run(job: dict[str, Any]) -> dict[str, Any]:
        result = run_job({**shared, **job}, network.name, spec.progress, spec.cancel)
        for note in result["notes"]:
            _log.warning("%s", note)
        return result

    plugins_for = _plugin_target(flavour, spec)
    plan = _plan_kernels(network, spec, model, (fused, report), plugins_for, run)
    if plan.summary:
        _log.info("%s", plan.summary)
    profiles = make_profiles(network, spec)

    def build(plan: KernelPlan, path: Path) -> dict[str, Any]:
        assert network.onnx_path is not None
        job = {
            "task": "build",
            "output": str(path),
            "profiles": profiles,
            "plugins_for": plugins_for if plan.plugins else None,
            "user_allocation": True,
        }
        lowered = _lowered(fused, plan)
        with written_beside(network.onnx_path, lowered, spec.tensorrt.calibration) as graph:
            return run({**job, "onnx": str(graph)})

    def time(engines: Mapping[str, Path]) -> Mapping[str, Mapping[str, Any]]:
        # Those with plugins carry their code, so that none is registered.
        paths = {name: str(path) for name, path in engines.items()}
        sizes = largest_by_size(network, spec)
        return dict(run({"task": "time_engines", "engines": paths, "sizes": sizes})["results"])

    plan, result = build_fastest(network.name, rivals(plan), output, build, time)
    told: dict[str, Any] = {**plan.options, **_memory_options(result, network, spec)}
    told["rows"] = row_counts(network.name, spec.batch)
    if network.name == "unet":
        told["max_chunks"] = MAX_CHUNKS
    if plan.plugins and plugins_for is not None:
        version = version_written(plugins_for["cc"], plugins_for["ptx_version"])
        told["ptx_version"] = f"{version // 10}.{version % 10}"
    options = NetworkOptions.model_validate(told)
    return Compiled(
        [output.name],
        result["peak_bytes"],
        dict(report.replaced),
        options,
        inputs=network.inputs,
        outputs=network.outputs,
    )


def _plan_kernels(
    network: ExportedNetwork,
    spec: CompileSpec,
    model: onnx.ModelProto,
    fused: tuple[onnx.ModelProto, FusionReport],
    plugins_for: dict[str, int] | None,
    run: Run,
) -> KernelPlan:
    if plugins_for is None:
        no_choice = spec.tensorrt.kernels == NATIVE
        return native_plan("" if no_choice else "TensorRT-RTX has no plugins")
    supported = supported_nodes(*fused, plugins_for["cc"])
    usual: dict[str, dict[str, int]] = {}
    known: list[list[Shapes]] = []
    rows = rows_of(network.name, spec.batch)
    for size, profiles in zip(spec.sizes, profiles_by_size(network, spec).values(), strict=True):
        if profiles not in known:
            known.append(profiles)
            usual[size_name(size)] = engine_sizes(size, rows)
    if spec.tensorrt.kernels == TRITON:
        return forced_plan(network, model, supported, usual)
    return measured_plan(
        network, model, supported, usual, lambda job: run({**job, "plugins_for": plugins_for})
    )


def _lowered(fused: onnx.ModelProto, plan: KernelPlan) -> onnx.ModelProto:
    if not plan.plugins:
        return to_standard(fused)
    return to_plugins(fused, lambda node: node_name(node) in plan.plugins, plan.maps)


def _plugin_target(flavour: Flavour, spec: CompileSpec) -> dict[str, int] | None:
    """Return the fields of `PluginTarget`: the present GPU, and PTX that its driver reads."""
    if spec.tensorrt.kernels == NATIVE or flavour is RTX:  # which has no plugins
        return None
    known = nvidia_driver.cuda_version()
    readable = OLDEST_DRIVERS_PTX if known is None else version_of_cuda(known)
    return {"cc": present_gpu()[1], "ptx_version": min(OLDEST_DRIVERS_PTX, readable)}


def _timing_cache(flavour: Flavour, spec: CompileSpec) -> dict[str, Any] | None:
    if flavour is RTX:  # where it has no effect, and would ask the GPU for it
        return None
    gpu, capability = present_gpu()
    path = None if spec.tensorrt.timing_cache is None else str(spec.tensorrt.timing_cache)
    return {"path": path, "gpu": gpu, "compute_capability": capability}


def _memory_options(
    result: dict[str, Any], network: ExportedNetwork, spec: CompileSpec
) -> dict[str, Any]:
    """Return what the builder told of memory: scratch by image size, weights on the GPU.

    Contexts of a size with different rows take turns in one region, which does for the largest.
    """
    options: dict[str, Any] = {}
    if (told := result["activation_bytes"]) is not None:
        profiles = make_profiles(network, spec)
        options["scratch_bytes"] = {
            name: max(told[profiles.index(shapes)] for shapes in by_rows)
            for name, by_rows in profiles_by_size(network, spec).items()
        }
        options["scratch_from"] = "builder"
    if result["weights_bytes"] is not None:
        options["weight_bytes"] = result["weights_bytes"]
    return options


def estimate_bytes(onnx_path: Path) -> int:
    """Return about how much memory building a graph's engine takes."""
    weights = onnx_path.with_name(f"{onnx_path.name}.data")
    size = weights.stat().st_size if weights.exists() else 0
    return int(_MEMORY_BASE_BYTES + _MEMORY_PER_WEIGHT_BYTE * size)


def _check_memory(name: str, onnx_path: Path) -> None:
    needed, found = estimate_bytes(onnx_path), free_bytes()
    if needed > found:
        raise OutOfMemoryError(
            f"{name}: building its engine takes about {needed / 1e9:.1f} GB of memory, and "
            f"{found / 1e9:.1f} GB are free. Close other programs, or build on a larger machine."
        )
