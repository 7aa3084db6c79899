"""Request fields of outpainting: by how much a picture grows, and how the new part fits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.outpaint import FILLS, Sides
from sdengine.inputs.picture import MAX_PIXELS
from sdengine.inputs.recorded import Recorded
from sdengine.request.fields import Choice, Integer, about

_SIDES = tuple(side.name for side in fields(Sides))
_ALL = "all"
_SIDE = Integer(0, 8192)
# What `Engine.request` gives where none is: less keeps the fill, which is made up.
OUTPAINT_STRENGTH = 0.95


@dataclass(frozen=True)
class SidesField:
    """Pixels of each side: `Sides`, one number for all, or a mapping of left, top, right, bottom.

    "all" in a mapping stands for the sides that it does not name.
    """

    @property
    def accepted(self) -> str:
        """The form in words."""
        return f"pixels by side, such as {{'left': 64, 'top': 32}} or {{'all': 64}}, {_SIDE.range}"

    @property
    def range(self) -> str:
        """Lowest and highest of each side."""
        return _SIDE.range

    def __call__(self, name: str, value: Any) -> Sides:
        """Return the sides, at least one of which grows."""
        if isinstance(value, Sides):
            value = {side: getattr(value, side) for side in _SIDES}
        elif not isinstance(value, Mapping):
            value = {_ALL: value}
        unknown = [key for key in value if key not in (*_SIDES, _ALL)]
        if unknown:
            accepted = f"{', '.join(_SIDES)} or {_ALL}"
            raise ConfigError.for_field(name, str(unknown[0])[:80], accepted)
        rest = value.get(_ALL, 0)
        found = Sides(*(_SIDE(f"{name}: {side}", value.get(side, rest)) for side in _SIDES))
        if found == Sides():
            raise ConfigError.for_field(name, 0, "a side that grows by at least 1 pixel")
        return found


@dataclass(frozen=True, kw_only=True)
class OutpaintFields:
    """Those fields of a request that enlarge a picture; see `sdengine.Request`."""

    outpaint: Sides | None = field(
        default=None,
        metadata=about(
            SidesField(),
            "image: pixels by which it grows at each side, all of them or left, top, right and "
            "bottom; width and height follow",
        ),
    )
    outpaint_fill: str = field(
        default="edge",
        metadata=about(
            Choice(FILLS),
            "outpaint: what the new part starts from, where strength is less than 1: stretched "
            "edges, the picture mirrored, blurred, or noise of its spectrum",
        ),
    )
    outpaint_overlap: int = field(
        default=16,
        metadata=about(
            Integer(0, 1024),
            "outpaint: pixels of image over which the result passes into it; further in its bytes "
            "stay",
        ),
    )

    def check_outpaint(self, image: Recorded, size: tuple[int, int] | None) -> None:
        """Refuse a size that is not the canvas's, and an overlap that keeps nothing of the picture.

        Args:
            image: of the request.
            size: width and height of the request; None where they are not the canvas's.

        Raises:
            ConfigError: so it is.
        """
        sides = self.outpaint
        if sides is None:
            return
        canvas = sides.size(*image.size)
        if canvas[0] * canvas[1] > MAX_PIXELS:
            shown = "{}x{} pixels with image's {}x{}".format(*canvas, *image.size)
            raise ConfigError.for_field("outpaint", shown, f"at most {MAX_PIXELS} of them")
        grows = (sides.left, sides.right), (sides.top, sides.bottom)
        for axis, name in enumerate(("width", "height")):
            if size is not None and size[axis] != canvas[axis]:
                first, second = grows[axis]
                accepted = f"{canvas[axis]}, image's {image.size[axis]} and {first} + {second}"
                hint = "Leave it out: it follows from outpaint."
                raise ConfigError.for_field(name, size[axis], accepted, hint)
            most = (image.size[axis] - 1) // (sum(map(bool, grows[axis])) or 1)
            if any(grows[axis]) and self.outpaint_overlap > most:
                raise ConfigError.for_field(
                    "outpaint_overlap",
                    self.outpaint_overlap,
                    f"at most {most}, so that something stays of image's {name} of "
                    f"{image.size[axis]}",
                )
