"""`sdengine inspect`: what a bundle or a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli import checkpoint_options as options
from sdengine.cli.inspect_checkpoint import TASKS, is_checkpoint, show_checkpoint
from sdengine.cli.terminal import parse_size, progress_bar, say, say_json
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.bundle.manifest import KernelChoice, Manifest, NetworkOptions, TensorEntry
    from sdengine.bundle.quantisation import Quantisation
    from sdengine.bundle.reader import Bundle

_MOST_NAMED = 3


def inspect(
    bundle: Annotated[str, typer.Argument(help="Bundle or checkpoint, or demo.")] = "demo",
    plan: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="Show what this network does, of target native."),
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Of the plan, in pixels.")] = None,
    precision: Annotated[str, typer.Option(help="Of the plan: fp32, bf16 or int8.")] = "bf16",
    variant: options.Variant = None,
    base: options.Base = None,
    vae: options.Vae = None,
    family: options.Family = None,
    prediction_type: options.PredictionType = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a bundle's model, target, sizes and networks; file sizes are checked, hashes not.

    Of a checkpoint it shows the networks, what was assumed and what is left out.
    """
    if is_checkpoint(bundle):
        from sdengine.checkpoints import load_checkpoint

        opened_checkpoint = load_checkpoint(
            bundle,
            variant=variant,
            base=base,
            vae=vae,
            family=family,
            prediction_type=prediction_type,
        )
        show_checkpoint(opened_checkpoint, as_json)
        return
    from sdengine.bundle.reader import open_bundle

    opened = open_bundle(bundle, verify="size")
    manifest = opened.manifest
    if plan is not None:
        _show_plan(opened, plan, size, precision, as_json)
    elif as_json:
        say_json(manifest.model_dump(mode="json"))
    else:
        for line in _lines(manifest):
            say(line)


def _show_plan(
    bundle: Bundle, network: str, size: str | None, precision: str, as_json: bool
) -> None:
    """Print a network's operations, for the rows that guidance needs for one picture."""
    from sdengine.backends.native.prepare import DTYPES
    from sdengine.backends.native.report import report_network
    from sdengine.bundle.reader import check_size
    from sdengine.bundle.tensors import resolve_shapes

    manifest = bundle.manifest
    if manifest.target != "native":
        raise ConfigError.for_field("--plan", network, "a network of a bundle of target native")
    if precision not in DTYPES:
        raise ConfigError.for_field("--precision", precision, ", ".join(DTYPES))
    width, height = parse_size("--size", size) if size else manifest.resolutions[0]
    check_size(width, height, manifest)
    length = manifest.architecture.text_encoders[0].chunk_length
    rows = 1 if network.startswith(("vae", "tiny")) else 2
    sizes = {"batch": rows, "height": height, "width": width, "sequence": length}
    shapes = resolve_shapes(network, bundle.network(network).inputs, sizes)
    with progress_bar(f"laying out {network}", quiet=as_json):
        operations, arena_bytes = report_network(bundle, network, shapes, precision)
    if as_json:
        listed = [asdict(operation) for operation in operations]
        say_json({"arena_bytes": arena_bytes, "operations": listed})
        return
    for operation in operations:
        shape = "x".join(map(str, operation.shape))
        say(
            f"{operation.kind:11} {shape:>20} {operation.flops / 1e9:9.3f} GFLOP "
            f"{operation.map_bytes / 1e6:9.2f} MB maps {operation.weight_bytes / 1e6:8.2f} MB "
            f"weights  {operation.name}"
        )
    flops = sum(operation.flops for operation in operations)
    weight_bytes = sum(operation.weight_bytes for operation in operations)
    say(
        f"{network} at {width}x{height}, {rows} rows, {precision}: {len(operations)} operations, "
        f"{flops / 1e9:.1f} GFLOP, {weight_bytes / 1e6:.1f} MB of packed weights, "
        f"{arena_bytes / 1e6:.1f} MB for maps"
    )


