"""Timings that full TensorRT's builder keeps for later builds, on a stand-in for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import full_tensorrt
from support.one_node import network_of

import sdengine
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt.engine import FULL, RTX, compile_engine
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.export.network import ExportedNetwork

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def network(tmp_path: Path) -> ExportedNetwork:
    return network_of(tmp_path, "Sigmoid")


def spec_of(**options: Any) -> CompileSpec:
    return CompileSpec("fp16", ((64, 64),), tensorrt=TensorRtOptions(kernels="native", **options))


def cache_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tensorrt").glob("*"))


def test_timings_are_kept_for_later_builds(
    network: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    kept = "timing-11.4.0-nvidia-geforce-rtx-4090-sm89.cache"
    spec = spec_of()
    for builds in (1, 2):
        compile_engine(network, tmp_path, spec, FULL)
        assert cache_files(tmp_path / "cache") == [kept]
        content = (tmp_path / "cache/tensorrt" / kept).read_bytes()
        assert content.endswith(b"\n" + b"+" * builds)
    assert not caplog.records
    # A given file is another one.
    mine = tmp_path / "mine.cache"
    compile_engine(network, tmp_path, spec_of(timing_cache=mine), FULL)
    assert mine.read_bytes().endswith(b"\n+")


@pytest.mark.parametrize(
    ("damage", "told", "after"),
    [
        (lambda data: data[:-1], "it is damaged", b"\n+"),
        (lambda data: data.replace(b"RTX 4090", b"RTX 4080"), "it holds for", b"\n+"),
        (lambda data: b"a picture", "left alone", b"a picture"),
    ],
)
def test_timings_that_do_not_fit_are_not_used_and_the_log_says_why(
    network: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    told: str,
    after: bytes,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    mine = tmp_path / "mine.cache"
    spec = spec_of(timing_cache=mine)
    for _ in range(2):
        compile_engine(network, tmp_path, spec, FULL)
    mine.write_bytes(damage(mine.read_bytes()))
    compile_engine(network, tmp_path, spec, FULL)
    assert told in caplog.text and str(mine) in caplog.text
    assert mine.read_bytes().endswith(after)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".mine")]


def test_timings_that_tensorrt_refuses_are_replaced(
    network: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine = tmp_path / "mine.cache"
    spec = spec_of(timing_cache=mine)
    full_tensorrt.install(monkeypatch, tmp_path / "cache", refuses_cache=True)
    for _ in range(2):
        compile_engine(network, tmp_path, spec, FULL)
    assert "TensorRT refuses what it holds" in caplog.text
    assert mine.read_bytes().endswith(b"\n+")


def test_a_place_that_cannot_be_written_ends_no_build(
    network: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    (tmp_path / "file").touch()
    spec = spec_of(timing_cache=tmp_path / "file/mine.cache")
    compile_engine(network, tmp_path, spec, FULL)
    assert "mine.cache" in caplog.text


def test_rtx_has_no_timing_cache(
    network: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[dict[str, Any]] = []

    def remember(job: dict[str, Any], *_: object) -> dict[str, Any]:
        jobs.append(job)
        raise EngineBuildError("enough")

    monkeypatch.setattr("sdengine.compilers.tensorrt.engine.run_job", remember)
    with pytest.raises(EngineBuildError, match="enough"):
        compile_engine(network, tmp_path, spec_of(gpus=("sm89",)), RTX)
    assert [job["timing_cache"] for job in jobs] == [None]
    with pytest.raises(ConfigError, match=r"timing_cache: only target tensorrt has one"):
        sdengine.build(
            "demo", tmp_path / "b", target="tensorrt-rtx", gpus=["sm89"], timing_cache="mine"
        )
