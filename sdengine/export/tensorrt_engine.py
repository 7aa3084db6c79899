"""Compile an ONNX graph to a TensorRT or TensorRT-RTX engine, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from sdengine import _native
from sdengine.backends.base import Compiled, CompileSpec, resolve_shapes
from sdengine.cache_dir import cache_dir
from sdengine.errors import ConfigError, EngineBuildError, OutOfMemoryError
from sdengine.export.fusion import FusionReport, fuse
from sdengine.export.gpus import compute_capabilities, known_gpus
from sdengine.export.lowering import to_plugins, to_standard
from sdengine.export.memory import free_bytes

if TYPE_CHECKING:
    from sdengine.export.export import ExportedNetwork

CHUNK_TOKENS = 77
MAX_CHUNKS = 4
# Peak of the builder's process by size of the graph's weights: what was seen, rounded up.
_MEMORY_PER_WEIGHT_BYTE = 3.0
_MEMORY_BASE_BYTES = 500_000_000

# Without the current folder, which may be anybody's, among the places of modules.
_WORKER = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from sdengine.export.tensorrt_worker import main; sys.exit(main())"
)
_PLUGIN_DTYPES = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}

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


RTX = Flavour("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", (75, 80, 86, 89, 120, 121))
FULL = Flavour("tensorrt", "tensorrt", "tensorrt", ())
FLAVOURS = {flavour.target: flavour for flavour in (RTX, FULL)}


def target_capabilities(flavour: Flavour, gpus: tuple[str, ...]) -> list[int]:
    """Return the compute capabilities to build for; none means the GPU that is present.

    Raises:
        ConfigError: a GPU is unknown, the target does not build for it, or none is named where
            none is present.
    """
    if gpus and not flavour.capabilities:
        raise ConfigError.for_field(
            "gpu",
            ", ".join(gpus),
            f"nothing: target {flavour.target} builds for the GPU of the machine that it runs on",
            f"Target {RTX.target} builds ahead for other GPUs.",
        )
    if not gpus and not _native.cuda_available()[0]:
        raise ConfigError.for_field(
            "gpu",
            "nothing",
            f"for target {flavour.target} on a machine without a GPU: "
            + (known_gpus(flavour.capabilities) or "nothing; build on a machine that has one"),
        )
    return compute_capabilities(gpus, flavour.target, flavour.capabilities)


def rows_of(network: str, batch: int) -> int:
    """Return how many rows an engine computes at once.

    Guidance evaluates prompt and negative prompt of each image together; images are decoded one
    by one.
    """
    return 2 * batch if network == "unet" else 2 if network.startswith("text_encoder") else 1


def make_profiles(network: ExportedNetwork, spec: CompileSpec) -> list[Shapes]:
    """Return the least, usual and largest shape of each input, for each image size.

    All are fixed but the length of the prompt, in chunks of CHUNK_TOKENS.
    """
    profiles: list[Shapes] = []
    for width, height in spec.sizes:
        sizes = {"batch": rows_of(network.name, spec.batch), "height": height, "width": width}
        least, most = (
            resolve_shapes(network.name, network.inputs, {**sizes, "sequence": CHUNK_TOKENS * n})
            for n in (1, MAX_CHUNKS)
        )
        profile: Shapes = {
            name: (list(least[name]), list(least[name]), list(most[name])) for name in least
        }
        if profile not in profiles:  # a text encoder's is the same for every size
            profiles.append(profile)
    return profiles


def compile_engine(
    network: ExportedNetwork, out_dir: Path, spec: CompileSpec, flavour: Flavour
) -> Compiled:
    """Write `<name>.engine`, one optimisation profile an image size, weights shared.

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
    job = {
        "module": flavour.module,
        "output": str(output),
        "profiles": make_profiles(network, spec),
        "capabilities": target_capabilities(flavour, spec.gpus),
        "workspace_bytes": spec.workspace_bytes,
        "optimization_level": spec.optimization_level,
        # TensorRT-RTX has none, and would ask the GPU for it.
        "timing_cache": None if flavour is RTX else str(_timing_cache()),
    }
    _check_memory(network.name, network.onnx_path)
    plugins_for = _plugin_target(flavour, spec)
    with _fused(network.onnx_path, plugins_for) as (graph, replaced):
        try:
            job = {**job, "onnx": str(graph), "plugins_for": plugins_for}
            result = _run(job, network.name, spec.progress)
        except BaseException:
            output.unlink(missing_ok=True)
            raise
    return Compiled([output.name], result["peak_bytes"], replaced)


