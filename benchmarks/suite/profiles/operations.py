"""Operations of a profile: what each computes and moves, where it belongs, and the least it takes.

The roofline: an operation takes at least as long as its products at the peak of the numbers that it
multiplies, and as its bytes at the bandwidth of memory; the longer of both bounds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdengine.benchmarks.suite.machine_roofline import Roofline

_TIME = re.compile(r"time_emb|add_embedding|sinusoid")
# In names of U-Nets, control networks, autoencoders and text encoders; the leftmost counts.
_PLACES = (
    (re.compile(r"^input |^output |^inputs and outputs$"), "inputs, outputs"),
    (re.compile(r"\bcontrolnet_cond_embedding\b"), "hint"),
    (re.compile(r"\bcontrolnet_(down|mid)_block"), "residuals"),
    (re.compile(r"\b(down|up)_blocks\.(\d+)"), r"\1 \2"),
    (re.compile(r"\bmid_block\b"), "mid"),
    (re.compile(r"\blayers\.(\d+)"), r"layer \1"),
    (re.compile(r"\bconv_in\b"), "first"),
    (re.compile(r"\b(conv_norm_out|conv_out|final_layer_norm|quant_conv)\b"), "last"),
)
TIME_LEVEL = "time embedding"


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Args:
        name: as the backend calls it.
        kind: "conv", "winograd", "linear", "attention", "group_norm" ...
        level: of the network; see `level_of`.
        flops: multiplications and additions of the plain algorithm.
        products: those that are computed, which are fewer where Winograd's tiles are.
        values: what is multiplied, a key of `machine_roofline.VALUES`; "" where nothing is.
        bytes_read, bytes_written: of maps and weights, each counted once.
    """

    name: str
    kind: str
    level: str
    flops: int
    products: float
    values: str
    bytes_read: int
    bytes_written: int

    def least_seconds(self, roofline: Roofline) -> tuple[float, str]:
        """Return the least that it can take, and what bounds it: "compute" or "memory"."""
        peak = roofline["flops_per_second"].get(self.values, 0.0)
        computing = self.products / peak if peak else 0.0
        moving = (self.bytes_read + self.bytes_written) / roofline["bytes_per_second"]
        return (computing, "compute") if computing > moving else (moving, "memory")


@dataclass(frozen=True)
class Timed:
    """A loaded network whose operations can be timed inside its runs.

    Args:
        operations: in the order in which they run.
        run: runs it once and returns seconds of the whole, and of each operation.
        close: frees it.
    """

    operations: Sequence[Operation]
    run: Callable[[], tuple[float, list[float]]]
    close: Callable[[], None]


def level_of(name: str, before: str) -> str:
    """Return the level of a network that an operation belongs to, by its name.

    Args:
        name: an operation's, with the path of the module that it comes from.
        before: the level of the operation before it, which is that of one without such a name.
    """
    if _TIME.search(name):
        return TIME_LEVEL
    found = [(match.start(), match.expand(level)) for pattern, level in _PLACES
             if (match := pattern.search(name))]  # fmt: skip
    return min(found)[1] if found else before


def first_level(network: str) -> str:
    """Return the level of operations that come before the first with a name of one."""
    return TIME_LEVEL if network.startswith(("unet", "control")) else "first"


def steps_of(
    operations: Sequence[Operation], seconds: Sequence[float], roofline: Roofline
) -> list[dict[str, Any]]:
    """Return what a record says of each operation.

    Args:
        operations: in their order.
        seconds: of each.
        roofline: of the machine, measured in the same run.
    """
    total = max(sum(seconds), 1e-12)
    return [
        {
            "index": index,
            "name": one.name,
            "kind": one.kind,
            "level": one.level,
            "ms": 1e3 * taken,
            "least_ms": 1e3 * one.least_seconds(roofline)[0],
            "flops": one.flops,
            "products": one.products,
            "bytes_read": one.bytes_read,
            "bytes_written": one.bytes_written,
            "percent_of_time": 100 * taken / total,
            "bound": one.least_seconds(roofline)[1],
            "percent_of_peak": _percent_of_peak(one, taken, roofline),
            "values": one.values,
        }
        for index, (one, taken) in enumerate(zip(operations, seconds, strict=True))
    ]


def _percent_of_peak(one: Operation, seconds: float, roofline: Roofline) -> float | None:
    peak = roofline["flops_per_second"].get(one.values, 0.0)
    return 100 * one.products / peak / seconds if peak and one.products and seconds > 0 else None
