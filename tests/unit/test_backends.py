from __future__ import annotations

import logging

import pytest

from sdengine.backends import BACKENDS, get_backend, select_backend
from sdengine.backends.base import resolve_shapes
from sdengine.bundle.manifest import TensorEntry
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError


def test_auto_takes_the_bundles_target_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdengine.backends"):
        assert select_backend("auto", "openvino").name == "openvino"
    assert "openvino" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "", "OpenVINO", None, 3])
def test_unknown_backend(name: str) -> None:
    with pytest.raises(ConfigError, match="auto, native, openvino, torch"):
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

    absent = MappingProxyType({**BACKENDS, "torch": "sdengine.backends.absent:Backend"})
    monkeypatch.setattr("sdengine.backends.BACKENDS", absent)
    with pytest.raises(BackendUnavailableError, match=r"sdengine\[build\]"):
        select_backend("torch", "torch")


def test_symbolic_shapes_are_rounded_up() -> None:
    entry = TensorEntry(name="x", shape=["batch", 4, "height/8", "width/16"], dtype="float32")
    sizes = {"batch": 2, "height": 64, "width": 72}
    assert resolve_shapes("unet", [entry], sizes) == {"x": (2, 4, 8, 5)}
    with pytest.raises(BundleError, match="'batch' is unknown"):
        resolve_shapes("unet", [entry], {"height": 1})
