"""Loaded networks: those of an open bundle, at the sizes that requests ask for."""

from __future__ import annotations

import contextlib
import ctypes
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Module, Session
from sdengine.backends.device_protocols import rest_of, runs_in_bands, wraps_edges
from sdengine.backends.forks import ForkSafeLock, watch_forks
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import DeviceError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.vae_tiles import VAE, VaeTiles, part_size

# Rows, height, width, tokens, and the axes along which edges meet.
_Key = tuple[int, int, int, int, str]


@dataclass(frozen=True)
class _Loaded:
    """A module, and what tells its weights from others."""

    module: Module
    identity: str


class Networks:
    """Load a bundle's networks on first use and keep those used last, while the budget has room.

    Of each size the weights that were asked for last are kept.

    Args:
        bundle: an open bundle.
        session: what runs it; it is closed with the networks.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.bundle = bundle
        self._session = session
        self._chunk_length = bundle.manifest.architecture.text_encoders[0].chunk_length
        self._loaded: dict[str, OrderedDict[_Key, _Loaded]] = {}
        self._loading = ForkSafeLock()
        self._closed = False
        self._is_parents = False
        watch_forks(self)

    @property
    def can_wrap(self) -> bool:
        """Whether the networks themselves compute pictures whose edges meet, in one part each."""
        return wraps_edges(self._session) and self.bundle.manifest.size_multiple is not None

    def get(
        self,
        network: str,
        batch: int,
        height: int,
        width: int,
        *,
        sequence: int | None = None,
        clock: StageClock | None = None,
        weights: WeightSet = PRISTINE,
        check: Callable[[Module], None] | None = None,
        wraps: str = "none",
    ) -> Module:
        """Return a network for a batch and an image size, loading it when needed.

        A module that was returned before goes on with the weights that it was loaded with.

        Args:
            network: name in the manifest.
            batch: rows of its inputs.
            height, width: image size in pixels.
            sequence: tokens of the prompt, of all its chunks; None is one chunk.
            clock: where the time of loading is counted, and what is in bands.
            weights: what is merged into the bundle's own.
            check: refuses a module that is not what the manifest says, when it is loaded.
            wraps: the axes along which its maps' edges meet, where `can_wrap`; "none", "x", "y" or
                "xy".
        """
        identity = weights.identity(network)
        with self._loading:
            if self._closed:
                raise DeviceError("the engine was closed; load the bundle again.")
            shapes_loaded = self._loaded.setdefault(network, OrderedDict())
            key = (batch, height, width, sequence or self._chunk_length, wraps)
            found = shapes_loaded.get(key)
            if found is None:
                budget = self._session.budget
                while shapes_loaded and not budget.has_room(network, len(shapes_loaded)):
                    # Not closed: another request may be in the middle of using it.
                    shapes_loaded.popitem(last=False)
            if found is None or found.identity != identity:
                rest = None if found is None else rest_of(found.module)
                if rest is not None:  # else what was loaded before stays where this fails
                    found = None
                    del shapes_loaded[key]  # two sets of merged weights may be too much
                try:
                    with contextlib.nullcontext() if clock is None else clock.stage("load"):
                        found = _Loaded(self._load(network, *key, weights), identity)
                        if check is not None:
                            check(found.module)
                finally:
                    del rest  # also where somebody keeps the error, and with it this frame
                shapes_loaded[key] = found
            shapes_loaded.move_to_end(key)
            if clock is not None and runs_in_bands(found.module):
                clock.bands[network, width, height] = found.module.band_bytes()
            return found.module

    def release(self, *networks: str) -> None:
        """Forget some networks, so that their memory is free once nobody is using them."""
        with self._loading:
            for network in networks:
                self._loaded.pop(network, None)

    def _load(
        self,
        network: str,
        batch: int,
        height: int,
        width: int,
        sequence: int,
        wraps: str,
        weights: WeightSet,
    ) -> Module:
        manifest = self.bundle.manifest
        if network in VAE and manifest.size_multiple is None:
            # Requests in tiles alone have sizes beyond these; previews have smaller ones.
            budget = self._session.budget
            fitting = [(one.width, one.height) for one in budget.fitting()]
            fitting = fitting if budget.needs else manifest.resolutions
            part = part_size(width, height, fitting)
            if part not in (None, (width, height)):
                module = self._load(network, batch, part[1], part[0], sequence, wraps, weights)
                return VaeTiles(module, (width, height), manifest.architecture.vae.downscale)
        sizes = {"batch": batch, "height": height, "width": width, "sequence": sequence}
        shapes = resolve_shapes(network, self.bundle.network(network).inputs, sizes)
        if wraps == "none":
            return self._session.load(network, shapes, weights)
        assert wraps_edges(self._session)
        return self._session.load_wrapping(network, shapes, weights, wraps)

    def after_fork(self) -> None:
        """Leave to the parent process what a child of it can neither use nor free."""
        if not self._session.works_after_fork and not self._is_parents:
            self._is_parents = True
            left = (self._session, self._loaded)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))  # never freed here
            self._loaded = {}

    def require_own(self) -> None:
        """Refuse networks that were left to the parent process.

        Raises:
            DeviceError: they were.
        """
        if self._is_parents:
            raise DeviceError(
                "the engine belongs to the parent process: what runs its networks does not outlive "
                "a fork. Load the bundle in the child process, or start processes with the method "
                "'spawn'. (Bundles of target native work on after a fork.)"
            )

    def close(self) -> None:
        """Free every network; a second call does nothing."""
        if self._is_parents:
            return
        with self._loading:
            self._closed = True
            for shapes_loaded in self._loaded.values():
                for one in shapes_loaded.values():
                    one.module.close()
            self._loaded.clear()
        self._session.close()


class WeightedNetworks:
    """The networks with the weights of one request.

    Args:
        networks: of the bundle.
        weights: what is merged into the bundle's own.
    """

    def __init__(self, networks: Networks, weights: WeightSet = PRISTINE) -> None:
        self.bundle = networks.bundle
        self.weights = weights
        self._networks = networks

    @property
    def can_wrap(self) -> bool:
        """As of `Networks`."""
        return self._networks.can_wrap

    def get(
        self,
        network: str,
        batch: int,
        height: int,
        width: int,
        *,
        sequence: int | None = None,
        clock: StageClock | None = None,
        check: Callable[[Module], None] | None = None,
        wraps: str = "none",
    ) -> Module:
        """Return a network; arguments as for `Networks.get`."""
        return self._networks.get(
            network,
            batch,
            height,
            width,
            sequence=sequence,
            clock=clock,
            weights=self.weights,
            check=check,
            wraps=wraps,
        )
