"""Weight set: what a request wants the networks' weights to be, for whoever loads a network."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from sdengine import _native
from sdengine.adapters.adapter import Adapter
from sdengine.adapters.changes import Array, Strong
from sdengine.adapters.sources.model import Model
from sdengine.errors import AdapterError
from sdengine.inputs.hypernetworks import Hypernetwork


@dataclass(frozen=True, eq=False)
class WeightSet:
    """What is merged into the bundle's own weights; without anything, these.

    Args:
        loras: each with its strength in the text encoders and in the U-Net.
        model: what they are merged into, in the place of the bundle's weights.
        hypernetworks: each with its strength, in the order in which they are applied.
    """

    loras: tuple[tuple[Adapter, float, float], ...] = ()
    model: Model | None = None
    hypernetworks: tuple[tuple[Hypernetwork, float], ...] = ()

    def identity(self, network: str) -> str:
        """Return a text that tells the network's weights from those of other sets.

        It is empty where they are the bundle's own.
        """
        if self is PRISTINE:
            return ""
        used = [
            (adapter.sha256, unet if network == "unet" else text)
            for adapter, text, unet in self.loras
            if network in adapter.changes
        ]
        strong = sorted(pair for pair in used if pair[1])
        model = "" if self.model is None else self.model.identity(network)
        nets = [(one.sha256, strength) for one, strength in self.applied(network)]
        if not model and not nets:
            return json.dumps(strong) if strong else ""
        return json.dumps([model, *strong, *([nets] if nets else [])])

    def applied(self, network: str) -> tuple[tuple[Hypernetwork, float], ...]:
        """Return the hypernetworks of a network, without those of strength 0."""
        if network != "unet":
            return ()
        return tuple((one, strength) for one, strength in self.hypernetworks if strength)

    def contexts(self, text: Array) -> tuple[Array, Array] | None:
        """Return what the U-Net's attention makes its keys and values of, of a text [...,width].

        Returns:
            fp32 of the same shape, each; None where both are the text.
        """
        applied = self.applied("unet")
        if not any(text.shape[-1] in one.networks for one, _ in applied):
            return None
        keys = values = text
        for one, strength in applied:
            keys, values = one.added_to(keys, values, strength)
        return keys, values

    def changes(self, network: str) -> dict[str, list[Strong]]:
        """Return the changes of a network's parameters; those of strength 0 are left out."""
        found: dict[str, list[Strong]] = {}
        for adapter, text, unet in self.loras:
            strength = unet if network == "unet" else text
            for change in adapter.changes.get(network, ()) if strength else ():
                found.setdefault(change.parameter, []).append((change, strength))
        return found

    def pristine(self, network: str, own: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return what is merged into: a network's weights, each made when it is asked for.

        Args:
            network: its name.
            own: the bundle's, by parameter.
        """
        return own if self.model is None else self.model.weights(network, own)

    def changed(self, network: str) -> Collection[str]:
        """Name the parameters whose values may be others than the bundle's."""
        exchanged = () if self.model is None else self.model.changed(network)
        return {*exchanged, *self.changes(network)}

    def token_rows(self, network: str, own: Array, token_ids: Array) -> Array:
        """Return the rows of a text encoder's token table in fp32.

        Args:
            network: the text encoder.
            own: the bundle's table [vocab,hidden_size], fp16 or fp32.
            token_ids: int64 of any shape.
        """
        if self.model is not None:
            return self.model.token_rows(network, own, token_ids).astype(np.float32)
        return _native.table_rows(own, token_ids)

    def require_unchanged(self) -> None:
        """Refuse files whose bytes are not those that were checked, whose hashes results record.

        Raises:
            AdapterError, CheckpointError: one was overwritten.
        """
        if self.model is not None:
            self.model.require_unchanged()
        for adapter, _, _ in self.loras:
            if adapter.holder.is_overwritten():
                raise AdapterError(
                    f"adapter {str(adapter.holder.path)!r} was overwritten after it was checked. "
                    "Give it again."
                )


PRISTINE = WeightSet()
