"""The tiny autoencoder against diffusers' AutoencoderTiny: module, files, and bundles with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny_bundle import make_tiny_bundle
from support.tiny_checkpoints import make_tiny
from tolerances import assert_close

import sdengine
from sdengine.checkpoints import Checkpoint, load_checkpoint
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.engine import Engine
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.tiny_vae import TinyAutoencoder, TinyVAEConfig

WIDTH = 16
CONFIG = TinyVAEConfig(3, 3, (WIDTH,) * 4, (WIDTH,) * 4)
TARGETS = ("native", "torch")
PROMPT: dict[str, Any] = {"prompt": "a circle", "steps": 2, "seed": 1}


def make_theirs(**changes: Any) -> Any:
    """Return diffusers' module with seeded weights."""
    theirs = diffusers.AutoencoderTiny.from_config({**CONFIG.to_dict(), **changes}).eval()
    seed_weights(theirs, seed=4)
    return theirs


def original_names(theirs: Any) -> dict[str, torch.Tensor]:
    """Name weights as the published files do, where a layer that bends latents comes first."""
    found = {}
    for name, tensor in theirs.state_dict().items():
        side, _, index, rest = name.split(".", 3)
        found[f"{side}.{int(index) + (side == 'decoder')}.{rest}"] = tensor
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny("tiny", folder / "checkpoint")
    make_theirs().save_pretrained(folder / "tiny_vae")
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder / "checkpoint", tiny_vae=folder / "tiny_vae")


@torch.no_grad()
def test_the_module_computes_what_theirs_does() -> None:
    ours, theirs = TinyAutoencoder(CONFIG).eval(), make_theirs()
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 5, 3, generator=generator) * 4  # beyond what is bent to 3
    assert_close("vae", "float32", ours.decode(latents), theirs.decode(latents).sample)
    images = torch.rand(2, 3, 40, 24, generator=generator) * 2 - 1
    assert_close("vae", "float32", ours.encode(images), theirs.encode(images).latents)


@pytest.mark.parametrize("kind", ["folder", "both", "taesd_", "decoder", "encoder"])
@torch.no_grad()
def test_every_layout_is_read(folder: Path, tmp_path: Path, kind: str) -> None:
    theirs, place = make_theirs(), folder / "tiny_vae"
    if kind != "folder":
        place = tmp_path / f"{kind}.safetensors"
        named = original_names(theirs)
        prefix = f"{kind}." if kind in ("encoder", "decoder") else ""
        kept = {n.removeprefix(prefix): t for n, t in named.items() if n.startswith(prefix)}
        save_file({kind * (kind == "taesd_") + n: t for n, t in kept.items()}, place)
    found = load_checkpoint(folder / "checkpoint", tiny_vae=place)
    ours, config = found.load("tiny_vae"), found.tiny_vae_config
    assert isinstance(ours, TinyAutoencoder)
    assert config is not None
    assert (config.has_encoder, config.has_decoder) == (kind != "decoder", kind != "encoder")
    latents = torch.ones(1, 4, 3, 2)
    if config.has_decoder:
        assert torch.equal(ours.decode(latents), theirs.decode(latents).sample)
    if config.has_encoder:
        images = torch.ones(1, 3, 16, 8)
        assert torch.equal(ours.encode(images), theirs.encode(images).latents)
    assert TinyVAEConfig.from_dict(config.to_dict()) == config


def test_a_checkpoint_folder_may_hold_one(folder: Path, checkpoint: Checkpoint) -> None:
    whole = folder / "whole"
    whole.mkdir()
    for part in (folder / "checkpoint").iterdir():
        (whole / part.name).symlink_to(part, target_is_directory=part.is_dir())
    assert load_checkpoint(folder / "checkpoint").tiny_vae_config is None
    make_theirs().save_pretrained(whole / "tiny_vae")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        load_checkpoint(whole)  # by the links
    plain = load_checkpoint(folder / "checkpoint", tiny_vae=whole)
    assert plain.tiny_vae_config == checkpoint.tiny_vae_config
    assert plain.sha256 == checkpoint.sha256 != load_checkpoint(folder / "checkpoint").sha256


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": (3,)}, "not a tiny autoencoder"),
        ({"decoder.1.weight": (16, 4, 3, 3)}, "1 convolutions beside its blocks"),
        ({"decoder.1.weight": (16,), "decoder.3.weight": (3,)}, "begins or ends with no"),
        (
            {"0.weight": (16, 3, 3, 3), "900.conv.0.weight": (1,), "999.weight": (4, 16, 3, 3)},
            "cell for 1 p",
        ),
    ],
)
def test_other_files_are_refused(
    folder: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    place = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, place)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder / "checkpoint", tiny_vae=place)


