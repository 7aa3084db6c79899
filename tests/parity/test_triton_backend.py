"""The torch backends for a GPU, on the CPU: kernels interpreted, graphs on a stand-in."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cuda_graphs import FakeCuda
from support.interpreted import DTYPES
from support.tiny_checkpoints import make_tiny
from tolerances import assert_close

from sdengine import _native
from sdengine.backends.base import Array, Module, Session, SessionOptions
from sdengine.backends.torch.cuda import TorchCudaBackend, TorchCudaSession
from sdengine.backends.torch.eager import TorchBackend, TorchSession
from sdengine.backends.torch.triton import TritonBackend, TritonSession
from sdengine.building.build import build
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.engine import Engine
from sdengine.errors import (
    BackendUnavailableError,
    ConfigError,
    DeviceError,
    OutOfMemoryError,
)

assert DTYPES  # importing `interpreted` skips this module where triton cannot interpret
SIZE = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("triton")
    checkpoint = make_tiny("shallow", folder / "checkpoint")
    report = build(checkpoint, folder / "bundle", target="torch", resolutions=(SIZE, 2 * SIZE))
    return open_bundle(report.path)


def load(session: Session, bundle: Bundle, network: str, size: int = SIZE) -> Module:
    sizes = {"batch": 1, "height": size, "width": size, "sequence": 77}
    shapes = resolve_shapes(network, bundle.network(network).inputs, sizes)
    return session.load(network, shapes)


def inputs_of(module: Module, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for spec in module.inputs:
        shape = [int(side) for side in spec.shape]
        if spec.dtype == "int64":
            inputs[spec.name] = rng.integers(1, 76, shape)
        else:
            scale = 500 if spec.name == "timestep" else 1
            inputs[spec.name] = np.abs(scale * rng.standard_normal(shape)).astype(np.float32)
    return inputs


def copied(outputs: Any) -> dict[str, Array]:
    return {name: array.copy() for name, array in outputs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_encoder"])
def test_networks_replay_what_torch_computes(bundle: Bundle, network: str) -> None:
    cuda = FakeCuda()
    expected, ours = (
        load(backend.open(bundle, SessionOptions("fp32")), bundle, network)
        for backend in (TorchBackend(), TritonBackend("cpu", cuda))
    )
    assert (ours.inputs, ours.outputs) == (expected.inputs, expected.outputs)
    for seed in range(2):
        inputs = inputs_of(expected, seed)
        wanted = copied(expected.run(inputs))
        for name, array in ours.run(inputs).items():
            assert_close("triton network", "float32", array, wanted[name])
    assert cuda.log.count("capture thread_local") == 1
    assert cuda.log.count("replay") == 2
    ours.close()
    ours.close()
    assert cuda.log[-2:] == ["reset", "empty_cache"]
    with pytest.raises(DeviceError, match="was closed"):
        ours.run(inputs)


@pytest.mark.slow
def test_a_whole_request_makes_the_same_picture(bundle: Bundle) -> None:
    request: dict[str, Any] = {"steps": 1, "seed": 5, "guidance_scale": 4.0}
    request |= {"width": SIZE, "height": SIZE}
    cuda = FakeCuda()
    with Engine(bundle, TorchBackend(), SessionOptions("fp32")) as engine:
        (expected,) = engine.generate("a red circle", **request).arrays
    with Engine(bundle, TritonBackend("cpu", cuda), SessionOptions("fp32")) as engine:
        (found,) = engine.generate("a red circle", **request).arrays
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert cuda.log.count("pool") == 1  # which the stand-in overwrites after each replay
    # Text encoder, U-Net and decoder; the U-Net runs at each step.
    assert cuda.log.count("capture thread_local") == cuda.log.count("reset") == 3
    assert cuda.log.count("replay") == 1 + 1 + 1
    assert isinstance(engine.session, TritonSession)
    report = engine.session.report()
    assert set(report) == {"text_encoder", "unet", "vae_decoder"}
    assert any(choice.replaced for choice in report["unet"])
    assert any("head dimension" in choice.reason for choice in report["unet"])


@pytest.mark.parametrize("backend", [TorchBackend(), TorchCudaBackend("cpu")])
def test_weights_are_held_once_for_all_sizes_and_freed_with_the_last(
    bundle: Bundle, backend: TorchBackend | TorchCudaBackend
) -> None:
    session = backend.open(bundle, SessionOptions("fp32"))
    assert isinstance(session, TorchSession)
    small, large = (load(session, bundle, "unet", size) for size in (SIZE, 2 * SIZE))
    assert len(session._modules) == 1
    assert small.outputs[0].shape != large.outputs[0].shape
    small.close()
    large.close()
    gc.collect()
    assert len(session._modules) == 0


def test_sessions_of_one_backend_share_neither_weights_nor_graphs(bundle: Bundle) -> None:
    cuda = FakeCuda()
    backend = TritonBackend("cpu", cuda)
    first, second = (backend.open(bundle, SessionOptions("fp32")) for _ in range(2))
    modules = [load(session, bundle, "text_encoder") for session in (first, second)]
    inputs = inputs_of(modules[0], 0)
    wanted = copied(modules[0].run(inputs))
    assert isinstance(first, TritonSession) and isinstance(second, TritonSession)
    assert set(first.report()) == {"text_encoder"} and any(first.report().values())
    assert not any(second.report().values())
    assert first._modules["text_encoder", ""] is not second._modules["text_encoder", ""]
    modules[0].close()
    for name, array in modules[1].run(inputs).items():
        assert_close("triton network", "float32", array, wanted[name])
    assert cuda.log.count("pool") == 2
    modules[1].close()


def test_precisions() -> None:
    backend = TorchCudaBackend("cpu")
    assert [backend.resolve("auto", stored) for stored in ("fp16", "bf16", "fp32")] == [
        "fp16",
        "bf16",
        "fp32",
    ]
    assert backend.resolve("fp32", "fp16") == "fp32"
    with pytest.raises(ConfigError, match="precision: 'int8'"):
        backend.resolve("int8")


def test_an_autoencoder_that_overflows_fp16_is_computed_in_bf16(tmp_path: Path) -> None:
    checkpoint = make_tiny("shallow-sdxl", tmp_path / "checkpoint")
    bundle = open_bundle(build(checkpoint, tmp_path / "b", target="torch", resolutions=(64,)).path)
    assert bundle.manifest.architecture.vae.compute_fp32

    def dtype_of(network: str, precision: str) -> torch.dtype:
        session = TorchCudaBackend("cpu").open(bundle, SessionOptions(precision))
        assert isinstance(session, TorchCudaSession)
        return session.dtype_of(network)

    assert dtype_of("vae_decoder", "auto") is torch.bfloat16
    assert dtype_of("unet", "auto") is torch.float16
    assert dtype_of("vae_decoder", "fp32") is torch.float32


def test_memory_that_runs_out_on_the_device_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(
        TorchCudaBackend("cpu").open(bundle, SessionOptions("fp32")),
        bundle,
        "vae_decoder",
    )

    def exhausted(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(module, "_compute", exhausted)
    with pytest.raises(OutOfMemoryError, match="vae_decoder: memory ran out"):
        module.run(inputs_of(module, 0))


class TwoGpus(FakeCuda):
    """The second one computes in bf16, the first does not."""

    def device_count(self) -> int:
        return 2

    def get_device_name(self, device: int | str) -> str:
        return f"GPU {str(device)[-1]}"

    def get_device_capability(self, device: str) -> tuple[int, int]:
        return (8, 9) if device == "cuda:1" else (7, 5)


@pytest.mark.parametrize("kind", [TorchCudaBackend, TritonBackend])
def test_a_gpu_is_chosen_by_its_number(
    bundle: Bundle, kind: type[TorchCudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = TwoGpus()
    opened: list[int] = []
    device = _native.CpuDevice()

    def native(number: int) -> _native.Device:
        opened.append(number)
        return device

    for name in ("device_count", "get_device_name", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpus, name))
    backend = kind()
    if isinstance(backend, TritonBackend):
        backend = TritonBackend("cuda", gpus, native)
    session = backend.open(bundle, SessionOptions("bf16", device=1))
    assert isinstance(session, TorchCudaSession)
    assert (session.device, session.precision) == ("cuda:1", "bf16")
    if isinstance(session, TritonSession):
        assert session._native_device() is device
        assert opened == [1]
        assert session._choices is not None
        assert session._choices._kept._key.gpu == "GPU 1"
    with pytest.raises(BackendUnavailableError, match="does not compute in bf16"):
        backend.open(bundle, SessionOptions("bf16", device=0))
    with pytest.raises(ConfigError, match=r"device: 2 is not accepted; expected 0 \(GPU 0\), 1"):
        backend.open(bundle, SessionOptions("bf16", device=2))
