"""Requests in tiles: sizes beyond those built, what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_bundle import SCALING_FACTOR, make_tiny_bundle, vae_decoder_reference

import sdengine
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.bundle.tensors import TensorSpec
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import ConfigError, OutOfMemoryError, UnsupportedShapeError
from sdengine.images.metadata import read_metadata
from sdengine.loading import load
from sdengine.pipeline.vae_tiles import VaeTiles, part_size
from sdengine.request.request import Request

PROMPT = "a large red circle on a blue background"
USUAL: dict[str, Any] = {"steps": 3, "seed": 7}
TILED: dict[str, Any] = {**USUAL, "tiled_diffusion": True}
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("tiles") / "tiny")
    with load(bundle, precision="fp32", threads=1) as engine:
        yield engine


def test_the_u_net_runs_once_a_tile_and_evaluation(engine: Engine) -> None:
    result = engine.generate(PROMPT, width=256, height=128, **TILED)
    assert (result.request.tile_size, result.request.tile_overlap) == ((128, 128), 64)
    assert result.timings.stages["unet"].calls == 3 * 3
    assert result.timings.stages["vae_decoder"].calls == 1
    assert result.arrays[0].shape == (128, 256, 3) and not result.warnings
    whole = engine.generate(PROMPT, width=256, height=128, **USUAL)
    assert not np.array_equal(result.arrays[0], whole.arrays[0])
    fewer = engine.generate(PROMPT, width=256, height=128, tile_overlap=32, **TILED)
    assert fewer.timings.stages["unet"].calls == 3 * 3  # at 0, 96 and 128
    larger = engine.generate(PROMPT, width=256, height=128, tile_size=(192, 128), **TILED)
    assert larger.timings.stages["unet"].calls == 3 * 2


def test_one_tile_is_no_tiling_and_says_so(engine: Engine) -> None:
    plain, tiled = (engine.generate(PROMPT, **fields) for fields in (USUAL, TILED))
    np.testing.assert_array_equal(tiled.arrays[0], plain.arrays[0])
    assert "one tile covers the picture" in tiled.warnings[0]


def test_a_result_is_made_again(engine: Engine) -> None:
    fields: dict[str, Any] = {**TILED, "sampler": "euler_a", "batch_size": 2}
    result = engine.generate([PROMPT, "[a:b:1]"], width=160, height=136, tile_overlap=32, **fields)
    for i, found in enumerate(result.arrays):
        again = engine.run(Request.from_json(result.request.only(i).to_json()))
        np.testing.assert_array_equal(again.arrays[0], found)


def test_the_command_records_tiles(tmp_path: Path) -> None:
    first, again = (str(tmp_path / name) for name in ("a.png", "b.png"))
    asked = ["--width", "192", "--height", "128", "--steps", "2", "--seed", "3"]
    tiles = ["--tiled-diffusion", "--tile-size", "96x128", "--tile-overlap", "48"]
    assert main(["generate", PROMPT, *asked, *tiles, "-o", first]) == 0
    fields = read_metadata(first).request_fields()
    assert (fields["tiled_diffusion"], fields["tile_size"]) == (True, (96, 128))
    assert fields["tile_overlap"] == 48
    assert main(["generate", "--from", first, "-o", again]) == 0
    assert Path(first).read_bytes() == Path(again).read_bytes()


def test_sizes_need_be_no_multiple_of_the_u_nets(engine: Engine) -> None:
    with pytest.raises(UnsupportedShapeError):
        engine.generate(PROMPT, width=168, height=136, **USUAL)
    assert engine.generate(PROMPT, width=168, height=136, **TILED).arrays[0].shape == (136, 168, 3)


def test_pictures_in_tiles(engine: Engine) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (101, 203, 3), np.uint8)
    result = engine.generate(PROMPT, image=picture, strength=0.7, **TILED)
    assert result.arrays[0].shape == picture.shape
    assert result.timings.stages["unet"].calls == 2 * 3  # canvas 208x128: at 0, 64 and 80
    mask = np.zeros((101, 203), np.uint8)
    mask[20:60, 100:180] = 255
    found = engine.generate(PROMPT, image=picture, mask=mask, mask_blur=0, **TILED).arrays[0]
    np.testing.assert_array_equal(found[mask == 0], picture[mask == 0])
    assert (found[mask != 0] != picture[mask != 0]).any()


def test_a_second_pass_in_tiles(engine: Engine) -> None:
    hires: dict[str, Any] = {"hires": 1.5, "hires_strength": 0.6, **TILED}
    for upscaler in ("latent", "lanczos"):
        result = engine.generate(PROMPT, hires_upscaler=upscaler, **hires)
        assert result.arrays[0].shape == (192, 192, 3)
        assert not [line for line in result.warnings if "tile" in line]
        assert result.timings.stages["unet"].calls == 3 + 3 * 4  # the first pass is one tile
    wide = {**hires, "hires": (200, 104)}
    assert engine.generate(PROMPT, hires_upscaler="lanczos", **wide).arrays[0].shape[:2] == (
        104,
        200,
    )
    with pytest.raises(UnsupportedShapeError, match=r"^hires: 200x104, .* is 200x128"):
        engine.generate(PROMPT, hires_upscaler="latent", **wide)


def test_sizes_that_were_not_built_run_in_tiles_that_were(tiny: Engine) -> None:
    fields: dict[str, Any] = {"width": 168, "height": 136, "steps": 3, "seed": 1}
    with pytest.raises(UnsupportedShapeError):
        tiny.generate("a", **fields)
    steps = [*tiny.stream("a", tiled_diffusion=True, **fields)]
    result, latents = steps[-1].result, steps[-1].latents
    assert result is not None and latents is not None
    assert result.timings.stages["unet"].calls == 3 * 5 * 4  # 21 and 17 cells in tiles of 8
    # This U-Net and this VAE look at single cells, so that tiles change nothing but sums.
    pixels = vae_decoder_reference(np.asarray(latents) / SCALING_FACTOR)[0].transpose(1, 2, 0)
    expected = ((pixels / 2 + 0.5).clip(0, 1) * 255).round()
    assert np.abs(result.arrays[0] - expected).max() <= 1


def test_a_u_net_of_cells_predicts_the_same_in_tiles(tiny: Engine) -> None:
    fields: dict[str, Any] = {"width": 128, "height": 64, "steps": 4, "seed": 1}
    tiles: dict[str, Any] = {"tiled_diffusion": True, "tile_overlap": 40}
    for sampler in ("dpmpp_2m", "euler_a"):
        found, wanted = (
            np.array([*tiny.stream("a", "b", sampler=sampler, **fields, **more)][-1].latents)
            for more in (tiles, {})
        )
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_tiles_are_told_their_own_size(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "tiny", kind="sdxl")
    fields: dict[str, Any] = {"width": 128, "height": 64, "steps": 2, "seed": 1}
    told = {"original_size": (64, 64), "target_size": (64, 64)}
    with load(bundle, precision="fp32", threads=1) as engine:
        tiled, same, canvas = (
            np.array([*engine.stream("a", **fields, **more)][-1].latents)
            for more in ({"tiled_diffusion": True}, told, {})
        )
    np.testing.assert_allclose(tiled, same, atol=1e-4)
    assert np.abs(tiled - canvas).max() > 0.01


def test_a_vae_in_parts_reads_and_gives_pictures_or_latents() -> None:
    class Half:
        """An encoder that averages 8x8 pixels."""

        inputs: tuple[TensorSpec, ...] = (TensorSpec("images", (1, 3, 64, 64), "float32"),)
        outputs: tuple[TensorSpec, ...] = (TensorSpec("moments", (1, 3, 8, 8), "float32"),)
        closed = False

        def run(self, inputs: Any) -> Any:
            images = inputs["images"]
            assert images.shape == (1, 3, 64, 64) and images.flags.c_contiguous
            return {"moments": images.reshape(1, 3, 8, 8, 8, 8).mean(axis=(3, 5))}

        def close(self) -> None:
            self.closed = True

    half = Half()
    vae = VaeTiles(half, (136, 72), 8)
    assert vae.inputs[0].shape == (1, 3, 72, 136) and vae.outputs[0].shape == (1, 3, 9, 17)
    images = np.random.default_rng(0).standard_normal((1, 3, 72, 136)).astype(np.float32)
    expected = images.reshape(1, 3, 9, 8, 17, 8).mean(axis=(3, 5))
    np.testing.assert_allclose(vae.run({"images": images})["moments"], expected, atol=1e-5)
    vae.close()
    assert half.closed
    assert part_size(200, 100, [(64, 64), (128, 64), (128, 128)]) == (128, 64)
    assert part_size(32, 200, [(64, 64)]) is None


def test_a_limit_counts_the_u_net_at_its_tiles() -> None:
    with sdengine.load("demo", vae_tiles="never", threads=1) as engine:
        budget = engine.session.budget
        assert isinstance(budget, NativeBudget)
        whole, tiled = (
            budget._plan(512, 512, (), tile).total_bytes(False) for tile in (None, (64, 64))
        )
    assert tiled < whole
    limit = (whole + tiled) // 2
    with sdengine.load("demo", memory_bytes=limit, vae_tiles="never", threads=1) as limited:
        size: dict[str, Any] = {"width": 512, "height": 512}
        with pytest.raises(OutOfMemoryError):
            limited.generate(PROMPT, **size, **USUAL)
        request = limited.request(PROMPT, tile_size=(64, 64), **size, **TILED)
        limited.plan(request)  # its steps would take long


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tile_size": (128, 128)}, r"^tile_size: \(128, 128\) is not accepted.*tiled_diffusion"),
        ({"tile_overlap": 64}, r"^tile_overlap: 64 is not accepted.*tiled_diffusion"),
        ({"tiled_diffusion": 1}, r"^tiled_diffusion: 1 is not accepted"),
        ({"tiled_diffusion": True, "tile_size": 128}, r"^tile_size: 128 .*two integers"),
        ({"tiled_diffusion": True, "tile_size": (128, 56)}, r"^tile_size: 56 .*64 to 4096"),
        ({"tiled_diffusion": True, "tile_size": (128, 100)}, r"^tile_size: .*multiples of 8"),
        ({"tiled_diffusion": True, "tile_overlap": 24}, r"^tile_overlap: 24 .*from 32"),
        ({"tiled_diffusion": True, "tile_overlap": 36}, r"^tile_overlap: 36 .*multiple of 8"),
        (
            {"tiled_diffusion": True, "tile_size": (128, 64), "tile_overlap": 56},
            r"^tile_overlap: 56 .*at most 48",
        ),
    ],
)
def test_tiles_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Request("a", **fields)


def test_tiles_that_a_bundle_cannot_run_are_refused_before_the_start(
    engine: Engine, tiny: Engine
) -> None:
    with pytest.raises(ConfigError, match=r"^tile_overlap: 120 .*at most 96"):
        engine.generate(PROMPT, tiled_diffusion=True, tile_overlap=120)
    with pytest.raises(UnsupportedShapeError, match=r"^tile_size: 72x128 .*multiples of 32"):
        engine.generate(PROMPT, width=256, height=256, tile_size=(72, 128), **TILED)
    with pytest.raises(UnsupportedShapeError, match=r"^tile_size: .*not built for 96x64"):
        tiny.generate("a", width=128, height=64, tile_size=(96, 64), **TILED)
    with pytest.raises(ConfigError, match=r"^tile_size: .*at most 4096 tiles"):
        engine.generate(
            PROMPT, width=4096, height=4096, tile_size=(64, 64), tile_overlap=48, **TILED
        )


def test_without_tiles_a_request_reads_as_before() -> None:
    assert not [name for name in Request("a").to_dict() if "tile" in name]
    made = Request("a", tiled_diffusion=True, tile_size=(64, 128), tile_overlap=32)
    assert Request.from_json(made.to_json()) == made