def _lines(manifest: Manifest) -> list[str]:
    defaults = manifest.defaults
    architecture = manifest.architecture
    size_bytes = {entry.path: entry.size_bytes for entry in manifest.files}
    lines = [
        f"name        {manifest.name}",
        f"source      {manifest.source.name} (SHA-256 {manifest.source.sha256[:16]}...)",
        f"family      {architecture.family}",
        *(f"task        {told}" for task, told in TASKS.items() if task == architecture.task),
        f"target      {manifest.target}, weights {manifest.precision}",
        f"sizes       {_sizes(manifest)}",
        f"max batch   {manifest.max_batch}",
        f"defaults    {defaults.width}x{defaults.height}, {defaults.steps} steps, "
        f"guidance {defaults.guidance_scale:g}, {defaults.sampler} {defaults.schedule}",
        *(
            f"text        {encoder.num_layers} layers of {encoder.hidden_size}, "
            f"{encoder.chunk_length} tokens"
            for encoder in architecture.text_encoders
        ),
        f"latents     {architecture.vae.latent_channels} channels, 1/{architecture.vae.downscale}"
        f" size, scaling {architecture.vae.scaling_factor:g}",
        *(
            f"control     {name}: {control.kind} of {control.source}, {control.residuals} "
            f"{'features' if control.kind == 't2i_adapter' else 'residuals'}"
            f"{', which count by their means' * control.global_pool}"
            for name, control in architecture.controls.items()
        ),
        *(
            f"pictures    {encoder.source}: squares of {encoder.image_size}, states of "
            f"{encoder.hidden_size}, embeddings of {encoder.projection_dim}, for IP-Adapters"
            for encoder in (architecture.image_encoder,)
            if encoder is not None
        ),
        *(f"not taken   {line}" for line in architecture.not_taken_over),
        *(
            f"assumed     {guess.what} {guess.value}: {guess.reason} ({guess.option})"
            for guess in manifest.source.guesses
        ),
        f"built by    sdengine {manifest.sdengine_version}"
        + "".join(f", {name} {version}" for name, version in manifest.versions.items()),
        f"total       {sum(size_bytes.values()) / 1e6:.1f} MB in {len(size_bytes)} files",
    ]
    for name, network in manifest.networks.items():
        total_bytes = sum(size_bytes.get(path, 0) for path in network.files)
        lines.append(f"network     {name}: {total_bytes / 1e6:.1f} MB")
        lines += [f"              in  {_tensor(tensor)}" for tensor in network.inputs]
        lines += [f"              out {_tensor(tensor)}" for tensor in network.outputs]
        lines += [f"              {line}" for line in _engine_lines(network.options)]
    return lines


def _sizes(manifest: Manifest) -> str:
    from sdengine.bundle.tensors import size_name

    built = ", ".join(size_name(size) for size in manifest.resolutions)
    if manifest.size_multiple is None:
        return built
    return f"all multiples of {manifest.size_multiple}; built for {built}"


def _engine_lines(options: NetworkOptions) -> Iterator[str]:
    """Say what an engine was built with."""
    if options.kernels is not None:
        reason = f": {options.kernels_reason}" if options.kernels_reason else ""
        yield f"kernels {options.kernels}{reason}"
    for kernels, ms in options.kernel_engines.items():
        times = ", ".join(f"{size} {one:.3f} ms" for size, one in ms.items())
        chosen = ", chosen" if kernels == options.kernels_chosen else ""
        yield f"the engine of {kernels} kernels: {times}{chosen}"
    for kernels, problem in options.kernel_problems.items():
        yield f"no engine of {kernels} kernels was timed: {problem}"
    if options.ptx_version is not None:
        yield f"plugins in PTX {options.ptx_version}, which the driver must read"
    for choice in options.kernel_choices:
        yield from _choice_lines(choice)
    if options.scratch_bytes:
        sizes = ", ".join(f"{size} {n / 1e6:.1f} MB" for size, n in options.scratch_bytes.items())
        told = "the builder" if options.scratch_from == "builder" else "the graph"
        yield f"scratch {sizes} by {told}"
    if options.quantisation is not None:
        yield from _quantisation_lines(options.quantisation)
    if options.stripped:  # only older releases built such engines
        yield "stripped of its weights, so it does not run"


def _quantisation_lines(told: Quantisation) -> Iterator[str]:
    """Say which layers compute in eight bits, how they err, and what their scales come from."""
    kept = sum(map(len, told.kept.values()))
    yield (
        f"{told.format} {len(told.layers)} of {len(told.layers) + kept} layers; relative RMS error "
        f"{told.error:.1e} against fp32"
    )
    by_evaluation = [f"{n}: {error:.1e}" for n, error in told.error_by_evaluation.items()]
    yield f"  of the evaluations of a request {', '.join(by_evaluation)}"
    yield (
        f"  scaled by {told.evaluations} evaluations at {told.size} of {told.prompts} prompts "
        f"(SHA-256 {told.prompts_sha256[:16]}...), {told.steps} steps each"
    )
    if told.layers:
        name, error = max(told.layers.items(), key=lambda item: item[1])
        yield f"  largest error of a layer alone {error:.1e}: {name}"
    for reason, names in told.kept.items():
        shown = ", ".join(names[:_MOST_NAMED]) + ("..." if len(names) > _MOST_NAMED else "")
        yield f"  in 16 bits, {reason}: {len(names)} ({shown})"


def _choice_lines(choice: KernelChoice) -> Iterator[str]:
    """Say which kernel was faster for some nodes, and by how much at each size."""
    yield f"  {choice.chosen}: {len(choice.nodes)} {choice.op} {choice.dtype}"
    for size, shape in choice.shapes.items():
        timed = ", ".join(
            f"{kernels} {_milliseconds(ms.get(size))}" for kernels, ms in choice.ms.items()
        )
        yield f"    {size}: {shape} {timed}"
    for kernels, problem in choice.problems.items():
        yield f"    {kernels} was not measured: {problem}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f} ms"


def _tensor(tensor: TensorEntry) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join(str(size) for size in tensor.shape)}]"
