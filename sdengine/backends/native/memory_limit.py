"""Memory limit of a native bundle: what a size takes, and how weights shrink to fit.

Winograd's transformed weights are four times as large as a convolution's own at tiles of 4x4, 1.8
times at 2x2. Where all of it does not fit, the VAE's maps are computed in bands (`bands`), then
under a limit weights give way, the largest first; what is left is refused with its figures. Counted
are weights and the maps between operations; scratch of each operation, some tens of
megabytes, comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

from sdengine.backends.base import SessionOptions
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.native.bands import BandPlan, plan_bands
from sdengine.backends.native.packing import packed_bytes
from sdengine.backends.native.prepare import Prepared, prepare
from sdengine.bundle.controls import is_control
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BundleError, UnsupportedShapeError
from sdengine.machine import free_memory_bytes

_MAX_SIZES_ACCEPTED = 1000
_VAE = ("vae_decoder", "vae_encoder")
_SMALL = 512 * 512  # pixels; what has no more is not planned ahead where nothing limits it


class NativeBudget(MemoryBudget):
    """The bytes that an engine may take, for sizes that its bundle was built for and for others.

    Those that it was built for are planned at once, if there is a limit. Others are planned when
    they are asked for; without a limit they may take what is free then.

    Args:
        bundle: of target native.
        options: how it is run; the precision is what networks compute in.
        isa: the instruction set that they run on.
        copies: of the weights of U-Net and controls, in memories of several places.

    Raises:
        OutOfMemoryError: no size that the bundle was built for fits into the limit.
    """

    smaller = "a smaller width and height"

    def __init__(self, bundle: Bundle, options: SessionOptions, isa: str, copies: int = 1) -> None:
        memory_bytes, low_memory = options.memory_bytes, options.low_memory
        self._bundle = bundle
        self._precision = options.precision
        self._isa = isa
        self._copies = copies
        self._tiles = options.vae_tiles
        self._has_limit = memory_bytes is not None
        self._seen: set[tuple[int | str, ...]] = set()
        # By network, width and height, the most that the maps of one computed in bands may take;
        # None asks for the least.
        self._given: dict[tuple[str, int, int], int | None] = {
            (network, width, height): limit for network, width, height, limit in options.vae_bands
        }
        self.band_limits: dict[tuple[str, int, int], int | None] = dict(self._given)
        self.weight_limits: dict[str, int] = {}  # bytes of packed weights, by network
        self.available_bytes = memory_bytes or 0
        self.low_memory = low_memory
        needs = []
        if memory_bytes is not None:
            self.weight_limits = self._shrink(memory_bytes)
            needs = [self._plan(*size) for size in bundle.manifest.resolutions]
        super().__init__(needs, memory_bytes or 0, "memory_bytes", low_memory)

    def check(
        self,
        width: int,
        height: int,
        more: Collection[str] = (),
        tile: tuple[int, int] | None = None,
    ) -> None:
        """Refuse an image size that does not fit, and find out whether the VAE must be in bands.

        Args:
            width, height: in pixels.
            more: networks that the request runs beside those that every request runs; "unet" where
                it is laid out a second time, with what reads pictures.
            tile: width and height that the U-Net and controls run at; None for the image's own.

        Raises:
            OutOfMemoryError: it does not; the message has the figures and what would help.
            UnsupportedShapeError: a network's maps would be too large at this size.
        """
        seen: tuple[int | str, ...] = (width, height, *sorted(more), *(tile or ()))
        built = (width, height) in self._bundle.manifest.resolutions and tile is None
        if self._has_limit and built and not more:
            super().check(width, height)
        elif seen in self._seen or (built and not self._has_limit and width * height <= _SMALL):
            return
        else:
            if not self._has_limit:
                self.available_bytes = free_memory_bytes()
                self.source = "free on this machine"
            try:
                needs = self._plan(width, height, more, tile)
            except BundleError as error:
                raise UnsupportedShapeError(f"width, height: {width}x{height}: {error}") from None
            if self._has_limit or not built:
                self.require(needs)
            if len(self._seen) < _MAX_SIZES_ACCEPTED:
                self._seen.add(seen)  # its own maps are not free any more

    def bands(self, network: str, prepared: Prepared, size: tuple[int, int]) -> BandPlan | None:
        """Return how a network is computed in bands at a size, if it is."""
        if network not in _VAE or self._tiles == "never":
            return None
        if self._tiles == "always":
            return plan_bands(prepared, None)
        key = (network, *size)
        return plan_bands(prepared, self.band_limits[key]) if key in self.band_limits else None

    def _shrink(self, memory_bytes: int) -> dict[str, int]:
        """Return the most that each network's packed weights may take beside the largest maps."""
        largest = max(self._bundle.manifest.resolutions, key=math.prod)
        plain = self._prepared(*largest)
        maps = self._map_bytes(plain)
        weights = self._weight_bytes(plain)
        taken = max(weights.values()) if self.low_memory else sum(weights.values())
        if taken + maps > memory_bytes and self._tiles != "never":
            maps = self._map_bytes(plain, dict.fromkeys(_VAE))
        left = max(memory_bytes - maps, 1)
        if sum(weights.values()) > left and not self.low_memory:
            own = {name: packed_bytes(one.packing) for name, one in plain.items()}
            return {name: size * left // sum(weights.values()) for name, size in own.items()}
        if self.low_memory and max(weights.values()) > left:
            return {name: left // self._copies_of(name) for name in weights}
        return {}

    def _weight_bytes(self, prepared: Mapping[str, Prepared]) -> dict[str, int]:
        """Return what the packed weights of each network take, in all places."""
        return {
            name: packed_bytes(one.packing) * self._copies_of(name)
            for name, one in prepared.items()
        }

    def _copies_of(self, network: str) -> int:
        return self._copies if network == "unet" or is_control(network) else 1

    def _plan(
        self,
        width: int,
        height: int,
        more: Collection[str] = (),
        tile: tuple[int, int] | None = None,
    ) -> SizeNeeds:
        """Add up a size, with the VAE in bands where it fits no other way."""
        prepared = self._prepared(width, height, more, tile)
        weights = self._weight_bytes(prepared)
        steps = sum(n for name, n in weights.items() if name == "unet" or is_control(name))
        stage = max(steps, *weights.values())
        again = 0  # of the U-Net, which is laid out a second time for pictures that it reads
        if "unet" in more:
            unet = prepared["unet"]
            again = unet.program_without(unet.additive()).arena_bytes

        def needs(limits: Mapping[str, int | None]) -> SizeNeeds:
            maps = self._map_bytes(prepared, limits) + again
            return SizeNeeds(width, height, weights, {}, maps, maps, 0, stage)

        if self._tiles == "always":
            return needs(dict.fromkeys(_VAE))
        given = {
            name: self._given[key]
            for name in _VAE
            if name in prepared and (key := (name, width, height)) in self._given
        }
        whole = needs(given)
        if self._tiles == "never" or whole.total_bytes(self.low_memory) <= self.available_bytes:
            return whole
        others = self._map_bytes({n: one for n, one in prepared.items() if n not in _VAE}) + again
        room = self.available_bytes - whole.total_bytes(self.low_memory) + whole.arena_bytes
        limits = {name: max(room - others, 0) for name in _VAE if name in prepared}
        self.band_limits |= {(name, width, height): limit for name, limit in limits.items()}
        return needs(limits)

    @staticmethod
    def _map_bytes(
        prepared: Mapping[str, Prepared], limits: Mapping[str, int | None] = MappingProxyType({})
    ) -> int:
        """Return what maps take: those in bands are there while they are computed, others stay."""
        total = in_bands = 0
        for name, one in prepared.items():
            plan = plan_bands(one, limits[name]) if name in limits else None
            if plan is None:
                total += one.program().arena_bytes
            else:
                in_bands = max(in_bands, plan.planned_bytes)
        if any(map(is_control, prepared)):  # the U-Net is laid out for steps without them too
            unet = prepared["unet"]
            total += unet.program_without(unet.additive()).arena_bytes
        return total + in_bands

    def _prepared(
        self,
        width: int,
        height: int,
        more: Collection[str] = (),
        tile: tuple[int, int] | None = None,
    ) -> dict[str, Prepared]:
        """Prepare what an image needs, with the rows that guidance takes for one."""
        manifest = self._bundle.manifest
        length = manifest.architecture.text_encoders[0].chunk_length
        found = {}
        for name, entry in manifest.networks.items():
            always = name in ("unet", "vae_decoder") or name.startswith("text_encoder")
            if not (always or name in more):
                continue
            rows, (across, down) = 2, tile or (width, height)
            if name.startswith(("vae_", "tiny_")) or name == IMAGE_ENCODER:
                rows, (across, down) = 1, (width, height)
            sides = {"batch": rows, "width": across, "height": down, "sequence": length}
            shapes = resolve_shapes(name, entry.inputs, sides)
            limit = self.weight_limits.get(name)
            found[name] = prepare(self._bundle, name, shapes, self._precision, self._isa, limit)
        return found
