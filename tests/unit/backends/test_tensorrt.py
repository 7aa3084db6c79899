"""The TensorRT backends without a GPU: shapes, conversions, rows, what goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.native_server import region

from sdengine import _native
from sdengine.backends import get_backend
from sdengine.backends.shared_arena import SharedArena, as_stored
from sdengine.backends.tensorrt.arena import row_counts, rows_of
from sdengine.backends.tensorrt.backend import TensorRtBackend, TensorRtRtxBackend
from sdengine.backends.tensorrt.engine import GpuContext, GpuEngine
from sdengine.backends.tensorrt.module import Binding, GpuModule, from_engine
from sdengine.bundle.manifest import NetworkEntry, TensorEntry
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers import get_compiler
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt import engine as tensorrt_engine
from sdengine.compilers.tensorrt.engine import FULL, RTX, compile_engine, make_profiles
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    DeviceError,
    EngineBuildError,
    OutOfMemoryError,
)
from sdengine.export.network import ExportedNetwork

UNET = ExportedNetwork(
    "unet",
    None,
    (
        TensorSpec("sample", ("batch", 4, "height/8", "width/8"), "float16"),
        TensorSpec("encoder_hidden_states", ("batch", "sequence", 768), "float16"),
    ),
    (TensorSpec("noise_pred", ("batch", 4, "height/8", "width/8"), "float16"),),
    None,
    None,
)
SPEC = CompileSpec(
    "fp16", ((512, 512), (768, 512)), batch=2, tensorrt=TensorRtOptions(gpus=("sm89",))
)


def test_each_size_and_number_of_rows_has_a_profile_of_fixed_shapes() -> None:
    assert make_profiles(UNET, SPEC) == [
        {
            "sample": ([rows, 4, height, width],) * 3,
            "encoder_hidden_states": ([rows, 77, 768], [rows, 77, 768], [rows, 308, 768]),
        }
        for height, width in ((64, 64), (64, 96))
        for rows in (1, 2, 4)
    ]


def test_networks_without_a_size_have_a_profile_for_each_number_of_rows() -> None:
    inputs = (TensorSpec("inputs_embeds", ("batch", 77, 768), "float16"),)
    encoder = ExportedNetwork("text_encoder", None, inputs, (), None, None)
    assert make_profiles(encoder, SPEC) == [
        {"inputs_embeds": ([rows, 77, 768],) * 3} for rows in (1, 2)
    ]
    assert [rows_of(name, 3) for name in ("unet", "text_encoder_2", "vae_decoder")] == [6, 2, 1]
    assert [row_counts("unet", batch) for batch in (1, 3, 4)] == [
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]
    assert row_counts("vae_decoder", 4) == [1]


@pytest.mark.parametrize("gpus", [(), ("h100",), ("nothing",)])
def test_gpus_that_nothing_can_be_built_for(tmp_path: Path, gpus: tuple[str, ...]) -> None:
    if not gpus and _native.cuda_available()[0]:
        pytest.skip("this machine has a GPU to build for")
    spec = CompileSpec("fp16", ((512, 512),), tensorrt=TensorRtOptions(gpus=gpus))
    network = ExportedNetwork("unet", tmp_path / "unet.onnx", UNET.inputs, (), None, None)
    with pytest.raises(ConfigError, match=r"gpu: .*sm89 \(l4, .*rtx4090"):
        compile_engine(network, tmp_path, spec, RTX)
    if gpus:
        with pytest.raises(ConfigError, match="builds for the GPU of the machine"):
            compile_engine(network, tmp_path, spec, FULL)
    assert not list(tmp_path.iterdir())


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> ExportedNetwork:
    """Put a program in the worker's place."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(path))
    graph = tmp_path / "unet.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), graph)
    return ExportedNetwork("unet", graph, UNET.inputs, (), None, None)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("echo '{\"error\": \"no\", \"log\": [\"a\"]}'; exit 1", EngineBuildError, "no.\n    a"),
        ("echo oops >&2; exit 3", EngineBuildError, "ended with status 3.\n    oops"),
        ("kill -KILL $$", OutOfMemoryError, "killed"),
        ("cat > /dev/null; echo nonsense", EngineBuildError, "ended with status 0"),
    ],
)  # fmt: skip
def test_what_a_worker_may_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[Exception],
    message: str,
) -> None:
    network = script(tmp_path, monkeypatch, code)
    with pytest.raises(error) as caught:
        compile_engine(network, tmp_path, SPEC, RTX)
    assert str(caught.value).startswith("unet: ") and message in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["python", "unet.onnx"]


