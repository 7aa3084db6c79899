"""Request fields of weights: what is merged into the networks for one request, and its JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.errors import ConfigError
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import MAX_RANK, MOST_STRENGTH, Lora, Strength, find_lora
from sdengine.inputs.models import (
    ACCEPTED,
    MOST_TERMS,
    OWN,
    ModelTerm,
    check_shares,
    model_terms,
)
from sdengine.request.fields import about

MAX_LORAS = 100
MAX_HYPERNETWORKS = 16
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Loras:
    """Some LoRAs with their strengths."""

    accepted: str = (
        f"up to {MAX_LORAS} as {{file: strength}} or {{file: (in text encoders, in the U-Net)}}, "
        f"from {-MOST_STRENGTH:g} to {MOST_STRENGTH:g}"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[Lora, ...]:
        """Return a tuple of LoRAs; their files are hashed, and not yet read."""
        if isinstance(value, tuple) and all(isinstance(one, Lora) for one in value):
            _check_uses(name, value, MAX_LORAS, ("text", "unet"), self.accepted)
            return value
        if not isinstance(value, Mapping) or len(value) > MAX_LORAS:
            raise ConfigError.for_field(name, value, self.accepted)
        strengths = {path: self._both(name, path, one) for path, one in value.items()}
        found = []
        for path, (text, unet) in strengths.items():
            place = Path(path)
            lora = find_lora(place)
            found.append(Lora(lora.name, lora.sha256, text, unet, path=place))
        return tuple(found)

    def _both(self, name: str, path: object, strength: Strength) -> tuple[float, float]:
        both = strength if isinstance(strength, tuple) else (strength, strength)
        good = isinstance(path, str | os.PathLike) and len(both) == 2 and all(map(_is_one, both))
        if not good:
            raise ConfigError.for_field(name, {path: strength}, self.accepted)
        return float(both[0]), float(both[1])


@dataclass(frozen=True)
class Model:
    """A checkpoint, or several with their shares."""

    accepted: str = ACCEPTED
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[ModelTerm, ...]:
        """Return the terms of a model; its files are hashed, and not yet read."""
        if isinstance(value, tuple) and all(isinstance(one, ModelTerm) for one in value):
            check_shares(name, [one.share for one in value])
            return value
        return model_terms(name, value)


@dataclass(frozen=True)
class Hypernetworks:
    """Some hypernetworks with their strengths, in the order in which they are applied."""

    accepted: str = (
        f"up to {MAX_HYPERNETWORKS} as {{file: strength}}, from {-MOST_STRENGTH:g} to "
        f"{MOST_STRENGTH:g}"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[HypernetworkUse, ...]:
        """Return a tuple; the files are hashed, and not yet read."""
        if isinstance(value, tuple) and all(isinstance(one, HypernetworkUse) for one in value):
            _check_uses(name, value, MAX_HYPERNETWORKS, ("strength",), self.accepted)
            return value
        if not isinstance(value, Mapping) or len(value) > MAX_HYPERNETWORKS:
            raise ConfigError.for_field(name, value, self.accepted)
        for path, strength in value.items():
            if not isinstance(path, str | os.PathLike) or not _is_one(strength):
                raise ConfigError.for_field(name, {path: strength}, self.accepted)
        return tuple(HypernetworkUse.of(Path(path), float(one)) for path, one in value.items())


@dataclass(frozen=True, kw_only=True)
class WeightFields:
    """Those fields of a request that change the networks' weights; see `sdengine.Request`."""

    model: tuple[ModelTerm, ...] | None = field(
        default=None,
        metadata=about(
            Model(),
            "another checkpoint of the bundle's architecture, a file or a folder, whose weights "
            "take the place of the bundle's; or a dict of several with their shares, which make "
            "1: 0.7 and 0.3 for a weighted sum, 1, 0.5 and -0.5 to add half the difference "
            'between two; "bundle" is the bundle itself; by default what the engine was given',
        ),
    )
    loras: tuple[Lora, ...] | None = field(
        default=None,
        metadata=about(
            Loras(),
            "files of LoRAs and their kin, or folders that PEFT or diffusers wrote, with a "
            "strength for each, or one for the text encoders and one for the U-Net; their order "
            "changes nothing, 0 is as if the file were not there, an empty dict is none; by "
            "default those that the engine was given",
            option="lora",
        ),
    )
    hypernetworks: tuple[HypernetworkUse, ...] | None = field(
        default=None,
        metadata=about(
            Hypernetworks(),
            "files of hypernetworks as web UIs train them, with a strength for each; each changes "
            "what the ones before it made, 0 is as if the file were not there, an empty dict is "
            "none; by default those that the engine was given",
            option="hypernetwork",
        ),
    )


