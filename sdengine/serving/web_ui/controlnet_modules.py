"""Modules of the web UI's ControlNet extension: preprocessors by its names, with its thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError

_USUAL_RESOLUTION = 512
_RESOLUTIONS = (64, 2048)


@dataclass(frozen=True)
class Slider:
    """What a threshold means to a module: out of its range it is the default.

    Args:
        label: for people.
        option: of the preprocessor.
        low, high, usual: its range and its default.
    """

    label: str
    option: str
    low: float
    high: float
    usual: float

    def value(self, given: float) -> float:
        """Return a threshold that a client gave, or the default."""
        return given if self.low <= given <= self.high else self.usual


@dataclass(frozen=True)
class Module:
    """One module.

    Args:
        name: as requests write it.
        preprocess: of the engine.
        kinds: control types under which it is listed, besides "All".
        control_type: what a union ControlNet is told where the client says nothing.
        sliders: of threshold_a and threshold_b.
        is_sized: processor_res says at which size it works.
        is_masked: what the request's mask lets change is left out of the picture.
        alias: its other name.
    """

    name: str
    preprocess: str
    kinds: tuple[str, ...] = ()
    control_type: str | None = None
    sliders: tuple[Slider, ...] = ()
    is_sized: bool = True
    is_masked: bool = False
    alias: str = ""

    def options(
        self, resolution: float, threshold_a: float, threshold_b: float, *, pixel_perfect: bool
    ) -> dict[str, Any]:
        """Return the preprocessor's options.

        Args:
            resolution: of the shorter side; out of range it is 512, as in the extension.
            threshold_a, threshold_b: likewise the module's own.
            pixel_perfect: work at the size of the result, whatever resolution says.
        """
        given = (threshold_a, threshold_b)
        found: dict[str, Any] = {
            slider.option: slider.value(value)
            for slider, value in zip(self.sliders, given, strict=False)
        }
        if {"low", "high"} <= found.keys():  # in whichever order, as OpenCV takes them
            found["low"], found["high"] = sorted((found["low"], found["high"]))
        if self.is_sized and not pixel_perfect:
            low, high = _RESOLUTIONS
            found["resolution"] = (
                int(resolution) if low <= resolution <= high else _USUAL_RESOLUTION
            )
        return found

    def described(self) -> dict[str, Any]:
        """Return what the list of modules says of it."""
        low, high = _RESOLUTIONS
        size = {"name": "Preprocessor Resolution", "value": _USUAL_RESOLUTION}
        sliders: list[Any] = [{**size, "min": low, "max": high} if self.is_sized else None]
        sliders += [
            {"name": one.label, "value": one.usual, "min": one.low, "max": one.high, "step": 1}
            for one in self.sliders
        ]
        if not any(sliders):
            sliders = []
        return {"model_free": False, "sliders": sliders}


_LINES = ("Canny", "Lineart", "Scribble", "MLSD")
_MODULES = (
    Module("none", "none", is_sized=False),
    Module(
        "canny",
        "canny",
        ("Canny",),
        "canny",
        (
            Slider("Low Threshold", "low", 0, 256, 100),
            Slider("High Threshold", "high", 0, 256, 200),
        ),
    ),
    Module(
        "invert",
        "invert",
        _LINES,
        "lineart",
        is_sized=False,
        alias="invert (from white bg & black line)",
    ),
    Module(
        "scribble_xdog",
        "xdog",
        ("Scribble",),
        "scribble",
        (Slider("XDoG Threshold", "level", 1, 64, 32),),
        alias="xdog",
    ),
    Module(
        "scribble", "scribble", ("Scribble",), "scribble", (Slider("Level", "level", 0, 255, 127),)
    ),
    Module(
        "threshold",
        "threshold",
        (),
        None,
        (Slider("Binarization Threshold", "level", 0, 255, 127),),
    ),
    Module(
        "soft_edge",
        "soft_edge",
        ("SoftEdge",),
        "soft_edge",
        (Slider("Sigma", "sigma", 0.1, 64, 2),),
    ),
    Module(
        "blur_gaussian",
        "blur",
        ("Tile",),
        "tile",
        (Slider("Sigma", "sigma", 0.1, 256, 9),),
        alias="blur",
    ),
    Module(
        "tile_resample",
        "tile",
        ("Tile",),
        "tile",
        (Slider("Down Sampling Rate", "factor", 1, 8, 1),),
        is_sized=False,
        alias="tile",
    ),
    Module("depth", "depth", ("Depth",), "depth", is_sized=False),
    Module("segmentation", "segmentation", ("Segmentation",), "segmentation", is_sized=False),
    Module("inpaint", "none", ("Inpaint",), "inpaint", is_sized=False, is_masked=True),
    Module("inpaint_only", "none", ("Inpaint",), "inpaint", is_sized=False, is_masked=True),
)
MODULES: Mapping[str, Module] = MappingProxyType({one.name: one for one in _MODULES})
_NAMES = {name.lower(): one for one in _MODULES for name in (one.name, one.alias) if name}


def find_module(field: str, name: str) -> Module:
    """Return a module by its name, in any case.

    Raises:
        ConfigError: there is none.
    """
    found = _NAMES.get(name.strip().lower())
    if found is None:
        hint = "Modules that are networks are not here: give the picture that they would make."
        raise ConfigError.for_field(field, name, f"one of {', '.join(MODULES)}", hint)
    return found
