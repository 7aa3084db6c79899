"""Applied adapters: several with their strengths, for whoever loads a network's weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.adapters.adapter import Adapter, read_adapter
from sdengine.adapters.changes import Strong
from sdengine.adapters.modules import bundle_modules
from sdengine.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

Strength = float | tuple[float, float]
MOST_STRENGTH = 100.0
_ACCEPTED = "{file: strength} or {file: (in text encoders, in the U-Net)}, from -100 to 100"


@dataclass(frozen=True)
class Applied:
    """Adapters to be merged into a bundle's weights.

    Args:
        adapters: each with its strength in the text encoders and in the U-Net.
    """

    adapters: tuple[tuple[Adapter, float, float], ...] = ()

    def changes(self, network: str) -> dict[str, list[Strong]]:
        """Return the changes of a network's parameters; those of strength 0 are left out."""
        found: dict[str, list[Strong]] = {}
        for adapter, text, unet in self.adapters:
            strength = unet if network == "unet" else text
            for change in adapter.changes.get(network, ()) if strength else ():
                found.setdefault(change.parameter, []).append((change, strength))
        return found

    def embedding_files(self) -> list[Path]:
        """Return the files that hold textual inversions beside their changes."""
        return [
            adapter.holder.path
            for adapter, text, unet in self.adapters
            if adapter.has_embeddings and (text or unet)
        ]

    def require_unchanged(self) -> None:
        """Refuse files whose bytes are not those that were checked, whose hashes results record.

        Raises:
            AdapterError: one was overwritten.
        """
        for adapter, _, _ in self.adapters:
            if adapter.holder.is_overwritten():
                raise AdapterError(
                    f"adapter {str(adapter.holder.path)!r} was overwritten after it was checked. "
                    "Load the bundle with it again."
                )

    def identity(self, network: str) -> str:
        """Return a text that tells the network's weights from those with other adapters.

        It is empty where they are the bundle's own.
        """
        used = [
            (adapter.sha256, unet if network == "unet" else text)
            for adapter, text, unet in self.adapters
            if network in adapter.changes
        ]
        strong = sorted(pair for pair in used if pair[1])
        return json.dumps(strong) if strong else ""


NO_ADAPTERS = Applied()


def read_loras(bundle: Bundle, loras: Mapping[str | os.PathLike[str], Strength] | None) -> Applied:
    """Read and check adapters for a bundle; nothing is merged yet.

    Args:
        bundle: of target native.
        loras: files or folders with a strength for all, or one for the text encoders and one for
            the U-Net.

    Raises:
        ConfigError: an argument is invalid, or the bundle is of another target.
        AdapterError: a file cannot be applied; see `read_adapter`.
        BundleError: the bundle is damaged.
    """
    if not loras:
        return NO_ADAPTERS
    if not isinstance(loras, Mapping):
        raise ConfigError.for_field("loras", loras, _ACCEPTED)
    strengths = {path: _strengths(path, strength) for path, strength in loras.items()}
    modules = bundle_modules(bundle)
    return Applied(tuple((read_adapter(path, modules), *strengths[path]) for path in strengths))


def _strengths(path: object, strength: object) -> tuple[float, float]:
    both = strength if isinstance(strength, tuple) else (strength, strength)
    good = isinstance(path, str | os.PathLike) and len(both) == 2 and all(map(_is_strength, both))
    if not good:
        raise ConfigError.for_field("loras", {path: strength}, _ACCEPTED)
    return float(both[0]), float(both[1])


def _is_strength(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= MOST_STRENGTH
