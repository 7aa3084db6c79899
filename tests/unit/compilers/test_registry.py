"""Which compiler writes a target's files."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

import sdengine
from sdengine.backends import BACKENDS
from sdengine.compilers import COMPILERS, get_compiler
from sdengine.compilers.registry import CompilerInfo
from sdengine.errors import BackendUnavailableError, ConfigError


@pytest.mark.parametrize("target", sorted(COMPILERS))
def test_every_target_has_a_compiler(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdengine.compilers.registry.find_spec", lambda name: name)
    assert get_compiler(target).__name__.startswith("compile_")


def test_every_target_has_a_backend_and_every_backend_a_target() -> None:
    assert {info.target or name for name, info in BACKENDS.items()} == set(COMPILERS)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target: 'quantum' .* expected native, openvino"):
        get_compiler("quantum")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = MappingProxyType({"native": CompilerInfo("sdengine.compilers.absent:compile_absent")})
    monkeypatch.setattr("sdengine.compilers.registry.COMPILERS", absent)
    with pytest.raises(BackendUnavailableError, match=r"target native: .*sdengine\[build\]"):
        get_compiler("native")


def test_a_compilers_package_is_asked_for_before_a_build_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sdengine.compilers.registry.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"openvino, which is.*sdengine\[openvino\]"):
        sdengine.build("nowhere", tmp_path / "b", target="openvino")
