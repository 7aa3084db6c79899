"""Split of a native bundle: the halves of the U-Net's rows on two groups of processors.

The kernels give the same bits for a row whatever rows it is evaluated with, and for any number of
threads: pictures are those of the engine that is not split, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdengine.backends.base import Session, SessionOptions, require_no_device
from sdengine.backends.memory_budget import check_memory_bytes
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.backends.places import FIELD, Place, find_places
from sdengine.backends.split_session import Half, WrappingSplitSession
from sdengine.backends.split_worker import SplitWorker
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError
from sdengine.machine import usable_processors


@dataclass(frozen=True)
class Placement:
    """How a session computes at one place.

    Args:
        threads: of its networks.
        place: whose pool of threads they are.
        memory: names the memory that holds its weights, which it then has a copy of there; empty
            where they lie wherever they were made or mapped.
    """

    threads: int
    place: str
    memory: str = ""


def open_split(
    bundle: Bundle,
    options: SessionOptions,
    make: Callable[[NativeBudget, Placement | None], Session],
) -> Session:
    """Open a bundle at two places, and for what is not split on all processors.

    Args:
        bundle: of target native.
        options: how it is run; its `split_guidance` names the places.
        make: a session of the bundle with a budget, at a place or at none.

    Raises:
        ConfigError: no such places, or too few threads for two.
        BackendUnavailableError: this system does not bind threads to processors.
    """
    assert options.split_guidance is not None
    require_no_device("native", options.device)
    check_memory_bytes(options.memory_bytes)
    placements = _placements(find_places(options.split_guidance), options.threads)
    copies = len({one.memory for _, one in placements})
    budget = NativeBudget(bundle, options, chosen_isa(), copies)
    halves = [
        Half(SplitWorker(f"sdengine-{place.name}", place.cpus), make(budget, placement))
        for place, placement in placements
    ]
    return WrappingSplitSession(bundle, make(budget, None), (halves[0], halves[1]))


def _placements(places: tuple[Place, Place], threads: int | None) -> list[tuple[Place, Placement]]:
    """Share the threads among places: no more than processors, or than a quota gives together."""
    usable = usable_processors()
    most = threads or usable.threads
    if most < len(places):
        if threads is not None:
            raise ConfigError.for_field(
                "threads", threads, f"{len(places)} or more with {FIELD}, one for each half"
            )
        raise ConfigError(
            f"{FIELD}: this process may use {usable.affinity} processors and "
            f"{usable.quota or usable.affinity:g} of their time, which is one thread's. Leave it "
            "out, or give `threads`."
        )
    counts = (most - most // 2, most // 2)
    apart = places[0].nodes != places[1].nodes
    return [
        (
            place,
            Placement(
                min(count, len(place.cpus)),
                place.name,
                ",".join(map(str, place.nodes)) if apart else "",
            ),
        )
        for place, count in zip(places, counts, strict=True)
    ]
