"""Sizes and batch of a bundle for which none were named: those of the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine.building.architecture import own_size, sizes_to_build
from sdengine.bundle.reader import open_bundle
from sdengine.checkpoints import convert, load_checkpoint
from sdengine.checkpoints.diffusers_folder import EXTRAS_FILE
from sdengine.errors import CheckpointError
from sdengine.models.configs import ARCHITECTURES


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.mark.parametrize(("name", "side"), [("sd15", 512), ("sd21", 768), ("sdxl", 1024)])
def test_a_model_has_the_size_that_it_was_trained_at(name: str, side: int) -> None:
    architecture = ARCHITECTURES[name]
    assert own_size(architecture.unet, architecture.vae) == (side, side)


def test_a_size_is_one_that_the_networks_take() -> None:
    unet, vae = ARCHITECTURES["sd15"].unet, ARCHITECTURES["sd15"].vae
    sides = [own_size(replace(unet, sample_size=size), vae)[0] for size in (1, 50, 61)]
    assert sides == [64, 384, 512]


def test_the_demo_model_says_its_sizes_and_its_batch(tmp_path: Path) -> None:
    folder = convert("demo", tmp_path / "folder")  # which keeps what it says
    for place in ("demo", folder):
        demo = load_checkpoint(place)
        assert (sizes_to_build(demo), demo.batch) == ([(s, s) for s in (128, 192, 256)], 4)
    shipped = open_bundle("demo", verify="size").manifest
    assert (shipped.resolutions, shipped.max_batch) == (sizes_to_build(demo), demo.batch)


def test_a_build_follows_the_model(tiny: Path, tmp_path: Path) -> None:
    report = sdengine.build(tiny, tmp_path / "own", target="torch")
    manifest = open_bundle(report.path).manifest
    side = load_checkpoint(tiny).unet_config.sample_size * manifest.architecture.vae.downscale
    assert (manifest.resolutions, manifest.max_batch) == ([(side, side)], 1)
    (tiny / EXTRAS_FILE).write_text(json.dumps({"resolutions": [64, [128, 64]], "batch": 3}))
    try:
        report = sdengine.build(tiny, tmp_path / "said", target="torch")
        manifest = open_bundle(report.path).manifest
        assert (manifest.resolutions, manifest.max_batch) == ([(64, 64), (128, 64)], 3)
        report = sdengine.build(
            tiny, tmp_path / "asked", target="torch", resolutions=[128], batch=2
        )
        manifest = open_bundle(report.path).manifest
        assert (manifest.resolutions, manifest.max_batch) == ([(128, 128)], 2)
    finally:
        (tiny / EXTRAS_FILE).unlink()


@pytest.mark.parametrize(
    "said",
    [
        {"resolutions": "512"},
        {"resolutions": [[1, 2, 3]]},
        {"resolutions": [10**9]},
        {"resolutions": [64], "batch": 0},
        {"batch": "2"},
    ],
)
def test_what_a_folder_says_is_checked(said: dict[str, object], tiny: Path) -> None:
    (tiny / EXTRAS_FILE).write_text(json.dumps(said))
    try:
        with pytest.raises(CheckpointError, match=r"sdengine\.json: .*(resolutions|batch)"):
            sizes_to_build(load_checkpoint(tiny))
    finally:
        (tiny / EXTRAS_FILE).unlink()
