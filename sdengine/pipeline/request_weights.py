"""Weights of requests: those that they give, or the engine's where they give none."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from sdengine.adapters.few_steps import FewSteps
from sdengine.adapters.library import AdapterLibrary
from sdengine.adapters.weight_set import WeightSet
from sdengine.backends.forks import ForkSafeLock
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora
from sdengine.inputs.models import ModelTerm
from sdengine.pipeline.tagged_weights import tagged_loras, with_tags
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
        self.hypernetworks: tuple[HypernetworkUse, ...] = ()

    def set_defaults(
        self,
        loras: tuple[Lora, ...],
        model: tuple[ModelTerm, ...] = (),
        hypernetworks: tuple[HypernetworkUse, ...] = (),
    ) -> None:
        """Let requests that give nothing have these; those that were planned keep what they have.

        Raises:
            ConfigError, AdapterError, CheckpointError, BundleError: as for
                `AdapterLibrary.weight_set`; the defaults are as they were.
        """
        with self._lock:
            weights = self._library.weight_set(loras, model, hypernetworks)
            self._inside(weights)
            self.loras, self.model, self.hypernetworks = loras, model, hypernetworks

    def defaults(self) -> WeightSet:
        """Return what requests that give nothing compute with."""
        with self._lock:
            return self._library.weight_set(self.loras, self.model, self.hypernetworks)

    def of(self, request: Request) -> tuple[Request, WeightSet, tuple[str, ...]]:
        """Return a request with what it gives or else the engine has, and what it amounts to.

        The third are sentences on what its tags asked for and did not get.

        Raises:
            ConfigError, AdapterError, BundleError: as for `AdapterLibrary.weight_set`.
        """
        with self._lock:
            if request.loras is None and self.loras:
                request = replace(request, loras=self.loras)
            if request.model is None and self.model:
                request = replace(request, model=self.model)
            if request.hypernetworks is None and self.hypernetworks:
                request = replace(request, hypernetworks=self.hypernetworks)
            request, warnings = with_tags(request, self._library)
            weights = self._library.weight_set(
                request.loras or (), request.model or (), request.hypernetworks or ()
            )
            return self._with_files(request), weights, warnings

    def _with_files(self, request: Request) -> Request:
        """Return a request whose recorded LoRAs have their files, of which web UIs' hashes are."""
        loras = request.loras or ()
        if all(one.path is not None for one in loras):
            return request
        of_hash = self._library.files.of_hash
        found = (one if one.path else replace(one, path=of_hash(one.sha256)) for one in loras)
        return replace(request, loras=tuple(found))

    def add_files(self, *loras: str | os.PathLike[str]) -> None:
        """Let prompts name the LoRAs of files and folders; see `NamedFiles.add`."""
        with self._lock:
            self._library.files.add(*loras)

    def add_hypernetworks(self, *paths: str | os.PathLike[str]) -> None:
        """Let prompts name the hypernetworks of files and folders; see `NamedFiles.add`."""
        with self._lock:
            self._library.hypernetwork_files.add(*paths)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of LoRAs that prompts may have in tags."""
        with self._lock:
            return self._library.files.names

    def knows(self, use: Lora | HypernetworkUse) -> bool:
        """Say whether what is used can be read: its file is known, or among those added."""
        library = self._library
        files = library.files if isinstance(use, Lora) else library.hypernetwork_files
        with self._lock:
            return use.path is not None or files.of_hash(use.sha256) is not None

    def few_steps(self, prompt: Any, loras: tuple[Lora, ...] | None) -> FewSteps | None:
        """Return how a request wants to be sampled by its LoRAs; None if none says it.

        Args:
            prompt: of the request.
            loras: that it gives; None is the defaults.
        """
        with self._lock:
            used = {one.sha256: one for one in (self.loras if loras is None else loras)}
            used |= {one.sha256: one for one in tagged_loras(prompt, self._library)}
            weights = self._library.weight_set([one for one in used.values() if one.unet])
        return next((a.few_steps for a, _, _ in weights.loras if a.few_steps), None)

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
                try:
                    self._embeddings[adapter.sha256] = read_embeddings(adapter.holder.path)
                except ConfigError as error:  # whose field is that of files given by themselves
                    told = str(error).removeprefix("embeddings: ")
                    raise ConfigError(f"loras: {told}") from None
            found += self._embeddings[adapter.sha256]
        return tuple(found)


def few_step_notes(request: Request, weights: WeightSet) -> tuple[str, ...]:
    """Say how LoRAs for few steps want to be sampled, and whether a request does."""
    notes = []
    for adapter, _, unet in weights.loras:
        wanted = adapter.few_steps
        if wanted is None or not unet:
            continue
        asked = {
            name: (getattr(request, name), getattr(wanted, name))
            for name in ("sampler", "schedule", "steps", "guidance_scale")
        }
        said = f"{adapter.name} is a LoRA for few steps ({wanted.name})"
        kept = ", ".join(f"{name} {now}" for name, (now, then) in asked.items() if now == then)
        other = ", ".join(
            f"{name} {then} and not {now}" for name, (now, then) in asked.items() if now != then
        )
        told = f"it wants {other}" if other else f"sampled as it wants, {kept}"
        notes.append(f"{said}: {told}.")
    return tuple(notes)
