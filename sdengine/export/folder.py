"""Export folder: a checkpoint's networks as ONNX files, as `sdengine export` writes them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.checkpoint import TEXT_ENCODERS
from sdengine.checkpoints.controlnet import is_controlnet_folder, read_controlnet
from sdengine.checkpoints.part_source import PartSource
from sdengine.errors import ConfigError
from sdengine.export.cache import open_cache
from sdengine.export.exporter import Exporter
from sdengine.export.network import ExportedNetwork, data_file
from sdengine.export.sizes import check_batch, check_multiples, parse_sizes
from sdengine.models.contracts import CONTROLNET
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.storage.whole_folder import check_place, write_folder
from sdengine.version import __version__

DESCRIPTION_FILE = "export.json"
_WHAT = "folder of exported networks"
# Guidance evaluates the prompt and the negative prompt of each image in one run.
_GUIDED = (*TEXT_ENCODERS, "unet", CONTROLNET)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Graph:
    """One ONNX file.

    Args:
        file: its name.
        network, precision: what it holds.
        inputs, outputs: name, shape and data type of each; symbols stand for sizes that are open.
        max_error: largest difference from the torch module in fp32 with the same weights,
            relative to the largest output; None where the two were not compared.
        reused: it was exported earlier.
        seconds: that it took.
    """

    file: str
    network: str
    precision: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    max_error: float | None
    reused: bool
    seconds: float


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Args:
        path: the folder.
        graphs: in it.
        total_bytes: size of all files.
    """

    path: Path
    graphs: list[Graph]
    total_bytes: int


def export_onnx(
    checkpoint: str | os.PathLike[str] | PartSource,
    output: str | os.PathLike[str],
    *,
    networks: Sequence[str] | None = None,
    precision: str = "fp32",
    resolutions: Sequence[int | tuple[int, int]] | None = None,
    batch: int = 1,
    guidance: bool = True,
    controlnet: bool = True,
    check: bool = True,
    force: bool = False,
    cache: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write networks as ONNX files with their weights beside them, each checked by onnxruntime.

    Args:
        checkpoint: as for `build`, or the folder of a ControlNet.
        output: the folder of the files; its parent must exist.
        networks: which; None is all that the checkpoint has.
        precision: of weights, inputs and outputs, timesteps and sizes excepted: "fp32", "bf16" or
            "fp16".
        resolutions: sizes in pixels, as for `build`: each network gets a file of fixed shapes for
            each; they share one file of weights. None gives one file with symbolic shapes.
        batch: images that one run of fixed shapes makes.
        guidance: files of fixed shapes evaluate prompt and negative prompt in one run, so that
            text encoders, U-Net and ControlNet have two rows an image.
        controlnet: let the U-Net read ControlNet residuals.
        check: compare files of fixed shapes too, where there is memory for it; at large sizes that
            takes minutes. Files with symbolic shapes are always compared, at small sizes.
        force: replace the folder of an earlier export.
        cache: keep exports, and take those that were made before from the same weights.
        progress: called before each file with its name, the files done, and all files.

    Raises:
        ConfigError: an argument is invalid.
        CheckpointError: the checkpoint is missing, incomplete, damaged or of another kind.
        ExportError: a network cannot be exported, or its export computes something else.
        OutputError: the place is taken or cannot be written.
    """
    if precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", precision, ", ".join(TORCH_DTYPES))
    check_batch(batch)
    sizes = None if resolutions is None else parse_sizes(resolutions)
    place = Path(output)
    check_place(place, what=_WHAT, marker=DESCRIPTION_FILE, force=force)
    source = _open(checkpoint)
    graphs: list[Graph] = []
    with open_cache(cache, beside=place) as exports:
        exporter = Exporter(source, exports, controlnet=controlnet)
        check_multiples(sizes or [], exporter.multiple)
        wanted = _chosen(exporter.networks, networks)
        plan = [(name, size) for name in wanted for size in _shapes(name, sizes, batch, guidance)]

        def fill(folder: Path) -> None:
            for done, (name, shape) in enumerate(plan):
                if progress is not None:
                    progress(_title(name, shape), done, len(plan))
                started = time.perf_counter()
                if shape is None:
                    exported = exporter.export(name, precision)
                else:
                    exported = exporter.export_static(name, precision, *shape, check=check)
                _place(exported, folder)
                graphs.append(_describe(exported, precision, time.perf_counter() - started))
            _write_description(source, graphs, folder)

        write_folder(place, fill, what=_WHAT, marker=DESCRIPTION_FILE, force=force)
    total_bytes = sum(file.stat().st_size for file in place.iterdir())
    return ExportReport(place, graphs, total_bytes)


def _open(checkpoint: str | os.PathLike[str] | PartSource) -> PartSource:
    if isinstance(checkpoint, PartSource):
        return checkpoint
    if isinstance(checkpoint, (str, os.PathLike)) and checkpoint != "demo":
        path = Path(os.fsdecode(checkpoint))
        if is_controlnet_folder(path):
            return read_controlnet(path)
    return load_checkpoint(checkpoint)


def _chosen(known: tuple[str, ...], networks: Sequence[str] | None) -> list[str]:
    if networks is None:
        return list(known)
    if not networks or isinstance(networks, str) or not set(networks) <= set(known):
        raise ConfigError.for_field("networks", networks, f"some of {', '.join(known)}")
    return [name for name in known if name in networks]


def _shapes(
    network: str, sizes: list[tuple[int, int]] | None, batch: int, guidance: bool
) -> list[tuple[int, int, int] | None]:
    """Return batch, height and width of each of a network's files."""
    if sizes is None:
        return [None]
    rows = batch * (2 if guidance and network in _GUIDED else 1)
    if network in TEXT_ENCODERS:
        sizes = sizes[:1]  # which do not know it
    return [(rows, height, width) for width, height in sizes]


def _title(network: str, shape: tuple[int, int, int] | None) -> str:
    if shape is None or network in TEXT_ENCODERS:
        return f"export {network}"
    return f"export {network} {shape[2]}x{shape[1]}"


def _place(exported: ExportedNetwork, folder: Path) -> None:
    """Put a graph and its weights into a folder, as links where that is possible.

    Gigabytes need not be there twice; what is changed under its second name later no longer has
    its hash, so the cache does not take it.
    """
    assert exported.onnx_path is not None
    weights = data_file(exported.onnx_path.with_name(f"{exported.name}.onnx"))
    for path in (exported.onnx_path, weights):
        place = folder / path.name
        if place.exists():
            continue
        try:
            place.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, place)


def _describe(exported: ExportedNetwork, precision: str, seconds: float) -> Graph:
    assert exported.onnx_path is not None
    return Graph(
        file=exported.onnx_path.name,
        network=exported.name,
        precision=precision,
        inputs=[asdict(spec) for spec in exported.inputs],
        outputs=[asdict(spec) for spec in exported.outputs],
        max_error=exported.max_error,
        reused=exported.reused,
        seconds=round(seconds, 3),
    )


def _write_description(source: PartSource, graphs: list[Graph], folder: Path) -> None:
    told = [
        {key: value for key, value in asdict(graph).items() if key not in ("reused", "seconds")}
        for graph in graphs
    ]
    content = {"sdengine_version": __version__, "checkpoint": source.name, "graphs": told}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
