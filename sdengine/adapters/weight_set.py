"""Weight set: what a request wants the networks' weights to be, for whoever loads a network."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sdengine.adapters.adapter import Adapter
from sdengine.adapters.changes import Strong
from sdengine.errors import AdapterError


@dataclass(frozen=True, eq=False)
class WeightSet:
    """What is merged into the bundle's own weights; without anything, these.

    Args:
        loras: each with its strength in the text encoders and in the U-Net.
    """

    loras: tuple[tuple[Adapter, float, float], ...] = ()

    def identity(self, network: str) -> str:
        """Return a text that tells the network's weights from those of other sets.

        It is empty where they are the bundle's own.
        """
        used = [
            (adapter.sha256, unet if network == "unet" else text)
            for adapter, text, unet in self.loras
            if network in adapter.changes
        ]
        strong = sorted(pair for pair in used if pair[1])
        return json.dumps(strong) if strong else ""

    def changes(self, network: str) -> dict[str, list[Strong]]:
        """Return the changes of a network's parameters; those of strength 0 are left out."""
        found: dict[str, list[Strong]] = {}
        for adapter, text, unet in self.loras:
            strength = unet if network == "unet" else text
            for change in adapter.changes.get(network, ()) if strength else ():
                found.setdefault(change.parameter, []).append((change, strength))
        return found

    def require_unchanged(self) -> None:
        """Refuse files whose bytes are not those that were checked, whose hashes results record.

        Raises:
            AdapterError: one was overwritten.
        """
        for adapter, _, _ in self.loras:
            if adapter.holder.is_overwritten():
                raise AdapterError(
                    f"adapter {str(adapter.holder.path)!r} was overwritten after it was checked. "
                    "Give it again."
                )


PRISTINE = WeightSet()
