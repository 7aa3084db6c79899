"""Weights of requests: those that they give, or the engine's where they give none."""

from __future__ import annotations

from dataclasses import replace

from sdengine.adapters.library import AdapterLibrary
from sdengine.adapters.weight_set import WeightSet
from sdengine.backends.forks import ForkSafeLock
from sdengine.bundle.reader import Bundle
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.loras import Lora
from sdengine.inputs.models import ModelTerm
from sdengine.request.request import Request


class RequestWeights:
    """Find out what a request's networks compute with. Safe in several threads.

    Args:
        bundle: that it is merged into.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._library = AdapterLibrary(bundle)
        self._lock = ForkSafeLock()
        self._embeddings: dict[str, tuple[Embedding, ...]] = {}
        self.loras: tuple[Lora, ...] = ()
        self.model: tuple[ModelTerm, ...] = ()

    def set_defaults(self, loras: tuple[Lora, ...], model: tuple[ModelTerm, ...] = ()) -> None:
        """Let requests that give nothing have these; those that were planned keep what they have.

        Raises:
            ConfigError, AdapterError, CheckpointError, BundleError: as for
                `AdapterLibrary.weight_set`; the defaults are as they were.
        """
        with self._lock:
            weights = self._library.weight_set(loras, model)
            self._inside(weights)
            self.loras, self.model = loras, model

    def defaults(self) -> WeightSet:
        """Return what requests that give nothing compute with."""
        with self._lock:
            return self._library.weight_set(self.loras, self.model)

    def of(self, request: Request) -> tuple[Request, WeightSet]:
        """Return a request with what it gives or else the engine has, and what it amounts to.

        Raises:
            ConfigError, AdapterError, BundleError: as for `AdapterLibrary.weight_set`.
        """
        with self._lock:
            if request.loras is None and self.loras:
                request = replace(request, loras=self.loras)
            if request.model is None and self.model:
                request = replace(request, model=self.model)
            weights = self._library.weight_set(request.loras or (), request.model or ())
            return request, weights

    def embeddings(self, weights: WeightSet | None = None) -> tuple[Embedding, ...]:
        """Return the textual inversions that lie in the files of a set, or in the defaults'.

        Raises:
            ConfigError: one cannot be read.
        """
        with self._lock:
            if weights is None:
                weights = self._library.weight_set(self.loras)
            return self._inside(weights)

    def _inside(self, weights: WeightSet) -> tuple[Embedding, ...]:
        found: list[Embedding] = []
        for adapter, text, unet in weights.loras:
            if not adapter.has_embeddings or not (text or unet):
                continue
            if adapter.sha256 not in self._embeddings:
                self._embeddings[adapter.sha256] = read_embeddings(adapter.holder.path)
            found += self._embeddings[adapter.sha256]
        return tuple(found)
