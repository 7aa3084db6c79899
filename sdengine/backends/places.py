"""Places of a machine: two groups of its processors, for the two halves of a U-Net's rows.

By default they are its NUMA nodes: what lies in a node's own memory is read fast by its processors
alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sdengine.errors import BackendUnavailableError, ConfigError

FIELD = "split_guidance"
NUMA = "numa"
_NODES = Path("/sys/devices/system/node")
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)
_ACCEPTED = "None, 'numa', or two lists of processors with a / between them, such as '0-15/16-31'"


@dataclass(frozen=True)
class Place:
    """Some of the machine's processors.

    Args:
        cpus: their numbers, in order.
        nodes: the NUMA nodes that they belong to.
    """

    cpus: tuple[int, ...]
    nodes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The processors as the kernel lists them: "0-3,8"."""
        text, first = [], 0
        for i in range(1, len(self.cpus) + 1):
            if i == len(self.cpus) or self.cpus[i] != self.cpus[i - 1] + 1:
                low, high = self.cpus[first], self.cpus[i - 1]
                text.append(f"{low}" if low == high else f"{low}-{high}")
                first = i
        return ",".join(text)


def find_places(option: str, folder: Path = _NODES) -> tuple[Place, Place]:
    """Return the two places that an option names.

    Args:
        option: "numa" for a half of the NUMA nodes each, or two lists of processors.
        folder: where the kernel describes the nodes.

    Raises:
        ConfigError: it is neither, processors are named twice or may not be used, or the machine
            has no two nodes.
        BackendUnavailableError: this system does not bind threads to processors.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise BackendUnavailableError(
            f"{FIELD}: this system does not bind threads to processors; Linux does."
        )
    usable = os.sched_getaffinity(0)
    nodes = _nodes(folder)
    if option == NUMA:
        return _by_nodes(nodes, usable)
    lists = [_read_list(part) for part in option.split("/")] if isinstance(option, str) else []
    if len(lists) != 2 or not all(lists):
        raise ConfigError.for_field(FIELD, option, _ACCEPTED)
    first, second = lists
    if both := first & second:
        raise ConfigError.for_field(
            FIELD, option, "lists that have no processor in common", f"Both name {min(both)}."
        )
    if others := (first | second) - usable:
        raise ConfigError.for_field(
            FIELD,
            option,
            f"processors that this process may use, {Place(tuple(sorted(usable))).name}",
            f"Processor {min(others)} is none of them.",
        )
    return _place(first, nodes), _place(second, nodes)


def _by_nodes(nodes: dict[int, set[int]], usable: Collection[int]) -> tuple[Place, Place]:
    found = {node: cpus & set(usable) for node, cpus in sorted(nodes.items())}
    known = [node for node, cpus in found.items() if cpus]
    if len(known) < 2:
        raise ConfigError.for_field(
            FIELD,
            NUMA,
            "two lists of processors on this machine, such as '0-15/16-31'",
            f"It has {len(known)} NUMA node{'' if len(known) == 1 else 's'} with processors that "
            "this process may use.",
        )
    half = (len(known) + 1) // 2  # those of one socket follow each other
    first, second = known[:half], known[half:]
    return (
        _place(set().union(*(found[node] for node in first)), nodes),
        _place(set().union(*(found[node] for node in second)), nodes),
    )


def _place(cpus: Iterable[int], nodes: dict[int, set[int]]) -> Place:
    chosen = set(cpus)
    own = tuple(node for node, members in sorted(nodes.items()) if members & chosen)
    return Place(tuple(sorted(chosen)), own)


def _nodes(folder: Path) -> dict[int, set[int]]:
    """Return the processors of each NUMA node; nothing where the kernel does not tell."""
    found = {}
    for path in folder.glob("node[0-9]*/cpulist"):
        try:
            found[int(path.parent.name[4:])] = _read_list(path.read_text().strip())
        except (OSError, ValueError):
            continue
    return found


def _read_list(text: str) -> set[int]:
    """Return the numbers of a list such as "0-3,8"; none where it is no such list."""
    found: set[int] = set()
    for part in text.split(","):
        matched = _RANGE.fullmatch(part.strip())
        if matched is None:
            return set()
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last < first:
            return set()
        found.update(range(first, last + 1))
    return found
