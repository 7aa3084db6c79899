"""Settings of PEFT: what alpha is divided by, where the tensors themselves do not say it.

Source: the documentation of PEFT's LoraConfig, LoHaConfig, LoKrConfig and IA3Config, and of the
metadata that diffusers writes beside the tensors; "rsLoRA" (Kalajdzievski 2023), section 3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_METADATA_KEY = "lora_adapter_metadata"
_APPLIED = ("LORA", "LOHA", "LOKR", "IA3")
# PEFT takes a pattern for a regular expression; those that only name modules are read here, because
# a foreign expression may take forever.
_MOST = 1e30
_PLAIN = re.compile(r"\^?[\w.]{1,200}")


@dataclass(frozen=True)
class PeftConfig:
    """Settings of one network's adapter.

    Args:
        rank, alpha: of every module, but for those in the patterns.
        rank_pattern, alpha_pattern: by a module's name or the end of it.
        rank_stabilised: alpha is divided by the root of the rank.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def scale(self, path: str, rank: int | None) -> float:
        """Return what a module's product is multiplied with.

        Args:
            path: of the module.
            rank: that the tensors have; None where they have none.
        """
        found = rank or _matching(self.rank_pattern, path) or self.rank
        alpha = _matching(self.alpha_pattern, path)
        return (self.alpha if alpha is None else alpha) / (
            math.sqrt(found) if self.rank_stabilised else found
        )


def read_config(text: str | bytes) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        ValueError: it is malformed, or of a kind that is not applied.
    """
    return _config(json_object(text, "adapter_config.json"), "adapter_config.json")


def configs_of_metadata(metadata: Mapping[str, str]) -> dict[str, PeftConfig]:
    """Return the settings that diffusers wrote, by network.

    Raises:
        ValueError: they are malformed.
    """
    text = metadata.get(_METADATA_KEY)
    if text is None:
        return {}
    by_network: dict[str, dict[str, Any]] = {}
    for key, value in json_object(text, _METADATA_KEY).items():
        network, _, name = key.partition(".")
        by_network.setdefault(network, {})[name] = value
    return {
        network: _config(content, f"{_METADATA_KEY}: {network[:40]}")
        for network, content in by_network.items()
    }


def _config(content: Mapping[str, Any], where: str) -> PeftConfig:
    kind = content.get("peft_type", "LORA")
    if kind not in _APPLIED:
        raise ValueError(
            f"{where}: peft_type {str(kind)[:40]!r} is not among {', '.join(_APPLIED)}"
        )
    if content.get("fan_in_fan_out"):
        raise ValueError(f"{where}: fan_in_fan_out is for transposed weights, which are none here")
    rank = content.get("r", 8)
    alpha = content.get("lora_alpha", content.get("alpha", 8))
    stabilised = content.get("use_rslora", False)
    if type(rank) is not int or not 0 < rank < _MOST or not _is_number(alpha):
        raise ValueError(f"{where}: r {rank!r} and alpha {alpha!r} are no numbers from 1 on")
    if type(stabilised) is not bool:
        raise ValueError(f"{where}: use_rslora is {str(stabilised)[:40]!r}")
    ranks = _pattern(content.get("rank_pattern"), f"{where}: rank_pattern")
    alphas = _pattern(content.get("alpha_pattern"), f"{where}: alpha_pattern")
    if any(type(value) is not int or value < 1 for value in ranks.values()):
        raise ValueError(f"{where}: rank_pattern holds what is no rank")
    return PeftConfig(rank, float(alpha), ranks, alphas, stabilised)


def _pattern(content: Any, where: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(map(_is_number, content.values())):
        raise ValueError(f"{where} is no object of numbers")
    for key in content:
        if not _PLAIN.fullmatch(key):
            raise ValueError(f"{where}: {key[:80]!r} is an expression; only names are read")
    return content


def _matching(pattern: Mapping[str, Any], path: str) -> Any:
    """Return the value of the first key that names a module or the end of its name."""
    for key, value in pattern.items():
        name = key.removeprefix("^")
        if path == name or (path.endswith(f".{name}") and name == key):
            return value
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value is not True and 0 < abs(value) < _MOST


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return a JSON object out of a file.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{what} is no JSON object")
    return content