def test_an_interruption_ends_the_worker_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = '{"phase": "Building", "step": 0, "steps": 6}'
    code = f"echo $$ > {tmp_path}/pid; touch {tmp_path}/unet.engine; echo '{told}'; exec sleep 600"
    network = script(tmp_path, monkeypatch, code)

    def interrupt(phase: str, step: int, steps: int) -> None:
        assert (phase, step, steps) == ("unet: Building", 1, 6)
        raise KeyboardInterrupt

    spec = CompileSpec(
        "fp16", ((512, 512),), tensorrt=TensorRtOptions(gpus=("sm89",)), progress=interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        compile_engine(network, tmp_path, spec, RTX)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
    assert sorted(os.listdir(tmp_path)) == ["pid", "python", "unet.onnx"]


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdengine").mkdir()
    (tmp_path / "sdengine/__init__.py").write_text("open('was-run', 'w')\n")
    (tmp_path / "json.py").write_text("open('was-run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    graph = tmp_path / "unet.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), graph)
    network = ExportedNetwork("unet", graph, UNET.inputs, (), None, None)
    with pytest.raises(EngineBuildError):
        compile_engine(network, tmp_path, SPEC, RTX)
    assert not (tmp_path / "was-run").exists()


def test_too_little_memory_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "free_bytes", lambda: 5 * 10**8 - 1)
    network = script(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(OutOfMemoryError, match=r"takes about 0\.5 GB of memory, and 0\.5 GB are"):
        compile_engine(network, tmp_path, SPEC, RTX)


def test_without_the_package_a_build_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sdengine.compilers.registry.find_spec", lambda name: None)
    for name in ("tensorrt-rtx", "tensorrt"):
        with pytest.raises(BackendUnavailableError, match=rf"sdengine\[{name}\]"):
            get_compiler(name)(UNET, tmp_path, SPEC)
        assert not get_backend(name).available()[0]


def test_conversions_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4096) * 10.0 ** rng.integers(-30, 30, 4096)).astype(np.float32)
    values = np.concatenate([values, np.array([0.0, -0.0, np.inf, -np.inf, 1.00390625, 3e38])])
    values = values.astype(np.float32)
    bits = as_stored(values, np.dtype(np.uint16))
    expected = torch.from_numpy(values).bfloat16()
    assert np.array_equal(bits, expected.view(torch.uint16).numpy())
    assert np.array_equal(from_engine(bits), expected.float().numpy())
    assert np.isnan(from_engine(as_stored(np.array([np.nan], np.float32), np.dtype(np.uint16))))
    half = as_stored(values[:10], np.dtype(np.float16))
    assert half.dtype == np.float16 and from_engine(half).dtype == np.float32
    tokens = np.array([5], np.int64)
    assert as_stored(tokens, tokens.dtype) is tokens


class Context(GpuContext):
    """Computes 2x + t on the regions, in fp16."""

    def __init__(self, pool: _native.MemoryPool, device: _native.CpuDevice) -> None:
        self.name = "net"
        self.runs = 0
        self.device = device
        self.pool = pool
        self.x = region(pool, "net.x", (2, 3), "float16")
        self.t = region(pool, "net.t", (2,))
        self.y = region(pool, "net.y", (2, 3), "float16")

    def enqueue(self, stream: int) -> None:
        self.device.enqueue(stream, self.compute)

    def has_run(self) -> None:
        assert self.runs

    def compute(self) -> None:
        self.runs += 1
        self.y[:] = 2 * self.x + self.t[:, None].astype(np.float16)


def make(total: int) -> tuple[GpuModule, Context]:
    """Make a module of any number of rows on an engine of two."""
    device = _native.CpuDevice()
    regions = [("net.x", 12, 0, 0), ("net.t", 8, 0, 0), ("net.y", 12, 0, 0)]
    arena = SharedArena(device, {"set": regions}, 0)
    context = Context(arena.pool, device)
    dtypes = {"x": "float16", "t": "float32", "y": "float16"}
    inputs = (TensorSpec("x", (total, 3), "float32"), TensorSpec("t", (total,), "float32"))
    outputs = (TensorSpec("y", (total, 3), "float32"),)
    return GpuModule(context, arena, Binding("set", 2, inputs, outputs, dtypes)), context


@pytest.mark.parametrize(("total", "runs"), [(1, 1), (2, 1), (3, 2), (6, 3)])
def test_any_number_of_rows_runs_in_pieces(total: int, runs: int) -> None:
    module, context = make(total)
    x = np.arange(3 * total, dtype=np.float32).reshape(total, 3)
    t = np.arange(total, dtype=np.float32)
    found = module.run({"x": x, "t": t})["y"]
    assert found.dtype == np.float32
    assert np.array_equal(found, 2 * x + t[:, None])
    assert context.runs == runs
    module.close()
    module.close()
    with pytest.raises(DeviceError, match="was closed"):
        module.run({"x": x, "t": t})


def engine_of(tmp_path: Path, name: str, trt: SimpleNamespace, inputs: list[Any]) -> GpuEngine:
    path = tmp_path / f"{name}.engine"
    path.write_bytes(b"engine")
    entry = NetworkEntry(files=[path.name], inputs=inputs, outputs=inputs[:1])
    return GpuEngine(trt, name, path, entry)