def test_one_with_other_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    make_theirs(latent_channels=16).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"latents have 16 channels, a cell for 8 .* have 4"):
        load_checkpoint(folder / "checkpoint", tiny_vae=tmp_path / "a")
    make_theirs(scaling_factor=0.5).save_pretrained(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"tiny_vae.scaling_factor"):
        load_checkpoint(folder / "checkpoint", tiny_vae=tmp_path / "b")


@pytest.fixture(scope="module", params=TARGETS)
def engine(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: Any
) -> Iterator[Engine]:
    place = tmp_path_factory.mktemp("bundle") / request.param
    options: dict[str, Any] = {"precision": "fp32"}
    sdengine.build(checkpoint, place, target=request.param, resolutions=[(64, 128)], **options)
    with sdengine.load(place, precision="fp32", threads=1) as engine:
        yield engine


@torch.no_grad()
def test_pictures_and_previews_are_theirs(engine: Engine, tmp_path: Path) -> None:
    theirs, found = make_theirs(), None
    for step in engine.stream(**PROMPT, decoder="tiny", preview_every=1, preview="tiny"):
        assert step.preview is None or step.preview.shape == (1, 128, 64, 3)
        found = step
    assert found is not None
    assert found.result is not None
    decoded = theirs.decode(torch.from_numpy(np.array(found.latents))).sample.clamp(-1, 1)
    expected = ((decoded[0].permute(1, 2, 0) + 1) * 127.5).numpy()
    (picture,) = found.result.arrays
    assert np.abs(picture - expected).max() < 0.51
    assert picture.std() > 1
    timings = found.result.timings
    assert (timings.vae_decoder_calls, timings.stages["tiny_decoder"].calls) == (0, 3)
    (path,) = found.result.save(tmp_path / "a.png")
    recorded = sdengine.read_metadata(path)
    assert recorded.request_fields()["decoder"] == "tiny"
    with Image.open(path) as image:
        assert "VAE Decoder: TAESD" in image.info["parameters"]
    again = engine.generate(**recorded.request_fields())
    assert np.array_equal(again.arrays[0], picture)


@torch.no_grad()
def test_pictures_are_encoded_as_by_theirs(engine: Engine) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    given: dict[str, Any] = {"image": pixels, "strength": 0.5, "encode": "tiny", "sampler": "ddim"}
    found = engine.generate(**PROMPT, **given)
    assert found.timings.stages["tiny_encoder"].calls == 1
    assert "vae_encoder" not in found.timings.stages
    plain = engine.generate(**PROMPT, **{**given, "encode": "mean"})
    assert not np.array_equal(found.arrays[0], plain.arrays[0])
    from sdengine.pipeline.clock import StageClock
    from sdengine.pipeline.encoding import encode_image, in_range
    from sdengine.pipeline.loaded_networks import WeightedNetworks

    networks = WeightedNetworks(engine._networks)
    latents, deviation = encode_image(in_range(pixels), "tiny", networks, StageClock())
    expected = make_theirs().encode(torch.from_numpy(in_range(pixels))).latents
    assert_close("native network", "float32", latents, expected)
    assert not deviation.any()


def test_bundles_without_one_say_how_to_get_it(tmp_path: Path) -> None:
    with sdengine.load(make_tiny_bundle(tmp_path / "plain")) as engine:
        for options in ({"decoder": "tiny"}, {"preview": "tiny", "preview_every": 1}):
            with pytest.raises(ConfigError, match=r"has no tiny decoder.*--tiny-vae"):
                engine.generate("a", **options)
        picture = np.zeros((64, 64, 3), np.uint8)
        with pytest.raises(ConfigError, match=r"has no tiny encoder.*--tiny-vae"):
            engine.generate("a", image=picture, encode="tiny")
        with pytest.raises(ConfigError, match="nothing without preview_every"):
            engine.generate("a", preview="linear")
        with pytest.raises(ConfigError, match=r"earlier release.*preview=.vae"):
            engine.generate("a", preview="linear", preview_every=1)
        with pytest.raises(ConfigError, match="expected linear, tiny, vae"):
            engine.generate("a", preview="fast", preview_every=1)
