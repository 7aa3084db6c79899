from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from sdengine.backends import BACKENDS, get_backend, select_backend
from sdengine.bundle.manifest import TensorEntry
from sdengine.bundle.tensors import resolve_shapes
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError


def test_auto_takes_the_bundles_target_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdengine.backends"):
        assert select_backend("auto", "openvino").name == "openvino"
    assert "openvino" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "", "OpenVINO", None, 3])
def test_unknown_backend(name: str) -> None:
    with pytest.raises(ConfigError, match=", ".join(["auto", *BACKENDS])):
        select_backend(name, "openvino")


def test_named_backend_never_falls_back() -> None:
    with pytest.raises(BackendUnavailableError, match="built for torch"):
        select_backend("openvino", "torch")


def test_unavailable_backend_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_class = type(get_backend("openvino"))
    monkeypatch.setattr(backend_class, "available", lambda self: (False, "the processor is off."))
    for name in ("auto", "openvino"):
        with pytest.raises(BackendUnavailableError, match="the processor is off"):
            select_backend(name, "openvino")


def test_bundle_of_an_unknown_target() -> None:
    with pytest.raises(BackendUnavailableError, match="quantum"):
        select_backend("auto", "quantum")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import MappingProxyType

    absent = replace(BACKENDS["torch"], code="sdengine.backends.absent:Backend")
    backends = MappingProxyType({**BACKENDS, "torch": absent})
    monkeypatch.setattr("sdengine.backends.registry.BACKENDS", backends)
    with pytest.raises(BackendUnavailableError, match=r"sdengine\[build\]"):
        select_backend("torch", "torch")


def test_symbolic_shapes_are_rounded_up() -> None:
    entry = TensorEntry(name="x", shape=["batch", 4, "height/8", "width/16"], dtype="float32")
    sizes = {"batch": 2, "height": 64, "width": 72}
    assert resolve_shapes("unet", [entry], sizes) == {"x": (2, 4, 8, 5)}
    with pytest.raises(BundleError, match="'batch' is unknown"):
        resolve_shapes("unet", [entry], {"height": 1})


@pytest.mark.parametrize("name", ["torch-cuda", "triton"])
def test_a_gpus_torch_backends_say_what_is_lacking(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reason = "built without CUDA" if torch.version.cuda is None else "finds no NVIDIA GPU"
    with pytest.raises(BackendUnavailableError, match=f"backend {name} is not available.*{reason}"):
        select_backend(name, "torch")


@pytest.mark.parametrize("name", ["torch-cuda", "triton"])
def test_a_gpus_torch_backends_run_bundles_of_target_torch(name: str) -> None:
    with pytest.raises(BackendUnavailableError, match=r"built for native\..*--target torch\b"):
        select_backend(name, "native")
    assert get_backend(name).name == name
    with pytest.raises(BackendUnavailableError, match=f"'{name}', which this release has no"):
        select_backend("auto", name)


def test_an_interpreting_triton_is_no_gpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("sdengine.kernels.launching.interprets", lambda: True)
    assert get_backend("torch-cuda").available() == (True, f"torch {torch.__version__}, a GPU")
    usable, reason = get_backend("triton").available()
    assert not usable
    assert "TRITON_INTERPRET" in reason
    monkeypatch.setattr("sdengine.kernels.launching.interprets", lambda: False)
    usable, found = get_backend("triton").available()
    assert usable
    assert found.startswith("triton ")
