"""Whole requests through the TensorRT backend, on a stand-in for its run time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.backends.tensorrt import session as tensorrt_session
from sdengine.backends.tensorrt.arena import max_chunks
from sdengine.backends.tensorrt.module import GpuModule
from sdengine.backends.tensorrt.unet import GpuUNet
from sdengine.bundle.manifest import NetworkOptions
from sdengine.bundle.reader import open_bundle
from sdengine.errors import ConfigError, DeviceError, NonFiniteError, UnsupportedShapeError

PROMPT = "a large red circle on a blue background"
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 7},
    "batch": {"seed": 7, "batch_size": 3},  # runs of two images and of one
    "unguided": {"guidance_scale": 1.0},  # one row
    "unguided batch": {"guidance_scale": 1.0, "batch_size": 2},
    "long": {"prompt": ", ".join([PROMPT] * 12), "seed": 2},  # chunks
    "wide": {"width": 192, "height": 128},
    "ancestral": {"sampler": "euler_a", "seed": 3, "batch_size": 2},
    "cuda noise": {"sampler": "euler_a", "seed": 3, "noise": "cuda"},
    "registers": {"sampler": "dpmpp_2m", "seed": 4},
    "edited": {"prompt": "a large [red:green:0.5] circle on a [blue|black] background"},
    "interval": {"guidance_interval": (0.3, 0.7)},  # one row, two, one again
    "interval of registers": {
        "guidance_interval": (0.0, 0.5),
        "sampler": "dpmpp_2m",
        "batch_size": 3,
        "prompt": "a large [red:green:0.4] circle",
    },
    "interval of noise": {"guidance_interval": (0.5, 1.0), "sampler": "dpmpp_2s_a", "seed": 3},
    "variation": {"variation_seed": 5, "variation_strength": 0.3},
    # Those that need each prediction on the host.
    "and": {"prompt": f"{PROMPT} AND a green star:0.5", "seed": 1},  # three rows in runs of four
    "rescaled": {"guidance_rescale": 0.7},
    "previewed": {"preview_every": 2},
    # A size that was not built, by the U-Net's tiles and by parts of the VAE's.
    "tiles": {"width": 256, "height": 128, "tiled_diffusion": True, "seamless": "x"},
}
ON_HOST = {"and", "rescaled", "previewed", "tiles"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "batch": 2}
        sdengine.build("demo", place, resolutions=(128, (192, 128)), **options)
        return place


@pytest.fixture(scope="module")
def cpu_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundles") / "demo"
    sdengine.build("demo", place, resolutions=(128, (192, 128)), target="openvino", batch=2)
    return place


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    return float(10 * np.log10(255**2 / (np.mean(difference**2) + 1e-12)))


def request(name: str) -> dict[str, Any]:
    return {"prompt": PROMPT, "steps": 6, "seed": 7, "sampler": "euler", **REQUESTS[name]}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_gpus_path_is_the_hosts(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = request(name)
    with sdengine.load(bundle) as engine:
        assert (engine.backend.name, engine.precision) == ("tensorrt-rtx", "fp16")
        ours = engine.generate(**given)
        (unet,) = fake_tensorrt.made("unet")
        on_host = unet.enqueued >= ours.timings.unet_calls
        assert on_host == (name in ON_HOST)
    monkeypatch.setattr(GpuUNet, "refuses", lambda self, kind: "for the comparison")
    monkeypatch.setattr(tensorrt_session, "GpuDecoder", GpuModule)
    with sdengine.load(bundle) as engine:
        theirs = engine.generate(**given)
    assert ours.timings.unet_calls == theirs.timings.unet_calls
    for one, other in zip(ours.arrays, theirs.arrays, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "name", ["plain", "batch", "and", "unguided", "long", "wide", "edited", "interval", "tiles"]
)
def test_pictures_are_those_of_the_cpu(bundle: Path, cpu_bundle: Path, name: str) -> None:
    given = request(name)
    with sdengine.load(bundle) as engine:
        ours = engine.generate(**given)
    with sdengine.load(cpu_bundle, precision="fp32") as engine:
        theirs = engine.generate(**given)
    for one, other in zip(ours.arrays, theirs.arrays, strict=True):
        assert psnr(one, other) >= 40


def test_a_guidance_interval_changes_the_picture_and_hands_over_watched_too(bundle: Path) -> None:
    given = request("interval")
    with sdengine.load(bundle) as engine:
        found = engine.generate(**given)
        seen = [np.array(step.latents) for step in engine.stream(given.pop("prompt"), **given)]
        plain = engine.generate(PROMPT, **{**given, "guidance_interval": (0, 1)})
        assert len(seen) == found.timings.unet_calls == 6
        assert not np.array_equal(found.arrays[0], plain.arrays[0])
        (unet,) = fake_tensorrt.made("unet")
        before = unet.enqueued
        engine.generate(PROMPT, **given)
        assert unet.enqueued == before  # both graphs are there: Python queues nothing more


def test_an_evaluation_without_numbers_is_named_where_one_hands_over(bundle: Path) -> None:
    given = request("interval")
    with sdengine.load(bundle) as engine:
        engine.generate(**given)
        (unet,) = fake_tensorrt.made("unet")
        unet.gives_nan_in_run = unet.runs + 2  # the last one of one row
        with pytest.raises(NonFiniteError, match="unet: evaluation 2 of 6 gave NaN"):
            engine.generate(**given)


def test_an_engine_is_opened_once_for_all_sizes(bundle: Path) -> None:
    with sdengine.load(bundle) as engine:
        engine.generate(PROMPT, steps=2, seed=1)
        engine.generate(PROMPT, steps=2, seed=1, width=192, height=128)
    assert len(fake_tensorrt.Engine.made) == 3  # text encoder, U-Net, VAE decoder


def test_metadata_says_what_ran(bundle: Path, tmp_path: Path) -> None:
    with sdengine.load(bundle, precision="fp16") as engine:
        (path,) = engine.generate(PROMPT, steps=2, seed=1).save(tmp_path / "a.png")
    found = sdengine.read_metadata(path).provenance
    assert (found.backend, found.precision) == ("tensorrt-rtx", "fp16")


def test_what_was_not_built_is_refused_before_anything_runs(bundle: Path) -> None:
    with sdengine.load(bundle) as engine, pytest.raises(UnsupportedShapeError, match="192x128"):
        engine.generate(PROMPT, width=256, height=128)
    with pytest.raises(ConfigError, match="auto or fp16"):
        sdengine.load(bundle, precision="bf16")


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_more_chunks_than_the_engines_take_are_refused_before_anything_runs(
    bundle: Path, field: str
) -> None:
    given: dict[str, Any] = {"prompt": PROMPT, field: ", ".join([PROMPT] * 60)}
    told = rf"{field}: 539 tokens fill 8 chunks of 75; at most 4 chunks, 300 tokens"
    with sdengine.load(bundle) as engine:
        with pytest.raises(ConfigError, match=told):
            engine.generate(**given, steps=1)
        assert fake_tensorrt.Engine.made == []
        # As many as they take do run.
        engine.generate(" BREAK ".join([PROMPT] * 4), steps=1, sampler="euler")


def test_a_bundle_says_how_many_chunks_its_engines_take(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    unet = manifest.networks["unet"]

    def chunks_with(options: NetworkOptions, max_length: int = 77) -> int:
        changed = unet.model_copy(update={"options": options})
        (encoder,) = manifest.architecture.text_encoders
        encoders = [encoder.model_copy(update={"max_length": max_length})]
        architecture = manifest.architecture.model_copy(update={"text_encoders": encoders})
        networks = {**manifest.networks, "unet": changed}
        return max_chunks(
            manifest.model_copy(update={"networks": networks, "architecture": architecture})
        )

    assert chunks_with(NetworkOptions()) == 4  # of bundles that say nothing
    assert chunks_with(NetworkOptions(max_chunks=6)) == 6
    assert chunks_with(NetworkOptions(), max_length=100) == 3


def test_an_engine_of_another_gpu_says_how_to_build_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", lambda *_: None)
    with sdengine.load(bundle) as engine, pytest.raises(DeviceError, match="--gpu NAME"):
        engine.generate(PROMPT, steps=1)


def test_sdxl_runs_with_its_two_encoders(tmp_path: Path) -> None:
    checkpoint = make_tiny("shallow-sdxl", tmp_path / "checkpoint")
    options: dict[str, Any] = {"resolutions": (64,), "precision": "fp32"}
    for target, gpus in (("tensorrt-rtx", ["sm89"]), ("openvino", [])):
        sdengine.build(checkpoint, tmp_path / target, target=target, gpus=gpus, **options)
    pictures = []
    for target in ("tensorrt-rtx", "openvino"):
        with sdengine.load(tmp_path / target, precision="fp32") as engine:
            pictures.append(engine.generate("a house", steps=4, seed=3, width=64, height=64))
    assert psnr(pictures[0].arrays[0], pictures[1].arrays[0]) >= 60
