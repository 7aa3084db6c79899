"""Engines in eight bits: built for GPUs that need not be there, and what their graphs compute."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from support.quantised_network import calibration, write_network
from support.tiny_checkpoints import make_tiny
from tolerances import LEAST_PSNR, TOLERANCES

import sdengine
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.quantisation import CALIBRATION, PROMPTS, RunModule, pictures_with
from sdengine.building.memory_estimate import built_memory, estimate_memory
from sdengine.bundle.quantisation import Quantisation
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.cli.inspect import _lines as inspected
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt.engine import RTX, compile_engine
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.compilers.tensorrt.quantisation.calibration import calibrate
from sdengine.compilers.tensorrt.quantisation.error import opened, quantised_error
from sdengine.compilers.tensorrt.quantisation.formats import FORMATS
from sdengine.compilers.tensorrt.quantisation.layers import LayerScales
from sdengine.errors import EngineBuildError
from sdengine.export.cache import open_cache
from sdengine.export.exporter import Exporter
from sdengine.export.network import ExportedNetwork

pytestmark = pytest.mark.filterwarnings("ignore")
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def check_record(told: Quantisation, kind: str) -> None:
    assert told.format == kind
    assert 0 < told.error < TOLERANCES["quantised network", kind][1]
    assert min(told.error_by_evaluation) == "1" and len(told.error_by_evaluation) == 4
    assert told.evaluations >= told.steps
    kept = {name for names in told.kept.values() for name in names}
    assert not kept & told.layers.keys()
    # First and last layer, the time embedding, and what reads the text.
    assert {"conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight"} <= kept
    for name in (*kept, *told.layers):
        if ".attn2.to_k." in name or ".attn2.to_v." in name or ".time_emb_proj." in name:
            assert name in kept
    assert any(".attn1.to_k." in name for name in told.layers)
    assert any(".conv1." in name for name in told.layers)
    assert len(told.layers) > 2 * len(kept)


@needs_rtx
@pytest.mark.parametrize("kind", FORMATS)
def test_the_builder_takes_a_format_for_the_gpus_that_have_it(kind: str, tmp_path: Path) -> None:
    path, _ = write_network(tmp_path)
    inputs = (TensorSpec("x", (1, 16, 4, 4), "float16"),)
    network = ExportedNetwork("unet", path, inputs, (), None, None)
    factors = np.full(32, 0.5, np.float32)
    layers = {"conv.weight": LayerScales(0.1), "a.weight": LayerScales(0.1, factors)}
    calibrated = calibration(FORMATS[kind], layers)

    def build(capabilities: list[int]) -> int:
        gpus = tuple(f"sm{cc}" for cc in capabilities)
        options = TensorRtOptions(gpus=gpus, calibration=calibrated)
        compiled = compile_engine(
            network, tmp_path, CompileSpec("fp16", ((64, 64),), tensorrt=options), RTX
        )
        return compiled.options.weight_bytes or 0

    having = [cc for cc in RTX.capabilities if cc in FORMATS[kind].capabilities]
    assert build(having) > 0
    lacking = [cc for cc in RTX.capabilities if cc not in having]
    if lacking:
        with pytest.raises(EngineBuildError, match="fp8"):
            build(lacking[-1:])
    assert sorted(file.name for file in tmp_path.glob("*.onnx*")) == ["unet.onnx", "unet.onnx.data"]


@needs_rtx
def test_an_engine_says_how_it_was_calibrated(tmp_path: Path) -> None:
    precision, gpus = "fp8", ["rtx4090"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\na dog\n")
    stages: list[str] = []
    checkpoint = make_tiny("shallow", tmp_path / "shallow", dtype=torch.float16)
    report = sdengine.build(
        checkpoint,
        tmp_path / "bundle",
        target="tensorrt-rtx",
        resolutions=(128,),  # at 64 the builder finds no way to run an operation
        precision=precision,
        gpus=gpus,
        calibration=prompts,
        measure_layers=True,
        progress=lambda stage, done, total: stages.append(stage),
    )
    manifest = open_bundle(report.path, verify="hash").manifest
    assert manifest.precision == precision
    precisions = {name: entry.options.precision for name, entry in manifest.networks.items()}
    assert set(precisions.values()) == {"fp16"}
    unet = manifest.networks["unet"].options
    assert unet.quantisation is not None
    check_record(unet.quantisation, precision)
    assert (unet.quantisation.prompts, unet.quantisation.size) == (2, "128x128")
    others = [e.options.quantisation for n, e in manifest.networks.items() if n != "unet"]
    assert others == [None] * len(others)
    assert {layer.precision for layer in report.layers["unet"]} == {precision}
    assert [*report.layers] == ["unet"]
    assert "calibrate unet" in stages and any(s.startswith("calibrate unet 1/") for s in stages)
    shown = "\n".join(inspected(manifest))
    assert f"{precision} {len(unet.quantisation.layers)} of " in shown
    assert f"of 2 prompts (SHA-256 {unet.quantisation.prompts_sha256[:16]}...)" in shown
    assert "in 16 bits, makes the output: 1 (conv_out.weight)" in shown
    planned = estimate_memory(
        sdengine.load_checkpoint(checkpoint), resolutions=[128], built=built_memory(manifest)
    )
    assert planned.weight_bytes["unet"] == unet.weight_bytes
    # Eight bits are what the engine keeps.
    fp16_bytes = (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert unet.weight_bytes is not None and unet.weight_bytes < 0.75 * fp16_bytes


def test_pictures_of_the_demo_model_are_near_those_in_fp32(tmp_path: Path) -> None:
    bundle, prompts, steps = open_bundle("demo"), PROMPTS[:1], 8
    truth = pictures_with(bundle, lambda unet: unet, prompts, steps)
    with open_cache(True, beside=tmp_path) as cache:
        exported = Exporter(sdengine.load_checkpoint("demo"), cache).export("unet", "fp16")
        for kind, number_format in FORMATS.items():
            calibrated = calibrate(bundle, number_format, CALIBRATION)
            error = quantised_error(exported, calibrated)
            check_record(Quantisation(**calibrated.to_record(error)), kind)
            with opened(exported, calibrated) as run:
                found = pictures_with(bundle, functools.partial(RunModule, run), prompts, steps)
            distance = psnr(found[0], truth[0])
            assert LEAST_PSNR["demo", kind] < distance < 60, (kind, distance)
            assert np.std(found[0]) > 10
