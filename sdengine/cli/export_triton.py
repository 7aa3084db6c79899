"""`sdengine export-triton`: a bundle as a model of Triton Inference Server."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from sdengine.cli.terminal import note, progress_bar, say, say_json


def export_triton(
    bundle: Annotated[str, typer.Argument(help="Bundle, or demo.")],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FOLDER", help="Model repository, new or not."),
    ],
    name: Annotated[str, typer.Option(help="Of the model.")] = "stable_diffusion",
    max_batch: Annotated[
        int, typer.Option(help="Pictures that the server may put into a batch; 0: no batches.")
    ] = 0,
    instances: Annotated[
        int, typer.Option(help="Processes that run it, on each GPU or on the CPU.")
    ] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, int8 or auto.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each instance; by default a fair share.")
    ] = None,
    backend: Annotated[str, typer.Option(help="That runs the bundle there.")] = "auto",
    tensors: Annotated[
        str, typer.Option(help="Their names: capitals (PROMPT, IMAGES) or small (prompt).")
    ] = "capitals",
    pixels: Annotated[
        str, typer.Option(help="uint8 for 0 to 255, fp16 or fp32 for 0 to 1.")
    ] = "uint8",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model repository for Triton Inference Server, the bundle inside.

    The server needs this package in the Python of its Python backend.
    """
    with progress_bar("copying", quiet=as_json) as progress:
        from sdengine.bundle.reader import open_bundle
        from sdengine.serving.triton_repository import Export
        from sdengine.serving.triton_repository import export_triton as write
        from sdengine.serving.triton_tensors import Spelling

        export = Export(
            name=name,
            max_batch=max_batch,
            instances=instances,
            precision=precision,
            backend=backend,
            threads=threads,
            spelling=cast("Spelling", tensors),
            pixels=pixels,
        )
        path = write(bundle, output, export, force=force, progress=progress)
    most = open_bundle(bundle, verify="size").manifest.max_batch
    if max_batch > most:
        note(
            f"note: the bundle makes {most} pictures at once; of a batch of {max_batch} they are "
            "made in turn."
        )
    if as_json:
        say_json({"path": str(path), "name": name, "max_batch_size": max_batch})
    else:
        say(f"{path}: for tritonserver --model-repository={output}")
