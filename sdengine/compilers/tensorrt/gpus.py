"""Names of NVIDIA GPUs and their compute capabilities.

Source: NVIDIA's table "CUDA GPU Compute Capability", by product line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sdengine.backends.cache_file import capability_name
from sdengine.errors import ConfigError

_BY_CAPABILITY: dict[int, tuple[str, ...]] = {
    75: ("t4", "t1000", "gtx1650", "gtx1660", "rtx2060", "rtx2070", "rtx2080", "titanrtx"),
    80: ("a100", "a30"),
    86: ("a2", "a10", "a16", "a40", "rtx3050", "rtx3060", "rtx3070", "rtx3080", "rtx3090",
         "rtxa2000", "rtxa4000", "rtxa4500", "rtxa5000", "rtxa6000"),
    89: ("l4", "l40", "l40s", "rtx4050", "rtx4060", "rtx4070", "rtx4080", "rtx4090", "rtx4000ada",
         "rtx5000ada", "rtx6000ada"),
    90: ("h100", "h200", "gh200"),
    100: ("b200", "gb200"),
    103: ("b300", "gb300"),
    120: ("rtx5050", "rtx5060", "rtx5070", "rtx5080", "rtx5090", "rtxpro6000"),
    121: ("gb10",),
}  # fmt: skip
CAPABILITIES = tuple(_BY_CAPABILITY)
_CAPABILITY_OF = {name: cc for cc, names in _BY_CAPABILITY.items() for name in names}
_NUMBER = re.compile(r"(?:sm|cc)?(\d{1,2})\.?(\d)")
# Variants of one chip's product, which share its capability.
_ENDINGS = ("ti", "super", "laptop", "mobile", "d", "max-q")
_MAX_NAMES = 16


def compute_capability(name: str) -> int:
    """Return the compute capability of a GPU, times ten.

    Args:
        name: of a GPU, such as "rtx4090" or "RTX 4070 Ti SUPER", or of a capability: "sm89", "8.9".

    Raises:
        ConfigError: it is neither.
    """
    plain = re.sub(r"[\s_-]+", "", name.strip().lower().removeprefix("nvidia"))
    number = _NUMBER.fullmatch(plain)
    if number is not None:
        cc = 10 * int(number[1]) + int(number[2])
        if cc in _BY_CAPABILITY:
            return cc
    plain = plain.removeprefix("geforce").removeprefix("tesla").removeprefix("quadro")
    while plain not in _CAPABILITY_OF:
        ending = next((e for e in _ENDINGS if plain.endswith(e) and plain != e), None)
        if ending is None:
            raise ConfigError.for_field("gpu", name, known_gpus())
        plain = plain.removesuffix(ending)
    return _CAPABILITY_OF[plain]


def compute_capabilities(names: Iterable[str], target: str, accepted: Iterable[int]) -> list[int]:
    """Return the compute capabilities of some GPUs, each once, that a target can build for.

    Raises:
        ConfigError: a name is unknown, or the target does not build for it.
    """
    found: list[int] = []
    for number, name in enumerate(names):
        cc = compute_capability(name)
        if cc not in accepted or number >= _MAX_NAMES:
            raise ConfigError.for_field(
                "gpu",
                name,
                f"for target {target}: {known_gpus(accepted)}",
                f"It has compute capability {capability_name(cc)}.",
            )
        if cc not in found:
            found.append(cc)
    return sorted(found)


def known_gpus(capabilities: Iterable[int] | None = None) -> str:
    """List capabilities and the GPUs that have them, for messages."""
    chosen = CAPABILITIES if capabilities is None else capabilities
    return "; ".join(f"sm{cc} ({', '.join(_BY_CAPABILITY.get(cc, ()))})" for cc in chosen)
