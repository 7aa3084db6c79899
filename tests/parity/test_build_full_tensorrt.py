"""Builds for full TensorRT on a stand-in for its builder: kernels chosen, timings kept."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import full_tensorrt

import sdengine
from sdengine import _native
from sdengine.backends import nvidia_driver
from sdengine.bundle.reader import open_bundle
from sdengine.cli.main import main
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt import builder as tensorrt_builder
from sdengine.compilers.tensorrt import plugin_nodes
from sdengine.compilers.tensorrt.engine import FULL, compile_engine
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter
from sdengine.export.fusion import fuse
from sdengine.export.network import ExportedNetwork

# Our attention is faster, our normalisation is not.
TIMES = {
    "native": {"attention": 2.0, "group_norm": 1.0},
    "triton": {"attention": 1.0, "group_norm": 0.99},
}
SIZES = ((64, 64), (128, 64))

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def unet() -> Iterator[ExportedNetwork]:
    source = sdengine.load_checkpoint("demo")
    with contextlib.ExitStack() as held:
        yield Exporter(source, OnnxCache(held=held), controlnet=False).export("unet", "fp16")


def spec_of(**options: Any) -> CompileSpec:
    common = {name: options.pop(name) for name in ("progress", "cancel") if name in options}
    return CompileSpec("fp16", SIZES, **common, tensorrt=TensorRtOptions(**options))


def supported_in(network: ExportedNetwork) -> list[str]:
    """Return the operators of the nodes that there are plugins for; heads of 32 have none."""
    assert network.onnx_path is not None
    fused, report = fuse(onnx.load(network.onnx_path, load_external_data=False))
    names = plugin_nodes.supported_nodes(fused, report, 89)
    found = [node.op_type for node in fused.graph.node if node.name in names]
    assert 0 < found.count("attention") < report.replaced["attention"]
    return found


def operators(path: Path) -> list[tuple[str, bool]]:
    """Return each operator of an engine, and whether it is a plugin."""
    return [(name, plugin) for name, plugin in json.loads(path.read_bytes())["operators"]]


def test_auto_keeps_the_faster_kernel_of_each_node(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES)
    told: list[tuple[str, int, int]] = []
    spec = spec_of(progress=lambda *what: told.append(what))
    compiled = compile_engine(unet, tmp_path, spec, FULL)
    found = operators(tmp_path / "unet.engine")
    plugins = {name for name, plugin in found if plugin}
    assert plugins == {"attention"}
    supported = supported_in(unet)
    assert sum(plugin for _, plugin in found) == supported.count("attention")
    assert any(name == "GroupNormalization" for name, _ in found)
    assert compiled.options.kernels == "auto"
    # Triton's assembler for 8.9 writes less than the driver would read.
    assert compiled.options.ptx_version == "8.8"
    choices = compiled.options.kernel_choices
    counted = sum(len(choice.nodes) for choice in choices)
    assert counted == len(supported)
    for choice in choices:
        kind = "attention" if choice.op == "attention" else "group_norm"
        assert choice.chosen == ("triton" if kind == "attention" else "native")
        assert choice.ms == {
            kernels: dict.fromkeys(("64x64", "128x64"), times[kind])
            for kernels, times in TIMES.items()
        }
        assert choice.shapes.keys() == {"64x64", "128x64"}
    attentions = [choice for choice in choices if choice.op == "attention"]
    rows, tokens, heads, head_dim = attentions[0].shapes["64x64"][0]
    assert rows == 2 and heads > 0 and head_dim > 0
    assert attentions[0].shapes["128x64"][0] == [rows, 2 * tokens, heads, head_dim]
    # Fewer decisions than nodes: equal ones are measured once.
    assert len(choices) < counted
    phases = {"unet: timing kernels", "unet: Building", "unet: timing engines"}
    assert {phase for phase, _, _ in told} == phases
    assert compiled.options.kernels_chosen == "mixed"
    # Profiles have 1 and 2 rows for each size; engines are timed at those with most.
    assert compiled.options.kernel_engines == {
        "native": {"64x64": 6.0, "128x64": 12.0},
        "triton": {"64x64": 5.0, "128x64": 10.0},
        "mixed": {"64x64": 4.0, "128x64": 8.0},
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["unet.engine"]


@pytest.mark.parametrize(
    ("engine_ms", "chosen"),
    [
        # Nodes that win alone lose in the network, or would win where they lose alone.
        ({"native": 1.0, "mixed": 1.2, "triton": 1.4}, "native"),
        ({"native": 1.0, "mixed": 0.9, "triton": 0.8}, "triton"),
        ({"native": 1.0, "mixed": 0.995, "triton": 1.0}, "native"),
    ],
)
def test_the_fastest_engine_is_kept_whatever_nodes_do_alone(
    unet: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine_ms: dict[str, float],
    chosen: str,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES, engine_ms=engine_ms)
    options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    assert options.kernels_chosen == chosen
    plugins = {name for name, plugin in operators(tmp_path / "unet.engine") if plugin}
    assert len(plugins) == {"native": 0, "triton": 3}[chosen]
    # What is said of the nodes is what is in the engine.
    assert {choice.chosen for choice in options.kernel_choices} == {chosen}
    assert (options.ptx_version is None) == (chosen == "native")


def test_an_engine_that_does_not_run_is_said_and_not_taken(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES, lost=["mixed"])
    options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    assert options.kernels_chosen == "triton"
    assert options.kernel_problems == {"mixed": "the engine cannot be loaded"}
    assert options.kernel_engines.keys() == {"native", "triton"}


def test_engines_that_cannot_be_timed_leave_the_native_one(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ["native", "mixed", "triton"]
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES, lost=lost)
    options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    assert options.kernels_chosen == "native"
    assert options.kernel_problems.keys() == set(lost)
    assert not any(plugin for _, plugin in operators(tmp_path / "unet.engine"))


def test_kernels_by_name_measure_nothing(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    for kernels, share in (("native", 0), ("triton", 1)):
        compiled = compile_engine(unet, tmp_path, spec_of(kernels=kernels), FULL)
        assert compiled.options.kernels == kernels
        assert compiled.options.kernel_choices == []
        assert compiled.options.ptx_version == ("8.8" if share else None)
        plugins = sum(plugin for _, plugin in operators(tmp_path / "unet.engine"))
        assert plugins == share * len(supported_in(unet))


@pytest.mark.parametrize(
    ("driver", "cc", "version"),
    [(12040, "8.9", "8.4"), (13040, "9.0", "9.0"), (13000, "12.0", "9.0"), (None, "9.0", "9.0")],
)
def test_plugins_are_written_in_ptx_that_the_driver_reads(
    driver: int | None,
    cc: str,
    version: str,
    unet: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(nvidia_driver, "cuda_version", lambda: driver)
    described = {"name": full_tensorrt.GPU, "compute_capability": cc, "num_multiprocessors": 1}
    monkeypatch.setattr(_native, "cuda_device_info", lambda device=0: described)
    options = compile_engine(unet, tmp_path, spec_of(kernels="triton"), FULL).options
    assert options.ptx_version == version


def test_plugins_that_do_not_build_leave_native_kernels(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES, fails=["triton"])
    options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    for choice in options.kernel_choices:
        assert choice.chosen == "native"
        assert "triton is what this one cannot do" in choice.problems["triton"]
        assert set(choice.ms["triton"].values()) == {None}
    assert options.kernels_chosen == "native"
    assert "triton is what this one cannot do" in options.kernel_problems["triton"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["unet.engine"]


def test_timing_that_fails_as_a_whole_leaves_native_kernels(
    unet: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")

    def crash(*_: object) -> dict[Any, Any]:
        raise EngineBuildError("unet: tensorrt cannot build the engine: it ended.\n    log")

    monkeypatch.setattr(plugin_nodes, "_measure", crash)
    with caplog.at_level(logging.WARNING):
        options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    assert options.kernels == "native"
    assert options.kernels_reason is not None
    assert options.kernels_reason.endswith("it ended.")
    assert "kernels were not timed" in caplog.text


@pytest.mark.parametrize(("lacking", "told"), [("triton", "triton"), ("fp16", "precision")])
def test_auto_says_why_it_means_native(
    unet: ExportedNetwork,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    told: str,
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    if lacking == "triton":
        monkeypatch.setattr(plugin_nodes, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(plugin_nodes, "dtype_of", lambda model: None)
    options = compile_engine(unet, tmp_path, spec_of(), FULL).options
    assert options.kernels == "native" and told in (options.kernels_reason or "")
    assert not any(plugin for _, plugin in operators(tmp_path / "unet.engine"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_named(
    unet: ExportedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache")
    (tmp_path / "unet.engine").symlink_to("/dev/full")
    with pytest.raises(EngineBuildError, match=r"unet\.engine: No space left on device\."):
        compile_engine(unet, tmp_path, spec_of(kernels="native"), FULL)
    assert not (tmp_path / "unet.engine").is_symlink()


def test_a_whole_bundle_says_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_tensorrt.install(monkeypatch, tmp_path / "cache", ms=TIMES)
    place = tmp_path / "bundle"
    arguments = ["build", "demo", "-o", str(place), "--target", "tensorrt"]
    assert main([*arguments, "--resolutions", "64,128"]) == 0
    manifest = open_bundle(place, verify="hash").manifest
    assert manifest.versions["tensorrt"] == "11.4.0"
    options = manifest.networks["unet"].options
    assert options.kernels == "auto" and options.kernel_choices
    assert options.rows == [1, 2, 4, 8]
    # Of the profiles with most rows: the stand-in counts 1000 bytes a profile.
    assert options.scratch_bytes == {"64x64": 4000, "128x128": 8000}
    assert (options.scratch_from, options.weight_bytes) == ("builder", 77)
    encoder = manifest.networks["text_encoder"].options
    assert encoder.scratch_bytes == {"64x64": 2000, "128x128": 2000}
    capsys.readouterr()
    assert main(["inspect", str(place)]) == 0
    shown = capsys.readouterr().out
    assert "plugins in PTX 8.8, which the driver must read" in shown
    assert "kernels auto" in shown and "native 2.0000 ms, triton 1.0000 ms" in shown
    assert "triton: " in shown and "scratch 64x64 0.0 MB, 128x128 0.0 MB by the builder" in shown
    assert main(["plan", str(place), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["weight_bytes"] == dict.fromkeys(("text_encoder", "unet", "vae_decoder"), 77)
    small, large = planned["sizes"]
    assert small["scratch_bytes"] == {"text_encoder": 2000, "unet": 4000, "vae_decoder": 1000}
    assert large["scratch_bytes"]["unet"] == 8000 and small["told"] == [*planned["weight_bytes"]]
    assert main(["plan", str(place), "--json", "--batch", "2"]) == 0
    other = json.loads(capsys.readouterr().out)["sizes"][0]
    assert other["told"] == [] and other["scratch_bytes"]["unet"] > 1000
    assert main(["cache", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["timings"]) == 1


def test_kernels_of_other_targets(tmp_path: Path) -> None:
    for target, kernels in (("openvino", "triton"), ("tensorrt-rtx", "triton"), ("native", "x")):
        gpus = ["sm89"] if target == "tensorrt-rtx" else []
        with pytest.raises(ConfigError, match="auto or native, or triton for target tensorrt"):
            sdengine.build("demo", tmp_path / "b", target=target, kernels=kernels, gpus=gpus)


def test_the_log_tells_memory_by_profile() -> None:
    log = tensorrt_builder.BuilderLog()
    for message in (
        "Constructing optimization profile number 0 [1/2].",
        "Total Activation Memory: 100 bytes",
        "Total Activation Memory: 300 bytes",
        "Constructing optimization profile number 1 [2/2].",
        "Total Activation Memory: 200 bytes",
        "Total Weights Memory: 7 bytes",
    ):
        log.add("verbose", message, False)
    log.add("warning", "Total Activation Memory: 999 bytes", True)
    assert log.activation_bytes(2) == [300, 200]
    assert log.activation_bytes(3) is None
    assert log.weights_bytes == 7
    assert list(log.problems) == ["warning: Total Activation Memory: 999 bytes"]
