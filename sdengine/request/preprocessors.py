"""Preprocessors: what makes a control network's hint of a picture, with their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs import edges, hints
from sdengine.inputs.depth import DepthMap, read_depth
from sdengine.inputs.mask import mask_weights, resized_weights
from sdengine.inputs.onnx_network import RANGES, OnnxNetwork
from sdengine.inputs.picture import ACCEPTED, MAX_PIXELS, Picture, Pixels, read_picture
from sdengine.inputs.resize import flattened, resized
from sdengine.request.fields import (
    PICTURE,
    Choice,
    Color,
    FieldInfo,
    Flag,
    Integer,
    Name,
    Number,
)

Hint = NDArray[np.uint8] | NDArray[np.float32]
_GREY_LEVEL = Number(0, 255)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MAX_GRADIENT = 2040  # of a 3x3 Sobel filter, both directions together


@dataclass(frozen=True)
class Channels:
    """Three finite numbers, one a colour channel."""

    low: float
    high: float
    range: str = ""

    @property
    def accepted(self) -> str:
        """The range in words."""
        return f"three numbers from {self.low:g} to {self.high:g}"

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return a tuple of floats."""
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise ConfigError.for_field(name, value, self.accepted)
        return tuple(Number(self.low, self.high)(name, one) for one in value)


def _option(name: str, default: Any, check: Any, help: str) -> FieldInfo:
    return FieldInfo(name=name, default=default, check=check, help=help)


# What all of them take.
COMMON = {
    info.name: info
    for info in (
        _option("resolution", None, Integer(16, 8192), "resize the shorter side to this, first"),
        _option("background", "#ffffff", Color(), "what lies under transparent pixels"),
    )
}


@dataclass(frozen=True)
class Preprocessor:
    """A way to make a hint.

    Args:
        name: of it.
        summary: what it makes, a phrase.
        make: the function from [H,W,3] pixels and the options to [H,W] or [H,W,3]; None where
            `preprocess` itself knows more than the pixels.
        own: its options.
        in_requests: whether a request's controls may name it; not where it reads a file of its own.
    """

    name: str
    summary: str
    make: Callable[..., Any] | None = None
    own: tuple[FieldInfo, ...] = ()
    in_requests: bool = True

    @property
    def options(self) -> dict[str, FieldInfo]:
        """Its own options, and those of all, by name."""
        return {**{info.name: info for info in self.own}, **COMMON}


_SIGMA = Number(0.1, 256)
PREPROCESSORS: Mapping[str, Preprocessor] = MappingProxyType(
    {
        one.name: one
        for one in (
            Preprocessor("none", "the picture as it is", lambda pixels: pixels),
            Preprocessor("invert", "black and white exchanged", hints.inverted),
            Preprocessor(
                "canny",
                "edges one pixel wide",
                edges.canny,
                (
                    _option("low", 100, Number(0, _MAX_GRADIENT), "gradient that continues edges"),
                    _option("high", 200, Number(0, _MAX_GRADIENT), "gradient that begins edges"),
                ),
            ),
            Preprocessor(
                "soft_edge",
                "the gradient of the blurred picture, the largest as white",
                edges.soft_edge,
                (_option("sigma", 2.0, _SIGMA, "of the blur, in pixels"),),
            ),
            Preprocessor(
                "scribble",
                "dark strokes, as white ones",
                edges.scribble,
                (_option("level", 127, _GREY_LEVEL, "what is darker is a stroke"),),
            ),
            Preprocessor(
                "threshold",
                "what is light, as white",
                edges.threshold,
                (_option("level", 127, _GREY_LEVEL, "what is lighter is white"),),
            ),
            Preprocessor(
                "xdog",
                "lines of a drawing: what is darker than its surroundings",
                edges.xdog,
                (_option("level", 32, _GREY_LEVEL, "by how much, twice"),),
            ),
            Preprocessor(
                "tile",
                "the picture without its details",
                hints.tile,
                (_option("factor", 4, Number(1, 64), "by which it is made smaller meanwhile"),),
            ),
            Preprocessor(
                "blur",
                "the picture blurred",
                hints.blurred_picture,
                (_option("sigma", 9.0, _SIGMA, "of the blur, in pixels"),),
            ),
            Preprocessor(
                "inpaint",
                "floats in [0,1], -1 where the mask is white",
                own=(_option("mask", None, PICTURE, "of its size: white may change"),),
                in_requests=False,  # there `masked` says it, of the request's own mask
            ),
            Preprocessor(
                "depth",
                "a depth map of 8 or 16 bits or floats, brought to 0 to 255; near is white",
                own=(
                    _option("low", None, Number(-1e9, 1e9), "value that becomes black"),
                    _option("high", None, Number(-1e9, 1e9), "value that becomes white"),
                    _option("invert", False, Flag(), "near is small"),
                ),
            ),
            Preprocessor("segmentation", "a map of colours, none of which is mixed with another"),
            Preprocessor(
                "onnx",
                "what an ONNX network makes",
                own=(
                    _option("onnx", None, Name("the path of an ONNX file"), "its file"),
                    _option("mean", (0.0, 0.0, 0.0), Channels(-255, 255), "subtracted from [0,1]"),
                    _option("std", (1.0, 1.0, 1.0), Channels(1e-6, 255), "then divided by"),
                    _option("multiple", 1, Integer(1, 256), "of what free sides must be one"),
                    _option("range", "unit", Choice(RANGES), "output: [0,1], or what it spans"),
                ),
                in_requests=False,
            ),
        )
    }
)


