"""Bundle build: checkpoint, modules, ONNX, the target's files, manifest."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdengine.backends.native.graph import read_graph
from sdengine.building.architecture import (
    choose_defaults,
    describe,
    sizes_to_build,
    token_table_file,
)
from sdengine.building.latent_colours import fit_latent_rgb
from sdengine.building.options import BuildOptions, versions
from sdengine.building.report import BuildReport, Stages
from sdengine.bundle.architecture import Architecture
from sdengine.bundle.manifest import (
    TOKEN_TABLE_TENSOR,
    Manifest,
    NetworkEntry,
    NetworkOptions,
    Source,
    TensorEntry,
)
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.bundle.writer import check_target, write_bundle
from sdengine.checkpoints import Checkpoint, load_checkpoint
from sdengine.checkpoints.controlnet import ControlCheckpoint
from sdengine.checkpoints.controls import SteeredCheckpoint, open_controls
from sdengine.checkpoints.image_encoder import ImageEncoderCheckpoint, open_image_encoder
from sdengine.checkpoints.weights import save_tensors
from sdengine.compilers import COMPILERS, get_compiler
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.native.sensitivity import LayerError, exact_steps, layer_errors
from sdengine.compilers.registry import Compile
from sdengine.compilers.tensorrt.engine import FLAVOURS
from sdengine.compilers.tensorrt.quantisation.calibration import calibrate
from sdengine.compilers.tensorrt.quantisation.error import quantised_error
from sdengine.compilers.tensorrt.scratch import scratch_by_size
from sdengine.errors import CheckpointError, EngineBuildError, ExportError
from sdengine.export.cache import open_cache
from sdengine.export.exporter import Exporter
from sdengine.export.network import ExportedNetwork
from sdengine.export.process_memory import PeakMemory
from sdengine.export.sizes import check_multiples
from sdengine.models.contracts import size_multiple
from sdengine.storage.temporary import temporary_folder
from sdengine.storage.tensor_file import map_tensors
from sdengine.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdengine.building.options import BuildKeywords

_TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


def build(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    **keywords: Unpack[BuildKeywords],
) -> BuildReport:
    """Compile a checkpoint into a bundle.

    Args:
        checkpoint: a folder as diffusers writes them, a single file with the original names,
            "demo", "demo-inpainting", "demo-depth", or what `load_checkpoint` opened.
        output: the bundle's folder; its parent must exist.
        target: "native", "openvino", "torch", "tensorrt-rtx" or "tensorrt".
        resolutions: sizes in pixels that requests may ask for: sides of squares, or pairs of width
            and height; None is what the checkpoint was trained at, or says. Requests that name no
            size take the checkpoint's own, or the first. Bundles of target native run others too.
        batch: images that one run makes; larger requests take several runs. None is what the
            checkpoint says, or 1.
        precision: what weights are stored in: "fp32", "bf16" or "fp16". TensorRT's engines compute
            in it too, but for an autoencoder whose values leave the range of fp16. "fp8" (GPUs of
            compute capability 8.9 and from 9.0 on) and "int8" are fp16 with most of the U-Net's
            layers in eight bits, as far as a calibration on this machine's CPU finds that they err
            little.
        calibration: text file of prompts, one a line, that a build in eight bits is calibrated
            with; None is a few built-in ones.
        controlnet: let the U-Net read ControlNet residuals.
        controls: ControlNets that requests may steer it with: by name, folders as diffusers writes
            them, or single files. Each becomes a network of the bundle, `control_` and its name.
        image_encoder: for target native, the CLIP image encoder that the IP-Adapters of requests
            see pictures with: a folder as transformers' CLIPVisionModelWithProjection writes it.
        gpus: names such as "rtx4090" or "sm89" that TensorRT-RTX builds for; none is the GPU that
            is present.
        workspace_bytes: the most that a TensorRT engine may take for scratch.
        optimization_level: how long TensorRT searches, 0 to 5.
        kernels: "native" for TensorRT's own, "triton" for ours as plugins of full TensorRT, or
            "auto", which times both for each node on the GPU and keeps the faster; it means
            "native" for other targets.
        timing_cache: file that full TensorRT keeps its measurements in; None is one for the GPU in
            the user's cache.
        measure_layers: for target native, compare each layer in bf16 and in 8 bits with itself in
            fp32, and let the bundle name those that are computed plainly because they err too much;
            for engines in eight bits, where that happens anyway, report it.
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
        BackendUnavailableError: the target's compiler is not installed.
        OutOfMemoryError: building an engine takes more memory than is free.
        OutputError: the place is taken or cannot be written.
        Cancelled: `cancel` was set.
    """
    options = BuildOptions(**keywords)
    compiler = get_compiler(options.target)
    place = Path(output)
    check_target(place, force=options.force)
    source = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    options = options.completed(sizes_to_build(source), source.batch)
    check_multiples(
        [*options.sizes], size_multiple(source.unet_config, source.vae_config.downscale)
    )
    controls = open_controls(options.controls or {}, source)
    place_of_encoder = options.image_encoder
    encoder = None if place_of_encoder is None else open_image_encoder(place_of_encoder)
    ignored = {**source.ignored}
    for more in (*controls.values(), *(() if encoder is None else (encoder,))):
        ignored |= more.ignored
    memory = PeakMemory()
    try:
        with open_cache(options.cache, beside=place) as exports:
            steered = SteeredCheckpoint(source, controls, encoder)
            exporter = Exporter(steered, exports, controlnet=options.controlnet)
            networks = exporter.networks
            work = _Build(source, exporter, options, compiler, memory, networks, controls, encoder)
            path = write_bundle(place, work.write, force=options.force)
    finally:
        peak_bytes = memory.end()
    work.stages.end()
    return BuildReport(
        path=path,
        seconds=work.stages.seconds,
        peak_bytes=peak_bytes,
        max_error=work.max_error,
        bundle_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        replaced=work.replaced,
        layers=work.layers,
        guesses=source.guesses,
        ignored=ignored,
        not_taken_over=work.not_taken_over,
    )


def _build_signature() -> inspect.Signature:
    """Return what `help` shows: the options by name, with their defaults."""
    shown = inspect.signature(build)
    positional = [p for p in shown.parameters.values() if p.kind != p.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in fields(BuildOptions)
    ]
    return shown.replace(parameters=[*positional, *options])


build.__signature__ = _build_signature()  # type: ignore[attr-defined]


@dataclass
class _Build:
    """The stages of one build, one after the other, and what they found out."""

    checkpoint: Checkpoint
    exporter: Exporter
    options: BuildOptions
    compiler: Compile
    memory: PeakMemory
    networks: tuple[str, ...]
    controls: Mapping[str, ControlCheckpoint] = field(default_factory=dict)
    image_encoder: ImageEncoderCheckpoint | None = None
    max_error: dict[str, float] = field(default_factory=dict)
    replaced: dict[str, dict[str, int]] = field(default_factory=dict)
    layers: dict[str, list[LayerError]] = field(default_factory=dict)
    not_taken_over: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count them: read, preview, export, compile and measure a network, tokenizer, hash."""
        eight_bits = self.options.number_format is not None
        measured = self.options.measure_layers and not eight_bits
        total = 4 + (3 if measured else 2) * len(self.networks) + eight_bits
        self.stages = Stages(total, self.options.progress, self.options.cancel)
        self.spec = self.options.compile_spec(self.stages.compiler_step)

    def write(self, folder: Path) -> Manifest:
        """Write all files but the manifest, which is returned."""
        source, options = self.checkpoint, self.options
        with self.stages.stage("read"):
            architecture = describe(source, self.controls, self.image_encoder)
            self.not_taken_over = architecture.not_taken_over
            _check_chunks(architecture, options.target)
            defaults = choose_defaults(source, [*options.sizes])
            guesses = [asdict(guess) for guess in source.guesses]
            origin = Source.model_validate(
                {"name": source.name, "sha256": source.sha256, "guesses": guesses}
            )
        with self.stages.stage("preview"):
            colours, error = fit_latent_rgb(source.vae()) or (None, None)
            fitted = {"latent_rgb": colours, "latent_rgb_error": error}
            vae = architecture.vae.model_copy(update=fitted)
            architecture = architecture.model_copy(update={"vae": vae})
            gc.collect()
        networks = {}
        for name in self.networks:
            networks[name] = self._write_network(name, folder, architecture.vae.compute_fp32)
            if name in source.text_encoder_configs:
                path = folder / token_table_file(name)
                _write_token_table(source, name, path, options.float_precision)
            gc.collect()
        with self.stages.stage("tokenizer"):
            (folder / "tokenizer").mkdir()
            for file, content in source.tokenizer_files().items():
                (folder / "tokenizer" / file).write_bytes(content)
        self.stages.begin("hash")  # which follows, so the caller ends it
        return Manifest(
            sdengine_version=__version__,
            name=source.name,
            target=options.target,
            precision=options.precision,
            resolutions=[*options.sizes],
            max_batch=self.spec.batch,
            architecture=architecture,
            defaults=defaults,
            networks=networks,
            source=origin,
            versions=versions(options.target),
            compute_capabilities=options.capabilities,
        )

    def _write_network(self, name: str, folder: Path, vae_needs_fp32: bool) -> NetworkEntry:
        target = self.options.target
        options: dict[str, Any] = {}
        if COMPILERS[target].reads_onnx:
            with self.stages.stage(f"export {name}"):
                exported, precision = self._export(name, vae_needs_fp32)
                if target in FLAVOURS:
                    options["precision"] = precision
        else:
            with self.stages.stage(f"load {name}"):
                module, contract = self.exporter.module(name), self.exporter.contract(name)
                exported = ExportedNetwork(
                    name, None, contract.inputs, contract.outputs, module, None
                )
        if exported.max_error is not None:
            self.max_error[name] = exported.max_error
        if name == "unet":
            options["controlnet"] = self.options.controlnet
        spec = self.spec
        if name == "unet" and self.options.number_format is not None:
            with self.stages.stage("calibrate unet"):
                spec, options["quantisation"] = self._calibrate(exported, folder)
        with self.stages.stage(f"compile {name}"):
            compiled = self.compiler(exported, folder, spec)
            self.memory.add_process(compiled.peak_bytes)
            options |= compiled.options.model_dump()
            told = "scratch_bytes" in options
            if target in FLAVOURS and exported.onnx_path is not None and not told:
                contract = self.exporter.contract(name, precision)
                options["scratch_bytes"] = scratch_by_size(exported.onnx_path, contract, self.spec)
                options["scratch_from"] = "graph"
        if self.options.measure_layers and target == "native":
            with self.stages.stage(f"measure {name}"):
                self.layers[name] = self._measure(name, folder, compiled.files)
                if exact := exact_steps(self.layers[name]):
                    options["exact"] = exact
        if compiled.replaced:
            self.replaced[name] = dict(compiled.replaced)
        return NetworkEntry(
            files=compiled.files,
            inputs=_entries(compiled.inputs or exported.inputs),
            outputs=_entries(compiled.outputs or exported.outputs),
            options=NetworkOptions.model_validate(options),
        )

    def _calibrate(self, unet: ExportedNetwork, folder: Path) -> tuple[CompileSpec, dict[str, Any]]:
        """Run a native bundle of the checkpoint; return the U-Net's spec, and the record of it."""
        options, number_format = self.options, self.options.number_format
        assert number_format is not None
        names = (*self.checkpoint.text_encoder_configs, "unet")
        with temporary_folder(folder) as place:
            native = BuildOptions(
                resolutions=options.sizes, batch=1, precision="fp16",
                controlnet=options.controlnet, cancel=options.cancel,
            )  # fmt: skip
            compiler = get_compiler(native.target)
            work = _Build(self.checkpoint, self.exporter, native, compiler, self.memory, names)
            bundle = open_bundle(write_bundle(place / "native", work.write), verify="size")
            self.exporter.forget()
            found = calibrate(
                bundle,
                number_format,
                options.prompts(),
                self.stages.calibration_step,
                options.cancel,
            )
        if options.measure_layers:
            self.layers["unet"] = found.errors
        record = found.to_record(quantised_error(unet, found))
        tensorrt = replace(self.spec.tensorrt, calibration=found)
        return replace(self.spec, tensorrt=tensorrt), record

    def _measure(self, name: str, folder: Path, files: list[str]) -> list[LayerError]:
        """Compare the layers at the smallest size, or at a side of 256 pixels."""
        contract = self.exporter.contract(name)
        multiple = size_multiple(self.checkpoint.unet_config, self.checkpoint.vae_config.downscale)
        side = min(min(min(size) for size in self.options.sizes), 256) // multiple * multiple
        example = contract.example(1, side, side, seed=0)
        inputs = {s.name: x.numpy() for s, x in zip(contract.inputs, example, strict=True)}
        graph, weights = (folder / file for file in files)
        return layer_errors(read_graph(graph), map_tensors(weights), inputs)

    def _export(self, name: str, vae_needs_fp32: bool) -> tuple[ExportedNetwork, str]:
        """Export in the precision that the target compiles from, and say which."""
        if self.options.target not in FLAVOURS:
            return self.exporter.export(name), "fp32"  # its compiler rounds the weights
        precision = self.options.float_precision
        is_vae = name.startswith("vae")
        if precision == "fp16" and is_vae and vae_needs_fp32:
            return self._export_wider(name)
        try:
            return self.exporter.export(name, precision), precision
        except ExportError:
            if precision != "fp16" or not is_vae:
                raise
            return self._export_wider(name)

    def _export_wider(self, name: str) -> tuple[ExportedNetwork, str]:
        """Export in bf16, whose range is that of fp32, where every GPU computes in it."""
        precision = "bf16" if all(cc >= 80 for cc in self.options.capabilities) else "fp32"
        return self.exporter.export(name, precision), precision


def _check_chunks(architecture: Architecture, target: str) -> None:
    """Refuse prompts shorter than the engines of TensorRT are laid out for."""
    encoder = architecture.text_encoders[0]
    if target in FLAVOURS and encoder.chunk_length < encoder.max_length:
        raise CheckpointError(
            f"tokenizer: model_max_length is {encoder.chunk_length}; engines of target {target} "
            f"read prompts of {encoder.max_length} tokens. Build for native, openvino or torch."
        )


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
