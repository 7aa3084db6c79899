"""Profile of the native backend: a clock around each operation inside runs of the network."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sdengine.backends.base import Session
from sdengine.backends.native.backend import NativeModule
from sdengine.backends.native.report import OperationReport, report_prepared
from sdengine.benchmarks.native_networks import make_inputs
from sdengine.benchmarks.suite.machine_roofline import VALUES
from sdengine.benchmarks.suite.profiles.operations import (
    TIME_LEVEL,
    Operation,
    Timed,
    first_level,
    level_of,
)
from sdengine.errors import OutOfMemoryError

_NAMES = {kind: name for name, kind in VALUES.items()}


def load(session: Session, network: str, shapes: Mapping[str, tuple[int, ...]]) -> Timed:
    """Load a network of a session of the native backend; residuals of controls are left out.

    Raises:
        OutOfMemoryError: its maps are computed in bands, because memory does not suffice for all.
    """
    module = session.load(network, shapes)
    if not isinstance(module, NativeModule):
        module.close()
        raise OutOfMemoryError(
            f"{network}: memory does not suffice for whole maps, and bands of them cannot be "
            "profiled. Take a smaller --size."
        )
    given = make_inputs(module)
    inputs = {n: x for n, x in given.items() if n not in module.zero_unless_given()}
    reports, _ = report_prepared(module.prepared)

    def run() -> tuple[float, list[float]]:
        started = time.perf_counter()
        seconds = module.run_timed(inputs)
        return time.perf_counter() - started, seconds

    return Timed(_operations(network, reports), run, module.close)


def _operations(network: str, reports: list[OperationReport]) -> list[Operation]:
    found, level = [], first_level(network)
    for one in reports:
        level = TIME_LEVEL if one.kind == "sinusoid" else level_of(one.name, level)
        found.append(
            Operation(
                name=one.name,
                kind=one.kind,
                level=level,
                flops=one.flops,
                products=one.products,
                values=_NAMES.get(one.values, "") if one.flops else "",
                bytes_read=one.map_bytes - one.written_bytes + one.weight_bytes,
                bytes_written=one.written_bytes,
            )
        )
    return found
