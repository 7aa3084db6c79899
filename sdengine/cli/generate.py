"""`sdengine generate`: images from a prompt, or again from an image's metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdengine.cli.embedding_options import (
    FOLDER_HELP,
    embedding_warnings,
    read_given,
    recorded_embeddings,
)
from sdengine.cli.lora_options import FOLDER_HELP as LORAS_HELP
from sdengine.cli.lora_options import (
    HYPERNETWORKS_HELP,
    recorded_weights,
    tag_warnings,
    weight_warnings,
)
from sdengine.cli.model_options import model_warnings
from sdengine.cli.request_options import request_options
from sdengine.cli.terminal import note, progress_bar, say, say_json
from sdengine.errors import ConfigError
from sdengine.request.keywords import IMAGES_PER_PROMPT, WEB_UI_CLIP_SKIP
from sdengine.storage.byte_size import parse_bytes

if TYPE_CHECKING:
    from sdengine.cli.terminal import ProgressBar
    from sdengine.images.metadata import Metadata
    from sdengine.images.result import Result, Step

_PREVIEW_EVERY = 5
_PREVIEW_SIDE = 512  # pixels that smaller previews are enlarged to at most
_SHOWN = {
    "text_encoder": "text encoder",
    "unet": "U-Net",
    "vae_decoder": "VAE decoder",
    "vae_encoder": "VAE encoder",
    "tiny_decoder": "tiny decoder",
    "tiny_encoder": "tiny encoder",
    "image_encoder": "image encoder",
    "ip_adapter": "IP-Adapter",
}
# What tells a preview, which the next one replaces, from a picture, which nothing does.
_PREVIEW_MARK = "preview of sdengine"
_HEAD_BYTES = 256  # of a PNG; its texts come first


@request_options
def generate(
    *,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to show; several prompts give several images.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="PNG; a batch gets -1, -2, ...")
    ] = "out.png",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace files; else the next free number is taken."),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="IMAGE", help="Take everything not given from this image."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Make what --from asks for however much it is.")
    ] = False,
    fields: dict[str, Any],
    bundle: Annotated[str, typer.Option(metavar="PATH", help="Bundle, or demo.")] = "demo",
    backend: Annotated[
        str, typer.Option(help="auto, or a name such as native or triton.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or int8; with --from the image's own.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Free each network once it is done.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The most to take, as in 8GiB: of a GPU, or with target native of the machine.",
        ),
    ] = None,
    device: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of the GPU, of backends that run on one."),
    ] = None,
    split_guidance: Annotated[
        str | None,
        typer.Option(
            metavar="PLACES",
            help="Evaluate the two halves of the U-Net's rows at once: with target native on two "
            "groups of processors, numa or lists such as 0-15/16-31; with TensorRT on two GPUs, "
            "such as 0/1.",
        ),
    ] = None,
    embeddings_folder: Annotated[
        str | None, typer.Option("--embeddings", metavar="FOLDER", help=FOLDER_HELP)
    ] = None,
    loras_folder: Annotated[
        str | None, typer.Option("--loras", metavar="FOLDER", help=LORAS_HELP)
    ] = None,
    hypernetworks_folder: Annotated[
        str | None, typer.Option("--hypernetworks", metavar="FOLDER", help=HYPERNETWORKS_HELP)
    ] = None,
    vae_tiles: Annotated[
        str | None,
        typer.Option(
            help="Target native: compute the VAE in bands; auto, always or never. If not given, "
            "as for the image of --from, else auto."
        ),
    ] = None,
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="PNG of what the pictures are about so far; replaces an older one."
        ),
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option(metavar="N", help="Write it every N steps; 5 if not given.")
    ] = None,
    preview_method: Annotated[
        str | None, typer.Option(help="How it is made: linear, tiny or vae.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make images from a prompt. Values not given are the bundle's defaults; the seed is random."""
    from sdengine.images.metadata import read_metadata
    from sdengine.images.png import check_output
    from sdengine.loading import load

    memory_bytes = None if memory is None else parse_bytes("--memory", memory)
    given = read_given(fields.pop("embeddings", ()))
    watched = _watched(preview, preview_every, preview_method, output, overwrite)
    options = {**fields, "prompt": _one_or_many(prompt)} if prompt else fields
    has_new_text = bool(options.keys() & {"prompt", "negative_prompt"})
    check_output(output)
    recorded = read_metadata(source) if source is not None else None
    if recorded is not None:
        if not yes and (asked := recorded.beyond_limits(options)):
            raise ConfigError(
                f"from: {source!r} asks for {', '.join(asked)}. Add --yes to make it all the same, "
                "or give smaller values as options."
            )
        _warn_of_another_picture(recorded, options)
        options = _merged(recorded, options)
        precision = precision or recorded.provenance.precision
        if split_guidance is None:  # whose places say how many
            threads = threads or _threads_here(recorded.provenance.threads)
    if "prompt" not in options:
        raise ConfigError(
            "prompt: it is missing. Give a prompt, or an image with --from. See "
            "`sdengine generate --help`."
        )
    with (
        progress_bar("loading", remaining=True, quiet=as_json) as bar,
        load(
            bundle,
            backend,
            precision or "auto",
            threads,
            low_memory,
            memory_bytes,
            device,
            embeddings_folder,
            vae_tiles=vae_tiles or "auto",
            vae_bands=() if recorded is None or vae_tiles else recorded.provenance.vae_bands,
            loras_folder=loras_folder,
            hypernetworks_folder=hypernetworks_folder,
            split_guidance=split_guidance,
        ) as engine,
    ):
        engine.add_embeddings(*given)
        if recorded is not None:
            own = recorded_embeddings(recorded, has_new_text, given, engine.embeddings)
            options["embeddings"] = own
            options = {**recorded_weights(recorded, engine), **options}
            for line in recorded.differences(engine.provenance):
                note(f"warning: {line}")
        result = engine.generate(progress=_shown_by(bar, preview), **watched, **options)
    for line in result.notes:
        note(f"note: {line}")
    used = result.request
    bands = [] if recorded is None else recorded.provenance.band_differences(result.provenance)
    warnings = (
        *result.warnings,
        *bands,
        *model_warnings(recorded, used),
        *weight_warnings(recorded, used),
    )
    warnings += tuple(tag_warnings(recorded, used))
    for line in (*warnings, *embedding_warnings(recorded, given, result)):
        note(f"warning: {line}")
    files = result.save(output, overwrite=overwrite)
    if as_json:
        say_json(describe(result, files))
    else:
        for file, image_seed in zip(files, result.seeds, strict=True):
            say(f"{file} (seed {image_seed})")
        note(_summary(result))