def preprocess(image: Any, preprocessor: str = "canny", **options: Any) -> Hint:
    """Make the hint that a control network reads of a picture.

    Args:
        image: a path, a PIL image, an array [H,W,3] or a file's bytes; for "depth" also an array
            [H,W] of numbers or a TIFF of floats.
        preprocessor: one of PREPROCESSORS, such as "canny"; `sdengine preprocess --help` lists
            them.
        options: of the preprocessor, such as `low`, `high`; and for all `resolution`, to which the
            shorter side is resized first, and `background`, which transparent pixels show.

    Returns:
        [H,W,3] uint8 RGB; of "inpaint" fp32 in [0,1] and -1. Size of the picture, or as
        `resolution` says. Flat depth maps become black.

    Raises:
        ConfigError: the picture, the preprocessor, or an option is not accepted.
        BackendUnavailableError: "onnx" without the packages of the extra `preprocess`.
    """
    known = find(preprocessor)
    given = _with_defaults(known, check_options(known, options))
    if known.name == "depth":
        depth = read_depth("image", image)
        if not isinstance(depth, DepthMap):
            raise ConfigError.for_field("image", image, ACCEPTED)
        return _depth(depth.values, given)
    network = OnnxNetwork("onnx", given["onnx"]) if known.name == "onnx" else None
    picture = read_picture("image", image)
    if not isinstance(picture, Picture):
        raise ConfigError.for_field("image", image, ACCEPTED)
    mask = given.get("mask")
    if mask is not None and mask.size != picture.size:
        shown, accepted = ("{}x{} pixels".format(*one.size) for one in (mask, picture))
        raise ConfigError.for_field("mask", shown, f"the size of image, {accepted}")
    red, green, blue = bytes.fromhex(given["background"][1:])
    pixels = flattened(picture.pixels, (red, green, blue))
    if mask is None and network is None:
        return _made(known, pixels, given)
    width, height = _size(picture.size, given["resolution"])
    pixels = resized(pixels, width, height, "stretch")
    if network is not None:
        own = {info.name: given[info.name] for info in known.own if info.name != "onnx"}
        return network.hint(pixels, **own)
    assert mask is not None
    weights = mask_weights(mask, invert=False)
    return hints.inpaint(pixels, resized_weights(weights, width, height, "stretch"))


def hint_of(pixels: Pixels, name: str, options: Mapping[str, Any]) -> Pixels:
    """Return the hint of [H,W,3] pixels, for preprocessors that requests may name.

    Args:
        pixels: of the picture.
        name: of the preprocessor.
        options: checked by `check_options`.
    """
    known = PREPROCESSORS[name]
    given = _with_defaults(known, options)
    if name == "depth":
        return _depth(pixels.astype(np.float32) @ _LUMA, given)
    return _made(known, pixels, given)


def _with_defaults(known: Preprocessor, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: info.default for name, info in known.options.items()}, **options}


def _made(known: Preprocessor, pixels: Pixels, given: Mapping[str, Any]) -> Pixels:
    height, width = pixels.shape[:2]
    width, height = _size((width, height), given["resolution"])
    if known.make is None:
        return _nearest(pixels, width, height)
    pixels = resized(pixels, width, height, "stretch")
    found = known.make(pixels, *(given[info.name] for info in known.own))
    return hints.in_colours(found) if found.ndim == 2 else np.array(found)


def find(name: Any) -> Preprocessor:
    """Return the preprocessor of that name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or name not in PREPROCESSORS:
        raise ConfigError.for_field("preprocessor", name, f"one of {', '.join(PREPROCESSORS)}")
    return PREPROCESSORS[name]


def check_options(known: Preprocessor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain values.

    Raises:
        ConfigError: the preprocessor has none of that name, a value is not accepted, or one that
            is needed is missing.
    """
    infos = known.options
    for name in options:
        if name not in infos:
            others = [one.name for one in PREPROCESSORS.values() if name in one.options]
            raise ConfigError.for_field(
                name,
                options[name],
                f"nothing with the preprocessor {known.name}, which takes {', '.join(infos)}",
                f"It is an option of {', '.join(others)}" if others else "",
            )
    checked = {name: infos[name].checked(value) for name, value in options.items()}
    for needed in ("mask", "onnx"):
        if needed in infos and checked.get(needed) is None:
            raise ConfigError(
                f"{needed}: it is missing; {known.name} needs {infos[needed].check.accepted}."
            )
    low, high = (_number(checked, infos, end) for end in ("low", "high"))
    is_depth = known.name == "depth"  # of which nothing lies between equal ends
    if low is not None and high is not None and (low > high or (is_depth and low == high)):
        raise ConfigError.for_field("low", low, f"less than high, which is {high:g}")
    return checked


def _number(checked: Mapping[str, Any], infos: Mapping[str, FieldInfo], name: str) -> float | None:
    found = checked.get(name, infos[name].default if name in infos else None)
    return None if found is None else float(found)


def _depth(values: NDArray[np.float32], options: Mapping[str, Any]) -> Pixels:
    height, width = values.shape
    size = _size((width, height), options["resolution"])
    if size != (width, height):
        from PIL import Image

        values = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
    return hints.depth(values, options["low"], options["high"], invert=options["invert"])


def _size(size: tuple[int, int], resolution: int | None) -> tuple[int, int]:
    """Return width and height with the shorter side as asked for."""
    if resolution is None:
        return size
    short = min(size)
    width, height = ((side * resolution + short // 2) // short for side in size)
    if width * height > MAX_PIXELS:
        accepted = f"a size that makes {size[0]}x{size[1]} at most {MAX_PIXELS} pixels"
        raise ConfigError.for_field("resolution", resolution, accepted)
    return width, height


def _nearest(pixels: Pixels, width: int, height: int) -> Pixels:
    rows = (2 * np.arange(height) + 1) * pixels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * pixels.shape[1] // (2 * width)
    return np.asarray(pixels[rows[:, None], columns])
