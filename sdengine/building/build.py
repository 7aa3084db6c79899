"""Build a bundle: checkpoint, modules, ONNX, the target's files, manifest."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sdengine.backends.native.graph import read_graph
from sdengine.building.architecture import choose_defaults, describe, token_table_file
from sdengine.building.options import TARGETS, BuildOptions, gpu_capabilities, versions
from sdengine.building.peak_memory import PeakMemory
from sdengine.building.report import BuildReport, Progress
from sdengine.bundle.manifest import (
    TOKEN_TABLE_TENSOR,
    Manifest,
    NetworkEntry,
    NetworkOptions,
    Source,
    TensorEntry,
)
from sdengine.bundle.tensors import TensorSpec
from sdengine.bundle.writer import check_target, write_bundle
from sdengine.checkpoints import Checkpoint, load_checkpoint
from sdengine.checkpoints.weights import save_tensors
from sdengine.compilers import get_compiler
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.native.sensitivity import LayerError, exact_steps, layer_errors
from sdengine.compilers.tensorrt.engine import FLAVOURS
from sdengine.compilers.tensorrt.scratch import scratch_by_size
from sdengine.errors import Cancelled, EngineBuildError, ExportError
from sdengine.export.cache import open_cache
from sdengine.export.exporter import Exporter
from sdengine.export.network import ExportedNetwork
from sdengine.export.sizes import check_multiples
from sdengine.models.contracts import size_multiple
from sdengine.storage.tensor_file import map_tensors
from sdengine.version import __version__

_TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


def build(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    *,
    target: str = "native",
    resolutions: Sequence[int | tuple[int, int]] = (512,),
    batch: int = 1,
    precision: str = "fp16",
    controlnet: bool = True,
    gpus: Sequence[str] = (),
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    kernels: str = "auto",
    timing_cache: str | os.PathLike[str] | None = None,
    refit: bool = False,
    strip: bool = False,
    measure_layers: bool = False,
    force: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> BuildReport:
    """Compile a checkpoint into a bundle.

    Args:
        checkpoint: a folder as diffusers writes them, a single file with the original names,
            "demo", or what `load_checkpoint` opened.
        output: the bundle's folder; its parent must exist.
        target: "native", "openvino", "torch", "tensorrt-rtx" or "tensorrt".
        resolutions: sizes in pixels that requests may ask for: sides of squares, or pairs of width
            and height. Requests that name no size take the checkpoint's own, or the first.
        batch: images that one run makes; larger requests take several runs.
        precision: what weights are stored in: "fp32", "bf16" or "fp16". TensorRT's engines compute
            in it too, but for an autoencoder whose values leave the range of fp16.
        controlnet: let the U-Net read ControlNet residuals.
        gpus: names such as "rtx4090" or "sm89" that TensorRT-RTX builds for; none is the GPU that
            is present.
        workspace_bytes: the most that a TensorRT engine may take for scratch.
        optimization_level: how long TensorRT searches, 0 to 5.
        kernels: "native" for TensorRT's own, "triton" for ours as plugins of full TensorRT, or
            "auto", which times both for each node on the GPU and keeps the faster; it means
            "native" for other targets.
        timing_cache: file that full TensorRT keeps its measurements in; None is one for the GPU in
            the user's cache.
        refit: make engines whose weights can be exchanged.
        strip: leave weights out of the engines. Such a bundle does not run before TensorRT's
            refitter has put them back. Both are tried on a small engine first.
        measure_layers: for target native, compare each layer in bf16 and in 8 bits with itself in
            fp32, and let the bundle name those that are computed plainly because they err too much.
        force: replace a bundle that is there already.
        cache: keep exported networks, and take those that were exported before; see `cache_dir`.
        progress: called before each stage, and for each step of TensorRT's builder, with the
            stage's name, the stages done, and all stages.
        cancel: once set, the build ends within a stage, or at once where TensorRT builds, and
            leaves nothing behind.

    Returns:
        Where the time and memory went, and the error of each network.

    Raises:
        ConfigError: an argument is invalid.
        CheckpointError: the checkpoint is missing, incomplete, damaged or of another kind.
        ExportError: a network cannot be exported, or its export computes something else.
        EngineBuildError: the target's compiler failed.
        BackendUnavailableError: the target's compiler is not installed, or cannot do what `refit`
            or `strip` ask for.
        OutOfMemoryError: building an engine takes more memory than is free.
        OutputError: the place is taken or cannot be written.
        Cancelled: `cancel` was set.
    """
    options = BuildOptions(
        target=target,
        resolutions=resolutions,
        batch=batch,
        precision=precision,
        gpus=gpus,
        workspace_bytes=workspace_bytes,
        optimization_level=optimization_level,
        kernels=kernels,
        timing_cache=timing_cache,
        refit=refit,
        strip=strip,
        measure_layers=measure_layers,
        cancel=cancel,
    )
    spec, capabilities = options.checked()
    sizes = list(spec.sizes)
    place = Path(output)
    check_target(place, force=force)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    check_multiples(sizes, size_multiple(source.unet_config, source.vae_config.downscale))

    def fill(folder: Path) -> Manifest:
        with run.stage("read"):
            architecture, defaults = describe(source), choose_defaults(source, sizes)
            run.leaves_fp16 = architecture.vae.compute_fp32
            origin = Source(name=source.name, sha256=source.sha256)
        entries = run.compile_networks(folder)
        with run.stage("tokenizer"):
            (folder / "tokenizer").mkdir()
            for name, content in source.tokenizer_files().items():
                (folder / "tokenizer" / name).write_bytes(content)
        run.begin("hash")
        return Manifest(
            sdengine_version=__version__,
            name=source.name,
            target=target,
            precision=precision,
            resolutions=sizes,
            max_batch=batch,
            architecture=architecture,
            defaults=defaults,
            networks=entries,
            source=origin,
            versions=versions(target),
            compute_capabilities=capabilities,
        )

    memory = PeakMemory()
    try:
        with open_cache(cache, beside=place) as exports:
            exporter = Exporter(source, exports, controlnet=controlnet)
            run = _Build(source, exporter, target, spec, memory, progress, measure_layers)
            run.spec = replace(spec, progress=run.tell_step)
            path = write_bundle(place, fill, force=force)
    finally:
        peak_bytes = memory.end()
    run.end()
    return BuildReport(
        path=path,
        seconds=run.seconds,
        peak_bytes=peak_bytes,
        max_error=run.max_error,
        bundle_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        replaced=run.replaced,
        layers=run.layers,
    )


@dataclass
class _Build:
    """The stages of one build, one after the other, and what they found out."""

    checkpoint: Checkpoint
    exporter: Exporter
    target: str
    spec: CompileSpec
    memory: PeakMemory
    progress: Progress | None
    measure_layers: bool
    leaves_fp16: bool = False  # the autoencoder; known once the checkpoint is read
    seconds: dict[str, float] = field(default_factory=dict)
    max_error: dict[str, float] = field(default_factory=dict)
    replaced: dict[str, dict[str, int]] = field(default_factory=dict)
    layers: dict[str, list[LayerError]] = field(default_factory=dict)
    _open: tuple[str, float] | None = None

    @property
    def total_stages(self) -> int:
        """Read, export, compile and measure each network, tokenizer, hash."""
        return 3 + (3 if self.measure_layers else 2) * len(self.exporter.networks)

    def tell_step(self, phase: str, step: int, steps: int) -> None:
        """Report how far the compiler is within a stage."""
        if self.progress is not None:
            self.progress(f"compile {phase} {step}/{steps}", len(self.seconds), self.total_stages)

    def begin(self, name: str) -> None:
        """Start a stage that `end` ends."""
        if self.spec.cancel is not None and self.spec.cancel.is_set():
            raise Cancelled("the build was cancelled.")
        if self.progress is not None:
            self.progress(name, len(self.seconds), self.total_stages)
        self._open = (name, time.perf_counter())

    def end(self) -> None:
        """End the stage that was begun."""
        if self._open is not None:
            name, started = self._open
            self.seconds[name] = time.perf_counter() - started
            self._open = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report and time what happens inside the block."""
        self.begin(name)
        yield
        self.end()

    def compile_networks(self, folder: Path) -> dict[str, NetworkEntry]:
        """Write the files of one network after the other."""
        entries = {}
        for network in self.exporter.networks:
            entries[network] = self._compile(network, folder)
            if network in self.checkpoint.text_encoder_configs:
                path = folder / token_table_file(network)
                _write_token_table(self.checkpoint, network, path, self.spec.precision)
            gc.collect()
        return entries

    def _compile(self, name: str, folder: Path) -> NetworkEntry:
        options: dict[str, Any] = {}
        if TARGETS[self.target]:
            with self.stage(f"export {name}"):
                exported, precision = self._export(name)
                if self.target in FLAVOURS:
                    options["precision"] = precision
        else:
            with self.stage(f"load {name}"):
                module, contract = self.exporter.module(name), self.exporter.contract(name)
                exported = ExportedNetwork(
                    name, None, contract.inputs, contract.outputs, module, None
                )
        if exported.max_error is not None:
            self.max_error[name] = exported.max_error
        if name == "unet":
            options["controlnet"] = self.exporter.options["controlnet"]
        with self.stage(f"compile {name}"):
            compiled = get_compiler(self.target)(exported, folder, self.spec)
            self.memory.add_process(compiled.peak_bytes)
            options |= compiled.options.model_dump()
            told = "scratch_bytes" in options
            if self.target in FLAVOURS and exported.onnx_path is not None and not told:
                contract = self.exporter.contract(name, precision)
                options["scratch_bytes"] = scratch_by_size(exported.onnx_path, contract, self.spec)
                options["scratch_from"] = "graph"
        if self.measure_layers:
            with self.stage(f"measure {name}"):
                self.layers[name] = self._measure(name, folder, compiled.files)
                if exact := exact_steps(self.layers[name]):
                    options["exact"] = exact
        if compiled.replaced:
            self.replaced[name] = dict(compiled.replaced)
        return NetworkEntry(
            files=compiled.files,
            inputs=_entries(exported.inputs),
            outputs=_entries(exported.outputs),
            options=NetworkOptions.model_validate(options),
        )

    def _measure(self, name: str, folder: Path, files: list[str]) -> list[LayerError]:
        """Compare the layers at the smallest size, or at a side of 256 pixels."""
        contract = self.exporter.contract(name)
        multiple = size_multiple(self.checkpoint.unet_config, self.checkpoint.vae_config.downscale)
        side = min(min(min(size) for size in self.spec.sizes), 256) // multiple * multiple
        example = contract.example(1, side, side, seed=0)
        inputs = {s.name: x.numpy() for s, x in zip(contract.inputs, example, strict=True)}
        graph, weights = (folder / file for file in files)
        return layer_errors(read_graph(graph), map_tensors(weights), inputs)

    def _export(self, name: str) -> tuple[ExportedNetwork, str]:
        """Export in the precision that the target compiles from, and say which."""
        if self.target not in FLAVOURS:
            return self.exporter.export(name), "fp32"  # its compiler rounds the weights
        precision = self.spec.precision
        is_vae = name.startswith("vae")
        if precision == "fp16" and is_vae and self.leaves_fp16:
            return self._export_wider(name)
        try:
            return self.exporter.export(name, precision), precision
        except ExportError:
            if precision != "fp16" or not is_vae:
                raise
            return self._export_wider(name)

    def _export_wider(self, name: str) -> tuple[ExportedNetwork, str]:
        capabilities = gpu_capabilities(self.target, self.spec.tensorrt.gpus)
        precision = "bf16" if all(cc >= 80 for cc in capabilities) else "fp32"
        return self.exporter.export(name, precision), precision


def _write_token_table(checkpoint: Checkpoint, part: str, path: Path, precision: str) -> None:
    """Write the table that the host looks tokens up in; NumPy, which does it, knows no bf16."""
    dtype = torch.float32 if precision == "fp32" else torch.float16
    stored = next(t for name, t in checkpoint.tensors(part) if name == _TOKEN_TABLE)
    table = stored.to(dtype).contiguous()
    if not torch.isfinite(table).all():
        raise EngineBuildError(
            f"{part}: the token table is not finite in {precision}. Build with --precision fp32."
        )
    save_tensors({TOKEN_TABLE_TENSOR: table}, path)


def _entries(specs: tuple[TensorSpec, ...]) -> list[TensorEntry]:
    return [
        TensorEntry.model_validate(
            {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}
        )
        for spec in specs
    ]
