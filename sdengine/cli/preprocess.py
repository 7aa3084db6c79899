"""`sdengine preprocess`: the hint that a control network reads, from a picture."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sdengine.cli.terminal import note, say
from sdengine.errors import ConfigError

_NUMBERS = "R,G,B"


def preprocess(
    preprocessor: Annotated[
        str,
        typer.Argument(
            help="canny, soft_edge, scribble, threshold, xdog, tile, blur, depth, segmentation, "
            "invert, onnx or none."
        ),
    ],
    image: Annotated[str, typer.Argument(metavar="FILE", help="Picture, or depth map.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="PNG file.")],
    low: Annotated[
        float | None,
        typer.Option(help="canny: gradient that continues edges, 100; depth: what becomes black."),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(help="canny: gradient that begins edges, 200; depth: what becomes white."),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(help="scribble, threshold: grey level, 127; xdog: how much darker, 32."),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="soft_edge, blur: deviation in pixels, 2 and 9.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="tile: by which it is made smaller meanwhile, 4.")
    ] = None,
    invert: Annotated[bool | None, typer.Option("--invert", help="depth: near is small.")] = None,
    onnx: Annotated[
        str | None, typer.Option(metavar="FILE", help="onnx: the network's file.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar=_NUMBERS, help="onnx: subtracted from [0,1].")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar=_NUMBERS, help="onnx: then divided by.")
    ] = None,
    multiple: Annotated[
        int | None, typer.Option(help="onnx: of what free sides must be one.")
    ] = None,
    range: Annotated[
        str | None, typer.Option(help="onnx: output is unit, [0,1], or minmax, what it spans.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Pixels of the shorter side, to which it is resized first.")
    ] = None,
    background: Annotated[
        str | None, typer.Option(metavar="#RRGGBB", help="Under transparent pixels; white.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Make the hint of a control network. Options that are not the preprocessor's are refused."""
    from PIL import Image

    from sdengine.images.png import check_output, encode_png, write_images
    from sdengine.inputs.depth import depth_warnings, read_depth
    from sdengine.request import preprocessors

    given: dict[str, Any] = {
        "low": low,
        "high": high,
        "level": level,
        "sigma": sigma,
        "factor": factor,
        "invert": invert,
        "onnx": onnx,
        "mean": _numbers("mean", mean),
        "std": _numbers("std", std),
        "multiple": multiple,
        "range": range,
        "resolution": resolution,
        "background": background,
    }
    if preprocessor == "inpaint":
        raise ConfigError(
            "preprocessor: 'inpaint' makes values of -1, which no picture holds; "
            'sdengine.preprocess(image, "inpaint", mask=...) returns them.'
        )
    check_output(output)
    picture: Any = image
    if preprocessor == "depth":
        picture = read_depth("image", image)
        for line in depth_warnings("image", picture):
            note(f"warning: {line}")
    hint = preprocessors.preprocess(
        picture, preprocessor, **{name: value for name, value in given.items() if value is not None}
    )
    if hint.min() == hint.max():
        note("warning: the hint has one colour alone, which tells a control network nothing.")
    content = encode_png(Image.fromarray(hint), {})
    (file,) = write_images(output, [content], overwrite=overwrite)
    say(str(file))


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise ConfigError.for_field(f"--{name}", text, "three numbers, as in 0.5,0.5,0.5") from None
