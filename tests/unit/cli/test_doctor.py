"""What `sdengine doctor` says with and without each optional part."""

from __future__ import annotations

import builtins
import ctypes
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from sdengine import _native
from sdengine.cli import checks
from sdengine.cli.main import main
from sdengine.errors import BundleError

PACKAGES = {
    "openvino": "sdengine[openvino]",
    "torch": "sdengine[build]",
    "onnx": "sdengine[build]",
    "onnxruntime": "sdengine[build]",
    "tensorrt_rtx": "sdengine[tensorrt-rtx]",
    "tensorrt": "sdengine[tensorrt]",
    "triton": "sdengine[kernels]",
}


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any], str]:
    """Return the status, the checks by name, and what people read."""
    status = main(["doctor", "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] == (status == 0)
    assert main(["doctor", *options]) == status
    return status, {c["name"]: c for c in found["checks"]}, capsys.readouterr().out


def present(name: str) -> ModuleSpec:
    """Stand for any package that is installed."""
    return ModuleSpec(name, None)


@pytest.mark.parametrize("lacking", PACKAGES)
def test_each_package_that_is_missing_says_what_that_costs(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda n: None if n == lacking else present(n))
    status, found, shown = doctor(capsys)
    assert status == 0  # none is required
    for name in PACKAGES:
        assert found[name]["present"] == (name != lacking)
    assert found[lacking]["found"] == "not installed" and found[lacking]["cost"]
    assert PACKAGES[lacking] in found[lacking]["remedy"]
    assert shown.count("without it: " + found[lacking]["cost"]) == 1
    assert "ready: the demo can run" in shown


def test_everything_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "find_spec", present)
    monkeypatch.setattr(_native, "cuda_available", lambda: (True, "NVIDIA L4, 23.0 GB"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver())
    status, found, shown = doctor(capsys)
    assert status == 0 and "missing" not in shown and "without it" not in shown
    assert found["native CUDA"]["found"] == "NVIDIA L4, 23.0 GB"
    assert found["nvidia driver"]["found"] == "CUDA 13.0"


class _Driver:
    @staticmethod
    def cuDriverGetVersion(version: Any) -> int:
        version._obj.value = 13000
        return 0


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(_native, "cuda_available", lambda: (False, "no CUDA device is there"))
    status, found, _ = doctor(capsys)
    assert status == 0
    assert not found["nvidia driver"]["present"] and not found["native CUDA"]["present"]
    assert found["native CUDA"]["found"] == "no CUDA device is there"


@pytest.mark.parametrize(
    ("cuda", "reason", "remedy"),
    [
        ("13.0", "no driver", "driver"),
        ("", "no driver", "SDENGINE_CUDA=ON"),
        (
            "13.0",
            "NVIDIA V100, compute capability 7.0: this build has no kernels for it, only for 7.5 "
            "and later ones",
            "CMAKE_CUDA_ARCHITECTURES",
        ),
    ],
)
def test_what_the_extension_lacks(
    cuda: str,
    reason: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(_native, "cuda_available", lambda: (False, reason))
    info = {"compiler": "GCC", "instruction_sets": ["portable"], "cuda": cuda}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    _, found, _ = doctor(capsys)
    assert remedy in found["native CUDA"]["remedy"]


def test_the_cpu_kernels_that_run_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SDENGINE_ISA", raising=False)
    fastest, *_ = _native.instruction_sets()
    _, found, _ = doctor(capsys)
    built = ", ".join(_native.build_info()["instruction_sets"])
    assert found["CPU kernels"]["found"] == f"{fastest} run here; built for {built}"
    monkeypatch.setenv("SDENGINE_ISA", "portable")
    _, found, _ = doctor(capsys)
    assert found["CPU kernels"]["found"].startswith("portable run here")
    monkeypatch.setenv("SDENGINE_ISA", "mmx")
    status, found, _ = doctor(capsys)
    assert status == 0 and not found["CPU kernels"]["present"]
    assert "SDENGINE_ISA: 'mmx'" in found["CPU kernels"]["found"]


@pytest.mark.parametrize("value", ["/proc/sdengine", ""])
def test_a_cache_that_cannot_be_written_is_told(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SDENGINE_CACHE_LIMIT", raising=False)
    _, found, _ = doctor(capsys)
    assert found["cache"]["present"] and "at most 20.0 GiB" in found["cache"]["found"]
    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("SDENGINE_CACHE", value)
    status, found, shown = doctor(capsys)
    assert status == 0 and not found["cache"]["present"]
    assert "SDENGINE_CACHE" in found["cache"]["remedy"] and "packed at every load" in shown
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "plenty")
    assert "'plenty'" in doctor(capsys)[1]["cache"]["found"]


def test_required_parts_make_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BundleError("demo: unet.safetensors is altered.")

    monkeypatch.setattr("sdengine.bundle.reader.open_bundle", broken)
    status, found, shown = doctor(capsys)
    assert status == 1 and "not ready" in shown
    assert found["demo bundle"]["found"] == "demo: unet.safetensors is altered."

    real_import = builtins.__import__

    def without_extension(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "sdengine" and arguments[2] and "_native" in arguments[2]:
            raise ImportError("_native cannot be loaded")
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_extension)
    check = checks._native_extension()
    assert not check.present and check.required and check.found == "_native cannot be loaded"
    assert not checks._native_cuda().present and not checks._cpu_kernels().present