@contextmanager
def _fused(path: Path, plugins_for: int | None) -> Iterator[tuple[Path, dict[str, int]]]:
    """Give a graph with each attention and GroupNorm as one operator, and how many there are.

    It lies beside the other for as long as the block lasts, because they share their weights.

    Args:
        path: of the other.
        plugins_for: compute capability that plugins are compiled for, where there shall be some.
    """
    model = onnx.load(path, load_external_data=False)
    fused, report = fuse(model)
    place = path.with_name(f".{os.getpid()}.fused.{path.name}")
    if plugins_for is None:
        lowered = to_standard(fused)
    else:
        lowered = to_plugins(fused, lambda node: _has_plugin(node, model, report, plugins_for))
    try:
        onnx.save(lowered, place)
        yield place, dict(report.replaced)
    finally:
        place.unlink(missing_ok=True)


def _has_plugin(
    node: onnx.NodeProto, model: onnx.ModelProto, report: FusionReport, cc: int
) -> bool:
    from sdengine.export.tensorrt_plugins import attention_variants, group_norm_variants

    kind = model.graph.output[0].type.tensor_type.elem_type
    dtype = _PLUGIN_DTYPES.get(kind)
    if dtype is None:
        return False
    if node.name in report.head_dims:
        causal = node.op_type == "causal_attention"
        return bool(attention_variants(report.head_dims[node.name], causal, dtype, cc))
    channels = next(t.dims[0] for t in model.graph.initializer if t.name == node.input[1])
    groups = next(a.i for a in node.attribute if a.name == "num_groups")
    return bool(group_norm_variants(channels, groups, dtype, cc))


def _plugin_target(flavour: Flavour, spec: CompileSpec) -> int | None:
    if spec.kernels == "native" or flavour is RTX:  # which has no plugins
        return None
    major, _, minor = str(_native.cuda_device_info()["compute_capability"]).partition(".")
    return 10 * int(major) + int(minor)


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


def _run(
    job: dict[str, Any], name: str, progress: Callable[[str, int, int], None] | None
) -> dict[str, Any]:
    """Let a worker do the job and pass on how far it is."""
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as worker,
    ):
        try:
            assert worker.stdin is not None and worker.stdout is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin as jobs:
                jobs.write(json.dumps(job))
            for line in worker.stdout:
                with contextlib.suppress(ValueError):
                    last = json.loads(line)
                if "phase" in last and progress is not None:
                    progress(f"{name}: {last['phase']}", last["step"] + 1, last["steps"])
            worker.wait()
        finally:
            worker.kill()
        complaints.seek(0)
        said = complaints.read().decode(errors="replace")
    if "result" in last:
        result: dict[str, Any] = last["result"]
        return result
    raise _failure(name, job["module"], last, worker.returncode, said)


def _failure(
    name: str, module: str, last: dict[str, Any], status: int, complaints: str
) -> EngineBuildError | OutOfMemoryError:
    if status == -signal.SIGKILL:
        return OutOfMemoryError(
            f"{name}: the builder was killed, which the system does when memory runs out."
        )
    log = [str(line) for line in last.get("log", [])] or complaints.strip().splitlines()
    told = last.get("error", f"the builder ended with status {status}")
    return EngineBuildError(
        f"{name}: {module} cannot build the engine: {told}."
        + "".join(f"\n    {line[:400]}" for line in log[-12:])
    )


def _timing_cache() -> Path:
    folder = cache_dir("tensorrt")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "timing.cache"
