"""`sdengine export`: a checkpoint's networks as ONNX files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli import checkpoint_options as options
from sdengine.cli.terminal import (
    note,
    parse_resolutions,
    print_table,
    progress_bar,
    say,
    say_json,
)

if TYPE_CHECKING:
    from sdengine.export.folder import ExportReport, Graph


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder or single file, a ControlNet's folder, or demo.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="New folder.")],
    networks: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Such as unet,vae_decoder; all if not given."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of weights, inputs, outputs: fp32, bf16 or fp16.")
    ] = "fp32",
    resolutions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Pixels of files with fixed shapes; symbolic if not given."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images that one run of fixed shapes makes.")] = 1,
    guidance: Annotated[
        bool, typer.Option(help="Two rows an image in fixed shapes, for guidance.")
    ] = True,
    controlnet: Annotated[bool, typer.Option(help="Let the U-Net read ControlNets.")] = True,
    check: Annotated[
        bool, typer.Option(help="Compare files of fixed shapes too; slow at large sizes.")
    ] = True,
    variant: options.Variant = None,
    base: options.Base = None,
    vae: options.Vae = None,
    tiny_vae: options.TinyVae = None,
    family: options.Family = None,
    prediction_type: options.PredictionType = None,
    scheduler: options.Scheduler = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    cache: Annotated[bool, typer.Option(help="Keep exports for later, and use kept ones.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write networks as ONNX, weights beside the graphs, each compared with the torch module."""
    sizes = None if resolutions is None else parse_resolutions(resolutions)
    with progress_bar("reading", quiet=as_json) as progress:
        from sdengine.export.folder import export_onnx
        from sdengine.models.torch_threads import keep_to_quota

        keep_to_quota()
        report = export_onnx(
            options.open_if_changed(
                checkpoint, variant, base, vae, tiny_vae, family, prediction_type, scheduler
            ),
            output,
            networks=None if networks is None else [name.strip() for name in networks.split(",")],
            precision=precision,
            resolutions=sizes,
            batch=batch,
            guidance=guidance,
            controlnet=controlnet,
            check=check,
            force=force,
            cache=cache,
            progress=progress,
        )
    if as_json:
        say_json({**asdict(report), "path": str(report.path)})
        return
    _print_table(report, check)


def _print_table(report: ExportReport, check: bool) -> None:
    from rich.table import Table

    table = Table("file", "inputs", "largest error", "seconds", box=None, pad_edge=False)
    for graph in report.graphs:
        error = "not compared" if graph.max_error is None else f"{graph.max_error:.1e}"
        seconds = "kept" if graph.reused else f"{graph.seconds:.1f}"
        table.add_row(graph.file, _inputs(graph), error, seconds)
    print_table(table)
    say(f"{report.path} ({report.total_bytes / 1e6:.1f} MB)")
    if check and any(graph.max_error is None for graph in report.graphs):
        note(
            "note: comparing some files at their sizes takes more memory than is free here; the "
            "graphs with symbolic shapes, from which they follow, were compared."
        )


def _inputs(graph: Graph) -> str:
    """Describe the first input and say how many others there are."""
    first = graph.inputs[0]
    shape = ",".join(str(size) for size in first["shape"])
    more = len(graph.inputs) - 1
    return f"{first['name']} {first['dtype']} [{shape}]" + (f" and {more} more" if more else "")
