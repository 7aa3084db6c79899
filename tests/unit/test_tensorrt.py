"""The TensorRT backends without a GPU: shapes, conversions, rows, what goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt import HostBuffer

from sdengine import _native
from sdengine.backends import get_backend
from sdengine.backends.base import CompileSpec, TensorSpec
from sdengine.backends.tensorrt import (
    TensorRtBackend,
    TensorRtModule,
    TensorRtRtxBackend,
    _find_profile,
    from_engine,
    to_engine,
)
from sdengine.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    DeviceError,
    EngineBuildError,
    OutOfMemoryError,
)
from sdengine.export import tensorrt_engine
from sdengine.export.export import ExportedNetwork
from sdengine.export.tensorrt_engine import FULL, RTX, compile_engine, make_profiles, rows_of

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
SPEC = CompileSpec("fp16", ((512, 512), (768, 512)), batch=2, gpus=("sm89",))


def test_each_size_has_a_profile_of_fixed_shapes() -> None:
    assert make_profiles(UNET, SPEC) == [
        {
            "sample": ([4, 4, height, width],) * 3,
            "encoder_hidden_states": ([4, 77, 768], [4, 77, 768], [4, 308, 768]),
        }
        for height, width in ((64, 64), (64, 96))
    ]


def test_networks_without_a_size_have_one_profile() -> None:
    inputs = (TensorSpec("inputs_embeds", ("batch", 77, 768), "float16"),)
    encoder = ExportedNetwork("text_encoder", None, inputs, (), None, None)
    assert make_profiles(encoder, SPEC) == [{"inputs_embeds": ([2, 77, 768],) * 3}]
    assert [rows_of(name, 3) for name in ("unet", "text_encoder_2", "vae_decoder")] == [6, 2, 1]


@pytest.mark.parametrize("gpus", [(), ("h100",), ("nothing",)])
def test_gpus_that_nothing_can_be_built_for(tmp_path: Path, gpus: tuple[str, ...]) -> None:
    if not gpus and _native.cuda_available()[0]:
        pytest.skip("this machine has a GPU to build for")
    spec = CompileSpec("fp16", ((512, 512),), gpus=gpus)
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

    spec = CompileSpec("fp16", ((512, 512),), gpus=("sm89",), progress=interrupt)
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
    for name in ("tensorrt-rtx", "tensorrt"):
        with pytest.raises(BackendUnavailableError, match=rf"sdengine\[{name}\]"):
            get_backend(name).compile(UNET, tmp_path, SPEC)
        assert not get_backend(name).available()[0]


def test_conversions_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4096) * 10.0 ** rng.integers(-30, 30, 4096)).astype(np.float32)
    values = np.concatenate([values, np.array([0.0, -0.0, np.inf, -np.inf, 1.00390625, 3e38])])
    values = values.astype(np.float32)
    bits = to_engine(values, np.dtype(np.uint16))
    expected = torch.from_numpy(values).bfloat16()
    assert np.array_equal(bits, expected.view(torch.uint16).numpy())
    assert np.array_equal(from_engine(bits), expected.float().numpy())
    assert np.isnan(from_engine(to_engine(np.array([np.nan], np.float32), np.dtype(np.uint16))))
    half = to_engine(values[:10], np.dtype(np.float16))
    assert half.dtype == np.float16 and from_engine(half).dtype == np.float32
    tokens = np.array([5], np.int64)
    assert to_engine(tokens, tokens.dtype) is tokens


class Context:
    """Computes 2x + t on what the addresses hold, in fp16."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.runs = 0
        self.refused = ""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return name != self.refused

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        x = np.frombuffer(HostBuffer.live[self.addresses["x"]].content, np.float16)
        t = np.frombuffer(HostBuffer.live[self.addresses["t"]].content, np.float32)
        y = 2 * x.reshape(len(t), -1) + t[:, None].astype(np.float16)
        HostBuffer.live[self.addresses["y"]].upload(y.astype(np.float16))
        return True


@pytest.fixture
def host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "CudaBuffer", HostBuffer)
    monkeypatch.setattr(_native, "cuda_synchronize", lambda: None)


Make = Callable[[int, Context], TensorRtModule]


@pytest.fixture
def make(host_memory: None) -> Make:
    dtypes = {"x": "float16", "t": "float32", "y": "float16"}

    def module(total: int, context: Context) -> TensorRtModule:
        inputs = (TensorSpec("x", (total, 3), "float32"), TensorSpec("t", (total,), "float32"))
        outputs = (TensorSpec("y", (total, 3), "float32"),)
        return TensorRtModule("unet", context, 2, inputs, outputs, dtypes)

    return module


@pytest.mark.parametrize(("total", "runs"), [(1, 1), (2, 1), (3, 2), (6, 3)])
def test_any_number_of_rows_runs_in_pieces(make: Make, total: int, runs: int) -> None:
    context = Context()
    module = make(total, context)
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


def test_an_engine_that_refuses_a_shape(make: Make) -> None:
    context = Context()
    context.refused = "t"
    with pytest.raises(DeviceError, match=r"refuses t \[2\]"):
        make(2, context)


def test_profiles_are_found_by_size_whatever_the_rows() -> None:
    def profile_shape(name: str, index: int) -> list[tuple[int, ...]]:
        side = (64, 96)[index]
        if name == "sample":
            return [(2, 4, side, side)] * 3
        return [(2, 77, 768), (2, 77, 768), (2, 308, 768)]

    engine = SimpleNamespace(num_optimization_profiles=2, get_tensor_profile_shape=profile_shape)
    for rows in (1, 5):
        shapes = {"sample": (rows, 4, 96, 96), "encoder_hidden_states": (rows, 154, 768)}
        assert _find_profile(engine, "unet", shapes) == (2, 1)
    for shapes in (
        {"sample": (2, 4, 64, 96), "encoder_hidden_states": (2, 77, 768)},
        {"sample": (2, 4, 64, 64), "encoder_hidden_states": (2, 385, 768)},
    ):
        with pytest.raises(BundleError, match="has no profile"):
            _find_profile(engine, "unet", shapes)


def test_precision_is_that_of_the_engine() -> None:
    for backend in (TensorRtBackend(), TensorRtRtxBackend()):
        assert [backend.resolve(p, "fp16") for p in ("auto", "fp16")] == ["fp16", "fp16"]
        with pytest.raises(ConfigError, match="auto or fp16, which the engines were built in"):
            backend.resolve("bf16", "fp16")