def read_lora_records(name: str, value: Any) -> tuple[Lora, ...]:
    """Return what JSON from whomever says of LoRAs; a path in it is never opened.

    Raises:
        ConfigError: it is no list of records.
    """
    return tuple(Lora(*one) for one in _records(name, value, MAX_LORAS, ("text", "unet"), "rank"))


def read_hypernetwork_records(name: str, value: Any) -> tuple[HypernetworkUse, ...]:
    """Return what JSON from whomever says of hypernetworks; a path in it is never opened.

    Raises:
        ConfigError: it is no list of records.
    """
    records = _records(name, value, MAX_HYPERNETWORKS, ("strength",))
    return tuple(HypernetworkUse(*one) for one in records)


def _records(
    name: str, value: Any, most: int, strengths: tuple[str, ...], optional: str = ""
) -> Iterator[tuple[Any, ...]]:
    """Yield name, hash and strengths of each record, and a rank that it may have."""
    shown = ", ".join(f'"{one}": strength' for one in strengths)
    accepted = f'a list of up to {most} objects {{"name": ..., "sha256": ..., {shown}}}'
    if not isinstance(value, list) or len(value) > most:
        raise ConfigError.for_field(name, value, accepted)
    for one in value:
        names = set(one) - {optional} if isinstance(one, Mapping) else set()
        if names != {"name", "sha256", *strengths}:
            raise ConfigError.for_field(name, one, accepted)
        called, sha256, rank = one["name"], one["sha256"], one.get("rank")
        is_hash = isinstance(sha256, str) and len(sha256) == 64 and _HEX.issuperset(sha256)
        is_rank = rank is None or (type(rank) is int and 0 < rank <= MAX_RANK)
        numbers = [one[strength] for strength in strengths]
        if not (is_hash and _is_name(called) and is_rank and all(map(_is_one, numbers))):
            raise ConfigError.for_field(name, one, accepted)
        yield called, sha256, *map(float, numbers), *((rank,) if optional else ())


def read_model_records(name: str, value: Any) -> tuple[ModelTerm, ...]:
    """Return what JSON from whomever says of a model; a path in it is never opened.

    Raises:
        ConfigError: it is no list of records.
    """
    accepted = (
        f'a list of up to {MOST_TERMS} objects {{"name": ..., "sha256": ..., "share": number}}, '
        "whose shares make 1"
    )
    if not isinstance(value, list) or len(value) > MOST_TERMS:
        raise ConfigError.for_field(name, value, accepted)
    found = []
    for one in value:
        if not isinstance(one, Mapping) or set(one) != {"name", "sha256", "share"}:
            raise ConfigError.for_field(name, one, accepted)
        called, sha256 = one["name"], one["sha256"]
        is_hash = isinstance(sha256, str) and len(sha256) == 64 and _HEX.issuperset(sha256)
        if not (_is_name(called) and (is_hash or (sha256, called) == ("", OWN))):
            raise ConfigError.for_field(name, one, accepted)
        found.append(ModelTerm(called, sha256, one["share"]))
    check_shares(name, [one.share for one in found])
    return tuple(found)


def _check_uses(
    name: str,
    uses: Sequence[Lora | HypernetworkUse],
    most: int,
    strengths: tuple[str, ...],
    accepted: str,
) -> None:
    """Refuse what no record could say, such as more files than there may be, tags included."""
    if len(uses) > most:
        raise ConfigError.for_field(name, f"{len(uses)} files", accepted)
    for use in uses:
        numbers = [getattr(use, strength) for strength in strengths]
        if not all(map(_is_one, numbers)):
            raise ConfigError.for_field(name, {use.name: numbers}, accepted)


def _is_name(value: object) -> bool:
    """Say whether it can be written as UTF-8: JSON can hold halves of characters."""
    if not isinstance(value, str) or len(value) > 255:
        return False
    return value.encode("utf-8", "replace").decode() == value


def _is_one(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        return False
    return bool(abs(value) <= MOST_STRENGTH)  # which neither NaN nor any large integer is
