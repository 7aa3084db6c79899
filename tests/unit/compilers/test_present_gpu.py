"""TensorRT-RTX without a named GPU: the present one is named, or refused before building."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from sdengine import _native
from sdengine.backends.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend
from sdengine.building.options import BuildOptions
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt import engine
from sdengine.compilers.tensorrt.engine import RTX, compile_engine
from sdengine.compilers.tensorrt.process import run_job
from sdengine.errors import ConfigError
from sdengine.export.network import ExportedNetwork

SPEC = CompileSpec("fp16", ((64, 64),))
# A plan's header, past its magic number and versions: one bit a capability that it runs on.
_CAPABILITY_BITS = 32


def put_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: str) -> None:
    described = {"name": name, "compute_capability": capability}
    monkeypatch.setattr(_native, "cuda_available", lambda: (True, name))
    monkeypatch.setattr(_native, "cuda_device_info", lambda device=0: described)


def network_in(folder: Path) -> ExportedNetwork:
    """Write a graph of one node."""
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, ["batch", 4])
        for name in ("x", "y")
    ]
    node = onnx.helper.make_node("Sigmoid", ["x"], ["y"], name="node")
    graph = onnx.helper.make_graph([node], "graph", ports[:1], ports[1:])
    path = folder / "vae_decoder.onnx"
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), path)
    spec = TensorSpec("x", ("batch", 4), "float16")
    return ExportedNetwork("vae_decoder", path, (spec,), (), None, None)


@pytest.mark.parametrize(("capability", "named"), [("7.5", 75), ("8.9", 89), ("12.1", 121)])
def test_the_present_gpu_is_named_to_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, named: int
) -> None:
    jobs: list[dict[str, Any]] = []

    def record(job: dict[str, Any], *rest: Any) -> dict[str, Any]:
        jobs.append(job)
        return {"notes": [], "peak_bytes": 1, "activation_bytes": None, "weights_bytes": None}

    put_gpu(monkeypatch, "a GPU that is none", capability)
    monkeypatch.setattr(engine, "run_job", record)
    compile_engine(network_in(tmp_path), tmp_path, SPEC, RTX)
    assert [job["capabilities"] for job in jobs] == [[named]]
    # The manifest says so too.
    assert BuildOptions(target="tensorrt-rtx").capabilities == [named]


@pytest.mark.parametrize(("name", "capability"), [("NVIDIA H100", "9.0"), ("NVIDIA B200", "10.0")])
def test_a_present_gpu_that_rtx_does_not_support_is_refused_before_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: str
) -> None:
    put_gpu(monkeypatch, name, capability)
    monkeypatch.setattr(engine, "run_job", lambda *_: pytest.fail("a builder was started"))
    told = rf"gpu: {name}, .* {capability}, which target tensorrt-rtx does not .*rtx4090"
    with pytest.raises(ConfigError, match=told):
        compile_engine(network_in(tmp_path), tmp_path, SPEC, RTX)
    with pytest.raises(ConfigError, match=told):
        BuildOptions(target="tensorrt-rtx")
    # Ahead for another GPU it can build.
    assert BuildOptions(target="tensorrt-rtx", gpus=["sm89"]).capabilities == [89]


def test_a_backend_is_available_where_its_gpu_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        module = ModuleType(name)
        module.__dict__.update(__version__="0", __spec__=object())
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    put_gpu(monkeypatch, "NVIDIA H200", "9.0")
    usable, reason = TensorRtRtxBackend().available()
    assert not usable and "does not run on NVIDIA H200" in reason and "7.5, 8.0, 8.6" in reason
    assert TensorRtBackend().available()[0]
    put_gpu(monkeypatch, "NVIDIA T4", "7.5")
    assert TensorRtRtxBackend().available()[0]


def test_an_engine_runs_on_what_was_named_alone(tmp_path: Path) -> None:
    """Compare the headers of plans that the real builder wrote."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    network = network_in(tmp_path)

    def bits(capabilities: list[int]) -> int:
        output = tmp_path / "x.engine"
        job = {
            "task": "build",
            "module": "tensorrt_rtx",
            "onnx": str(network.onnx_path),
            "output": str(output),
            "profiles": [{"x": ([1, 4],) * 3}],
            "capabilities": capabilities,
            "workspace_bytes": None,
            "optimization_level": None,
            "timing_cache": None,
            "user_allocation": True,
        }
        run_job(job, "x")
        return output.read_bytes()[_CAPABILITY_BITS]

    turing, ada, untold = bits([75]), bits([89]), bits([])
    assert turing != ada and bits([75, 89]) == turing | ada
    assert untold & ada == ada  # which is why nothing was noticed on newer cards
    assert untold & turing == 0