def test_profiles_are_found_by_size_with_the_fewest_rows_that_do(tmp_path: Path) -> None:
    def profile_shape(name: str, index: int) -> list[tuple[int, ...]]:
        side, rows = ((64, 2), (96, 4), (96, 1), (96, 2))[index]
        if name == "sample":
            return [(rows, 4, side, side)] * 3
        return [(rows, 77, 768), (rows, 77, 768), (rows, 308, 768)]

    found = SimpleNamespace(num_optimization_profiles=4, get_tensor_profile_shape=profile_shape)
    engine = engine_of(
        tmp_path,
        "unet",
        stand_in(found),
        [
            TensorEntry(name="sample", shape=["batch", 4, "height/8", "width/8"], dtype="float16"),
            TensorEntry(name="states", shape=["batch", "sequence", 768], dtype="float16"),
        ],
    )
    for rows, profile in ((1, 2), (2, 3), (3, 1), (4, 1), (9, 1)):
        shapes = {"sample": (rows, 4, 96, 96), "states": (rows, 154, 768)}
        assert engine.profile_of(shapes) == profile
        assert engine.profiles_of(shapes) == [1, 2, 3]
    # Bundles of earlier releases have one profile a size.
    assert engine.profile_of({"sample": (1, 4, 64, 64), "states": (1, 77, 768)}) == 0
    assert engine.largest_sizes(1) == {"batch": 4, "height": 768, "width": 768, "sequence": 308}
    for shapes in (
        {"sample": (2, 4, 64, 96), "states": (2, 77, 768)},
        {"sample": (2, 4, 64, 64), "states": (2, 385, 768)},
    ):
        with pytest.raises(BundleError, match="has no profile"):
            engine.profile_of(shapes)


def stand_in(engine: object) -> SimpleNamespace:
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: engine)
    return SimpleNamespace(
        __name__="tensorrt",
        __version__="0",
        Logger=type("Logger", (), {"ERROR": 2, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set_optimization_profile_async": False}, "refuses its profile 0"),
        ({"set_input_shape": False}, r"refuses x \[2, 3\]"),
        ({"set_tensor_address": False}, "has no tensor 'x'"),
        ({"update_device_memory_size_for_shapes": 257}, "computes in 257 bytes .* 256 were"),
    ],
)
def test_what_a_context_may_refuse(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = {
        "set_optimization_profile_async": True,
        "set_input_shape": True,
        "set_tensor_address": True,
        "update_device_memory_size_for_shapes": 256,
        "set_device_memory": None,
        "execute_async_v3": False,
    }
    given: list[tuple[str, tuple[Any, ...]]] = []

    def method(name: str, value: object) -> Callable[..., object]:
        def call(*arguments: Any) -> object:
            given.append((name, arguments))
            return value

        return call

    def context(values: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(**{name: method(name, value) for name, value in values.items()})

    made: list[object] = []
    engine = SimpleNamespace(create_execution_context=lambda strategy: made.append(strategy))
    opened = engine_of(
        tmp_path,
        "net",
        stand_in(engine),
        [TensorEntry(name="x", shape=[2, 3], dtype="float32")],
    )
    regions = [("net.x", 24, 0, 0), ("net.scratch", 256, 0, 0)]
    arena = SharedArena(_native.CpuDevice(), {"set": regions}, 0)
    with pytest.raises(OutOfMemoryError, match="no memory for an execution context"):
        opened.context(arena, "set", 0, {"x": (2, 3)})
    assert made == ["user"]
    engine.create_execution_context = lambda strategy: context(values)
    found = opened.context(arena, "set", 0, {"x": (2, 3)})
    at = arena.pool.address("set", "net.x"), arena.pool.address("set", "net.scratch")
    assert ("set_tensor_address", ("x", at[0])) in given
    assert given[-1] == ("set_device_memory", (at[1], 256))
    with pytest.raises(DeviceError, match="net: the engine did not run"):
        found.enqueue(arena.queue.stream)
    assert found.why_not_capturable(0) == ""  # full TensorRT does not say
    engine.create_execution_context = lambda strategy: context(values | change)
    with pytest.raises(DeviceError, match=message):
        opened.context(arena, "set", 0, {"x": (2, 3)})


def test_precision_is_that_of_the_engine() -> None:
    for backend in (TensorRtBackend(), TensorRtRtxBackend()):
        assert [backend.resolve(p, "fp16") for p in ("auto", "fp16")] == ["fp16", "fp16"]
        with pytest.raises(ConfigError, match="auto or fp16, which the engines were built in"):
            backend.resolve("bf16", "fp16")


def test_an_engine_without_weights_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "unet.engine"
    path.touch()
    port = {"name": "x", "shape": [1], "dtype": "float16"}
    entry = NetworkEntry.model_validate(
        {"files": [path.name], "inputs": [port], "outputs": [port], "options": {"stripped": True}}
    )
    with pytest.raises(BundleError, match=r"unet: .* without its weights \(--strip\)"):
        GpuEngine(None, "unet", path, entry)
