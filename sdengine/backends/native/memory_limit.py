"""Memory limit of a native bundle: what a size takes, and how weights shrink to fit.

Winograd's transformed weights are four times as large as a convolution's own at tiles of 4x4, 1.8
times at 2x2. Under a limit the largest give way first; what is left is refused with its figures.
Counted are weights and the maps between operations; scratch of each operation, some tens of
megabytes, comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from sdengine.backends.machine import free_memory_bytes
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.native.packing import packed_bytes
from sdengine.backends.native.prepare import Prepared, prepare
from sdengine.bundle.controls import is_control
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BundleError, UnsupportedShapeError

_MAX_SIZES_ACCEPTED = 1000


class NativeBudget(MemoryBudget):
    """The bytes that an engine may take, for sizes that its bundle was built for and for others.

    Those that it was built for are planned at once, if there is a limit. Others are planned when
    they are asked for; without a limit they may take what is free then.

    Args:
        bundle: of target native.
        memory_bytes: the limit; None for what is free.
        low_memory: networks are freed once a request is done with them.
        precision: what they compute in.
        isa: the instruction set that they run on.

    Raises:
        OutOfMemoryError: no size that the bundle was built for fits into the limit.
    """

    smaller = "a smaller width and height"

    def __init__(
        self, bundle: Bundle, memory_bytes: int | None, low_memory: bool, precision: str, isa: str
    ) -> None:
        self._bundle = bundle
        self._precision = precision
        self._isa = isa
        self._has_limit = memory_bytes is not None
        self._accepted: set[tuple[int | str, ...]] = set()
        self.weight_limits: dict[str, int] = {}  # bytes of packed weights, by network
        needs = []
        if memory_bytes is not None:
            self.weight_limits = self._shrink(memory_bytes, low_memory)
            needs = [self._plan(*size) for size in bundle.manifest.resolutions]
        super().__init__(needs, memory_bytes or 0, "memory_bytes", low_memory)

    def check(self, width: int, height: int, controls: Collection[str] = ()) -> None:
        """Refuse an image size that does not fit.

        Args:
            width, height: in pixels.
            controls: networks that steer the U-Net meanwhile.

        Raises:
            OutOfMemoryError: it does not; the message has the figures and what would help.
            UnsupportedShapeError: a network's maps would be too large at this size.
        """
        size: tuple[int | str, ...] = (width, height, *sorted(controls))
        if (width, height) in self._bundle.manifest.resolutions and not (
            controls and self._has_limit
        ):
            super().check(width, height)
        elif size not in self._accepted:
            if not self._has_limit:
                self.available_bytes = free_memory_bytes()
                self.source = "free on this machine"
            try:
                needs = self._plan(width, height, controls)
            except BundleError as error:
                raise UnsupportedShapeError(f"width, height: {width}x{height}: {error}") from None
            self.require(needs)
            if len(self._accepted) < _MAX_SIZES_ACCEPTED:
                self._accepted.add(size)  # its own maps are not free any more

    def _shrink(self, memory_bytes: int, low_memory: bool) -> dict[str, int]:
        """Return the most that each network's packed weights may take beside the largest maps."""
        largest = max(self._bundle.manifest.resolutions, key=math.prod)
        plain = self._prepared(*largest)
        maps = sum(one.program().arena_bytes for one in plain.values())
        weights = {name: packed_bytes(one.packing) for name, one in plain.items()}
        left = max(memory_bytes - maps, 1)
        if sum(weights.values()) > left and not low_memory:
            return {name: size * left // sum(weights.values()) for name, size in weights.items()}
        if low_memory and max(weights.values()) > left:
            return {name: left for name in weights}
        return {}

    def _plan(self, width: int, height: int, controls: Collection[str] = ()) -> SizeNeeds:
        prepared = self._prepared(width, height, controls)
        weights = {name: packed_bytes(one.packing) for name, one in prepared.items()}
        maps = sum(one.program().arena_bytes for one in prepared.values())
        if controls:  # beside which the U-Net is laid out for the steps without them too
            unet = prepared["unet"]
            maps += unet.program_without(unet.additive()).arena_bytes
        stage = sum(size for name, size in weights.items() if name == "unet" or name in controls)
        most = max(stage, *weights.values())
        return SizeNeeds(width, height, weights, {}, maps, maps, 0, most)

    def _prepared(
        self, width: int, height: int, controls: Collection[str] = ()
    ) -> dict[str, Prepared]:
        """Prepare what an image needs, with the rows that guidance takes for one."""
        manifest = self._bundle.manifest
        length = manifest.architecture.text_encoders[0].chunk_length
        found = {}
        for name, entry in manifest.networks.items():
            if name == "vae_encoder" or (is_control(name) and name not in controls):
                continue
            rows = 1 if name == "vae_decoder" else 2
            sides = {"batch": rows, "width": width, "height": height, "sequence": length}
            shapes = resolve_shapes(name, entry.inputs, sides)
            limit = self.weight_limits.get(name)
            found[name] = prepare(self._bundle, name, shapes, self._precision, self._isa, limit)
        return found