def _warn_of_another_picture(recorded: Metadata, options: dict[str, Any]) -> None:
    """Read the picture that is given, and say where it is not the one that was started from."""
    from sdengine.inputs.picture import read_picture

    _warn_of_other_control_pictures(recorded, options)
    _warn_of_other_ip_adapters(recorded, options)
    if "image" not in options:
        return
    options["image"] = given = read_picture("image", options["image"])
    known = recorded.request_fields().get("image")
    if known is not None and known != given:
        note(f"warning: the image was made from another picture, with SHA-256 {known.sha256}.")


def _warn_of_other_control_pictures(recorded: Metadata, options: dict[str, Any]) -> None:
    """Read the controls' pictures that are given, with what is recorded of these controls."""
    from sdengine.cli.control_options import merged_controls
    from sdengine.request.control import Controls

    if "controls" not in options:
        return
    known = recorded.request_fields().get("controls", ())
    found = Controls()("controls", merged_controls(known, options["controls"]))
    options["controls"] = found
    for old, new in zip(known, found, strict=False):
        if old.image != new.image:
            note(
                f"warning: control {old.network}: the image was made with another picture, with "
                f"SHA-256 {old.image.sha256}."
            )


def _warn_of_other_ip_adapters(recorded: Metadata, options: dict[str, Any]) -> None:
    """Read the IP-Adapters that are given, with what is recorded of them."""
    from sdengine.cli.ip_adapter_options import merged_ip_adapters, other_pictures
    from sdengine.request.ip_adapters import IPAdapters

    if "ip_adapters" not in options:
        return
    known = recorded.request_fields().get("ip_adapters", ())
    found = IPAdapters()("ip_adapters", merged_ip_adapters(known, options["ip_adapters"]))
    options["ip_adapters"] = found
    for line in other_pictures(known, found):
        note(f"warning: {line}")


