"""Configuration fields of a network, from JSON that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from sdengine.errors import ConfigError

MAX_SIZE = 1 << 20
MAX_LAYERS = 256
_LAYER_COUNTS = (
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_hidden_layers",
)
_MAX_LEVELS = 12
_SPELLINGS = {"swish": "silu"}  # two names of one function


def read_fields(
    config_class: type[Any],
    config: Mapping[str, Any],
    network: str,
    fixed: Mapping[str, Any],
    harmless: Collection[str],
) -> dict[str, Any]:
    """Return the keyword arguments of a config dataclass, each of the right type and size.

    Args:
        config_class: the dataclass; its annotations say what each field may be.
        config: content of a ``config.json``. Keys that begin with "_" describe the file.
        network: what messages call the network.
        fixed: switches that change the network and that only one value is implemented of.
        harmless: keys that change nothing here.

    Raises:
        ConfigError: a key is not known, or a value is of the wrong type, absurdly large, or not
            implemented.
    """
    known = {field.name for field in fields(config_class)} | fixed.keys() | set(harmless)
    for key, value in config.items():
        if key not in known and not key.startswith("_") and value is not None:
            raise ConfigError.for_field(
                f"{network}.{key}",
                value,
                "a key that is known to be used or to change nothing",
                "If it changes nothing, take it out of the file.",
            )
    for key, only in fixed.items():
        if key in config and not _means(config[key], only):
            raise ConfigError.for_field(
                f"{network}.{key}", config[key], repr(only), "Other variants are not implemented."
            )
    values = {}
    for field in fields(config_class):
        if field.name not in config:
            continue
        kinds = _alternatives(str(field.type))
        value = _tuples(config[field.name])
        if isinstance(value, tuple) and not any(kind.startswith("tuple[") for kind in kinds):
            value = _single(value)
        limit = MAX_LAYERS if field.name in _LAYER_COUNTS else MAX_SIZE
        if not any(_fits(value, kind, limit) for kind in kinds):
            accepted = f"{' or '.join(kinds)}, numbers from 0 to {limit}"
            raise ConfigError.for_field(f"{network}.{field.name}", config[field.name], accepted)
        values[field.name] = value
    return values


def _size(value: object) -> object:
    """Return the size of a number in a list, where a mean may be negative."""
    return abs(value) if type(value) is float else value


def _means(value: object, only: object) -> bool:
    """Say whether a value is the only one there is, given once or once for each level."""
    if isinstance(value, list) and not isinstance(only, list):
        value = _single(tuple(value))
    return (_SPELLINGS.get(value, value) if isinstance(value, str) else value) == only


def _single(values: tuple[Any, ...]) -> Any:
    """Return the one value that all are, or the values where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _tuples(value: object) -> object:
    """Return a list, and the lists in it, as tuples."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _alternatives(kind: str) -> list[str]:
    """Split an annotation at its outer bars."""
    parts, depth = [""], 0
    for char in kind:
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _fits(value: object, kind: str, limit: int) -> bool:
    if kind == "None":
        return value is None
    if kind.startswith("tuple["):
        item = kind.removeprefix("tuple[").removesuffix(", ...]")
        return (
            isinstance(value, tuple)
            and 0 < len(value) <= _MAX_LEVELS
            and all(any(_fits(_size(v), k, limit) for k in _alternatives(item)) for v in value)
        )
    if kind == "int":
        return type(value) is int and 0 <= value <= limit
    if kind == "float":
        return type(value) in (int, float) and 0 <= value <= limit  # type: ignore[operator]
    if kind == "bool":
        return type(value) is bool
    return isinstance(value, str) and len(value) <= 100
