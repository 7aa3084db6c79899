"""Engines of TensorRT-RTX, built for GPUs that need not be there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from support.one_node import network_of
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.building.memory_estimate import built_memory, estimate_memory
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt.engine import RTX, compile_engine
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.errors import BackendUnavailableError, EngineBuildError

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("shallow-sdxl", tmp_path_factory.mktemp("checkpoints") / "sdxl")


def test_builds_ahead_for_named_gpus(checkpoint: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    report = sdengine.build(
        checkpoint,
        tmp_path / "bundle",
        target="tensorrt-rtx",
        gpus=["rtx4090", "sm86"],
        resolutions=(64,),
        workspace_bytes=1 << 30,
        progress=lambda stage, done, total: stages.append(stage),
    )
    bundle = open_bundle(report.path, verify="hash")
    manifest = bundle.manifest
    assert (manifest.target, manifest.precision) == ("tensorrt-rtx", "fp16")
    assert manifest.compute_capabilities == [86, 89]
    assert manifest.versions["tensorrt-rtx-cu13"] == tensorrt_rtx.__version__
    precisions = {name: entry.options.precision for name, entry in manifest.networks.items()}
    # SDXL's published autoencoder leaves the range of fp16.
    assert precisions == {
        "text_encoder": "fp16",
        "text_encoder_2": "fp16",
        "unet": "fp16",
        "vae_decoder": "bf16",
        "vae_encoder": "bf16",
    }
    assert {tensor.dtype for tensor in manifest.networks["vae_decoder"].inputs} == {"bfloat16"}
    for name, entry in manifest.networks.items():
        assert entry.files == [f"{name}.engine"]
        engine = bundle.path(entry.files[0]).read_bytes()
        runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
        assert len(engine) > runtime.engine_header_size
    assert 0 < report.peak_bytes < 8e9
    assert all(0 < error < 5e-3 for error in report.max_error.values())
    assert "compile unet" in stages
    assert any(stage.startswith("compile unet: ") for stage in stages)
    planned = estimate_memory(
        sdengine.load_checkpoint(checkpoint),
        precision="fp16",
        resolutions=[*manifest.resolutions],
        built=built_memory(manifest),
    )
    for name, entry in manifest.networks.items():
        assert entry.options.kernels == "native"
        assert entry.options.kernels_reason == "TensorRT-RTX has no plugins"
        # From the builder's log.
        if name.startswith("text_encoder"):  # one layer of theirs is handed over
            assert [tensor.name for tensor in entry.outputs] == ["states", "pooled"]
            assert entry.inputs[-1].name == "layer"
        scratch = entry.options.scratch_bytes
        assert entry.options.rows == ([1] if name.startswith("vae") else [1, 2])
        assert scratch.keys() == {"64x64"}
        assert entry.options.scratch_from == "builder" and min(scratch.values()) > 0
        if name in planned.weight_bytes:
            assert planned.weight_bytes[name] == entry.options.weight_bytes
            assert [size.scratch_bytes[name] for size in planned.sizes] == [*scratch.values()]
    assert manifest.networks["unet"].options.weight_bytes == pytest.approx(
        estimate_memory(sdengine.load_checkpoint(checkpoint), resolutions=[64]).weight_bytes[
            "unet"
        ],
        rel=0.1,
    )
    assert report.replaced["text_encoder"] == {"causal_attention": 2}
    assert report.replaced["unet"]["attention"] > 0
    assert report.replaced["unet"].keys() == {"attention", "group_norm", "group_norm_silu"}
    with pytest.raises(BackendUnavailableError, match="tensorrt-rtx is not available"):
        sdengine.load(report.path)


def test_each_size_and_number_of_rows_is_a_profile(tmp_path: Path) -> None:
    network = network_of(tmp_path, "Sigmoid")
    spec = TensorSpec("x", ("batch", "width/16"), "float16")
    network = replace(network, name="unet", inputs=(spec,))
    options = TensorRtOptions(gpus=("sm89",))
    sizes = CompileSpec("fp16", ((64, 64), (128, 64)), batch=3, tensorrt=options)
    assert network.onnx_path is not None
    model = onnx.load(network.onnx_path)
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[1].dim_param = "width"
    onnx.save(model, network.onnx_path)
    told = compile_engine(network, tmp_path, sizes, RTX).options
    assert told.rows == [1, 2, 4, 6] and told.scratch_bytes.keys() == {"64x64", "128x64"}
    assert (tmp_path / "unet.engine").stat().st_size > 0


def test_phases_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = TensorRtOptions(gpus=("sm89",))
    spec = CompileSpec(
        "fp16", ((64, 64),), progress=lambda *what: told.append(what), tensorrt=options
    )
    compiled = compile_engine(network_of(tmp_path, "Sigmoid"), tmp_path, spec, RTX)
    assert compiled.files == ["vae_decoder.engine"]
    assert compiled.peak_bytes > 0
    assert told and all(name.startswith("vae_decoder: ") for name, _, _ in told)
    assert all(0 < step <= steps for _, step, steps in told)


def test_what_the_parser_refuses_is_named(tmp_path: Path) -> None:
    spec = CompileSpec("fp16", ((64, 64),), tensorrt=TensorRtOptions(gpus=("sm89",)))
    with pytest.raises(EngineBuildError, match=r"vae_decoder: .*parser refuses.*the_node"):
        compile_engine(network_of(tmp_path, "NoSuchOperator"), tmp_path, spec, RTX)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["vae_decoder.onnx"]'
