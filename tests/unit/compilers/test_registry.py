"""Which compiler writes a target's files."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from sdengine.building.options import TARGETS
from sdengine.compilers import COMPILERS, get_compiler
from sdengine.errors import BackendUnavailableError, ConfigError


def test_every_target_has_a_compiler() -> None:
    assert set(COMPILERS) == set(TARGETS)
    for target in ("native", "torch", "tensorrt-rtx", "tensorrt"):
        assert get_compiler(target).__name__.startswith("compile_")


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target: 'quantum' .* expected native, openvino"):
        get_compiler("quantum")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = MappingProxyType({"native": "sdengine.compilers.absent:compile_absent"})
    monkeypatch.setattr("sdengine.compilers.registry.COMPILERS", absent)
    with pytest.raises(BackendUnavailableError, match=r"target native: .*sdengine\[build\]"):
        get_compiler("native")
