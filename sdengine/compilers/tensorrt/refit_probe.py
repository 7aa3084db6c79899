"""Find out whether this installation can build engines whose weights can be exchanged or left out.

Documents promise both where a driver is missing too, and builders have refused there; so a small
engine is built to see, and what the builder says is passed on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdengine import _native
from sdengine.compilers.tensorrt.engine import REFIT_FLAG, STRIP_FLAG, Flavour
from sdengine.compilers.tensorrt.process import run_job
from sdengine.errors import BackendUnavailableError, EngineBuildError, OutOfMemoryError

COMBINATIONS = ((REFIT_FLAG,), (STRIP_FLAG,), (REFIT_FLAG, STRIP_FLAG))
_WIDTH, _ROWS = 64, 8
# Where no GPU is present, one has to be named.
_STAND_IN_CAPABILITY = 89


@dataclass(frozen=True)
class Probe:
    """What building a small engine showed.

    Args:
        flags: of the builder.
        works: whether there was an engine.
        message: the builder's, where there was none.
        seconds: that it took.
    """

    flags: tuple[str, ...]
    works: bool
    message: str
    seconds: float


def probe_flags(
    flavour: Flavour, flags: Sequence[str], capabilities: Sequence[int] | None = None
) -> Probe:
    """Build an engine of two layers with builder flags.

    Args:
        flavour: which of the two products.
        flags: names of builder flags.
        capabilities: to build for, as the builder gets them; None is the GPU that is present, or
            any where there is none.
    """
    if find_spec(flavour.module) is None:
        return Probe(tuple(flags), False, f"{flavour.module} is not installed", 0.0)
    if capabilities is None:
        ahead = flavour.capabilities and not _native.cuda_available()[0]
        capabilities = [_STAND_IN_CAPABILITY] if ahead else []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sdengine-probe-") as folder:
        graph = Path(folder) / "probe.onnx"
        onnx.save(_two_layers(), graph)
        job = {
            "task": "build",
            "module": flavour.module,
            "onnx": str(graph),
            "output": str(Path(folder) / "probe.engine"),
            "profiles": [],
            "capabilities": list(capabilities),
            "flags": list(flags),
            "workspace_bytes": None,
            "optimization_level": None,
            "timing_cache": None,
            "user_allocation": True,
        }
        message = ""
        try:
            run_job(job, "probe")
        except (EngineBuildError, OutOfMemoryError) as error:
            message = str(error).splitlines()[-1].strip()[:400]
    return Probe(tuple(flags), not message, message, time.perf_counter() - started)


def require_flags(flavour: Flavour, flags: Sequence[str], capabilities: Sequence[int]) -> None:
    """Refuse builder flags that do not work here; nothing is built where none are given.

    Raises:
        BackendUnavailableError: they do not; the message has the builder's reason.
    """
    if not flags:
        return
    probe = probe_flags(flavour, flags, capabilities)
    if not probe.works:
        options = {REFIT_FLAG: "--refit", STRIP_FLAG: "--strip"}
        named = " ".join(options[flag] for flag in flags)
        raise BackendUnavailableError(
            f"{named}: a small engine for target {flavour.target} with {' and '.join(flags)} could "
            f"not be built on this machine: {probe.message}. Build without {named}, or where "
            "`sdengine doctor --probe-refit` says that it works."
        )


def _two_layers() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((_WIDTH, _WIDTH)).astype(np.float16), name)
        for name in ("first", "second")
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [_ROWS, _WIDTH])
        for name in ("x", "y")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "two layers", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