def describe(result: Result, files: list[Path]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "files": [str(file) for file in files],
        "seeds": list(result.seeds),
        **result.request.to_dict(),
        "model": result.provenance.model,
        "backend": result.provenance.backend,
        "precision": result.provenance.precision,
        "timings": result.timings.to_dict(),
        "warnings": list(result.warnings),
        "notes": list(result.notes),
    }


def _merged(recorded: Metadata, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, and what an image records where they say nothing."""
    fields = recorded.request_fields()
    if IMAGES_PER_PROMPT in options:
        fields.pop("batch_size", None)
    if options.keys() & {"clip_skip", WEB_UI_CLIP_SKIP}:
        fields = {name: fields[name] for name in fields.keys() - {"clip_skip", WEB_UI_CLIP_SKIP}}
    for name in ("model", "loras", "hypernetworks"):
        fields.pop(name, None)  # their files are found or given again, or it is said
    merged = {**fields, **options}
    if merged.get("outpaint") is not None and merged.get("inpaint_area") != "masked":
        # The size follows from the sides and the picture, of which either may be another now.
        merged = {n: v for n, v in merged.items() if n in options or n not in ("width", "height")}
    return merged


def _threads_here(recorded: int | None) -> int | None:
    """Return the threads that an image records, but no more than this machine is good for."""
    from sdengine.machine import usable_processors

    return None if recorded is None else min(recorded, usable_processors().threads)


def _one_or_many(prompts: list[str]) -> str | list[str]:
    return prompts[0] if len(prompts) == 1 else prompts


def _summary(result: Result) -> str:
    timings, provenance = result.timings, result.provenance
    times = {n: one.ms for n, one in timings.stages.items() if one.calls or n == "load"}
    shown = ", ".join(
        f"{_SHOWN.get(name, name)} {ms:.1f} ms"
        for name, ms in {**times, "other": timings.other_ms}.items()
    )
    how = f"{provenance.backend}, {provenance.precision}"
    return f"{shown}; total {timings.total_ms:.1f} ms ({how})"


def _watched(
    preview: str | None,
    preview_every: int | None,
    preview_method: str | None,
    output: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Return what `Engine.generate` is told of previews; refuse what has no effect."""
    from sdengine.images.png import check_output
    from sdengine.pipeline.previews import PREVIEWS

    if preview is None:
        for name, value in (("every", preview_every), ("method", preview_method)):
            if value is not None:
                raise ConfigError.for_field(f"--preview-{name}", value, "nothing without --preview")
        return {}
    check_output(preview, "--preview")
    if Path(preview).resolve() == Path(output).resolve():
        raise ConfigError.for_field("--preview", preview, "another file than --output")
    if not overwrite and not _may_be_replaced(Path(preview)):
        raise ConfigError.for_field(
            "--preview",
            preview,
            "a new file, or an older preview, which it replaces",
            "That file is none. Give another name, or --overwrite",
        )
    if preview_method is not None and preview_method not in PREVIEWS:
        raise ConfigError.for_field("--preview-method", preview_method, ", ".join(PREVIEWS))
    every = _PREVIEW_EVERY if preview_every is None else preview_every
    if every < 1:
        raise ConfigError.for_field("--preview-every", every, "at least 1")
    return {
        "preview_every": every,
        "preview": preview_method,
    }


def _may_be_replaced(file: Path) -> bool:
    """Say whether a preview may be written there: to a new file, or over an older preview."""
    try:
        with file.open("rb") as opened:
            return _PREVIEW_MARK.encode() in opened.read(_HEAD_BYTES)
    except FileNotFoundError:
        return True
    except OSError:  # it cannot be read, so it is not known what would be lost
        return False


def _shown_by(bar: ProgressBar, preview: str | None) -> Callable[[Step], None]:
    """Return what shows a step: by a bar, and by the preview's file, which it replaces."""

    def show(step: Step) -> None:
        bar("generating", step.index + 1, step.total)
        if preview is not None and step.preview is not None:
            import numpy as np
            from PIL import Image

            from sdengine.images.png import encode_png, write_images

            shown = Image.fromarray(np.concatenate(list(step.preview), axis=1))
            shown = shown.resize(
                [side * max(1, _PREVIEW_SIDE // shown.height) for side in shown.size]
            )
            write_images(preview, [encode_png(shown, {"Comment": _PREVIEW_MARK})], overwrite=True)

    return show
