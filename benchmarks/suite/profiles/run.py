"""Profile of one network of a bundle at one size: what each of its operations takes, and why.

    sdengine profile my-bundle --network unet --size 512x512

The network runs whole each time, so that caches are as they are in a request. Peaks of arithmetic
and memory are measured in the same process; see `machine_roofline`.
"""

from __future__ import annotations

import importlib
import shlex
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdengine.backends import get_backend
from sdengine.backends.base import PRECISIONS, SessionOptions
from sdengine.backends.registry import select_backend
from sdengine.benchmarks.measures import OtherLoad, Spread
from sdengine.benchmarks.records import stamped
from sdengine.benchmarks.suite.machine_roofline import MAX_THREADS, measure
from sdengine.benchmarks.suite.profiles.operations import Timed, steps_of
from sdengine.bundle.reader import Bundle, check_size, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import ConfigError
from sdengine.machine import usable_processors

SCHEMA = 3
# Backends on a CPU, by where a profile of them is: the peaks of a GPU are not measured here.
_LOADERS = {
    name: f"sdengine.benchmarks.suite.profiles.{name}" for name in ("native", "openvino", "torch")
}
_DISTRIBUTIONS = {"openvino": ("openvino",)}
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Asked:
    """What shall be profiled.

    Args:
        bundle: a folder, or "demo".
        network: of it.
        size: width and height in pixels; None for the bundle's first.
        backend: "auto" for the one of the bundle's target.
        precision: one of PRECISIONS.
        threads: or None for the backend's own choice.
        rows: that the network evaluates at once; None for 2, of an autoencoder 1.
        calls: that are timed, after one that is not.
    """

    bundle: str = "demo"
    network: str = "unet"
    size: tuple[int, int] | None = None
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    rows: int | None = None
    calls: int = 3

    @property
    def command(self) -> str:
        """The command that profiles the same."""
        words = ["sdengine", "profile", self.bundle, "--network", self.network]
        size = "x".join(map(str, self.size)) if self.size else None
        for option, value in (
            ("size", size),
            ("backend", self.backend),
            ("precision", self.precision),
            ("threads", self.threads),
            ("rows", self.rows),
            ("calls", self.calls),
        ):
            words += [] if value is None else [f"--{option}", str(value)]
        return shlex.join(words)

    def __post_init__(self) -> None:
        """Refuse what needs no bundle to be wrong."""
        if self.backend != "auto" and self.backend not in _LOADERS:
            raise ConfigError.for_field(
                "backend",
                self.backend,
                f"auto, {', '.join(_LOADERS)}",
                "Backends on a GPU are not profiled.",
            )
        if self.precision not in PRECISIONS:
            raise ConfigError.for_field("precision", self.precision, ", ".join(PRECISIONS))
        _check_count("calls", self.calls, _MOST_CALLS)
        if self.threads is not None:
            _check_count("threads", self.threads, MAX_THREADS)


def run(asked: Asked, progress: Callable[[str], None]) -> dict[str, Any]:
    """Profile a network and return the record.

    Args:
        asked: what.
        progress: told what is going on.

    Raises:
        ConfigError: the bundle has no such network, or takes no such rows or size, or is of a
            target that is not profiled.
        BundleError, BackendUnavailableError, OutOfMemoryError: as for loading a network.
    """
    bundle = open_bundle(asked.bundle)
    rows, (width, height) = _checked(asked, bundle)
    name = select_backend(asked.backend, bundle.manifest.target).name
    session = get_backend(name).open(
        bundle, SessionOptions(precision=asked.precision, threads=asked.threads)
    )
    try:
        session.budget.check(width, height)
        length = bundle.manifest.architecture.text_encoders[0].chunk_length
        sizes = {"batch": rows, "height": height, "width": width, "sequence": length}
        shapes = resolve_shapes(asked.network, bundle.network(asked.network).inputs, sizes)
        progress(f"loading {asked.network}")
        timed = importlib.import_module(_LOADERS[name]).load(session, asked.network, shapes)
        try:
            figures = _timed(timed, asked, progress)
        finally:
            timed.close()
    finally:
        session.close()
    described = {
        "bundle": bundle.manifest.name,
        "backend": name,
        "precision": session.precision,
        "network": asked.network,
        "size": [width, height],
        "rows": rows,
    }
    record = {"kind": "profile", "command": asked.command, **described, **figures}
    return stamped(record, *_DISTRIBUTIONS.get(name, ()), schema=SCHEMA)


def _timed(timed: Timed, asked: Asked, progress: Callable[[str], None]) -> Mapping[str, Any]:
    progress("measuring peaks")
    roofline = measure(asked.threads or usable_processors().threads)
    timed.run()
    load, wholes, calls = OtherLoad(), [], []
    for number in range(asked.calls):
        progress(f"call {number + 1} of {asked.calls}")
        whole, seconds = timed.run()
        wholes.append(1e3 * whole)
        calls.append(seconds)
    medians = [statistics.median(values) for values in zip(*calls, strict=True)]
    return {
        "total_ms": asdict(Spread.of(wholes)),
        "others_percent": load.percent(),
        "steps": steps_of(timed.operations, medians, roofline),
        "roofline": roofline,
    }


def _checked(asked: Asked, bundle: Bundle) -> tuple[int, tuple[int, int]]:
    """Return rows, and width and height."""
    manifest = bundle.manifest
    if manifest.target not in _LOADERS:
        raise ConfigError.for_field(
            "bundle",
            asked.bundle,
            f"one of target {', '.join(_LOADERS)}, not {manifest.target}",
            "Backends on a GPU are not profiled.",
        )
    if asked.network not in manifest.networks:
        raise ConfigError.for_field("network", asked.network, ", ".join(sorted(manifest.networks)))
    size = asked.size or manifest.resolutions[0]
    check_size(*size, manifest)
    rows = asked.rows
    if rows is None:
        rows = 1 if asked.network.startswith(("vae", "tiny")) else 2
    _check_count("rows", rows, 2 * manifest.max_batch)
    return rows, size


def _check_count(field: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigError.for_field(field, value, f"an integer from 1 to {most}")
