"""Regions against NumPy: where in the picture each prompt counts, in every kind of request.

The tiny bundle's U-Net adds a number that follows from the prompt to every cell, so that after any
step latents are affine in what the prompts count there. The demo model shows that pictures follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_bundle import make_tiny_bundle
from tolerances import assert_close

import sdengine
from sdengine import Region
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.inputs.mask import Box
from sdengine.loading import load
from sdengine.pipeline.regions import cut_regions, region_maps
from sdengine.request.request import Request
from sdengine.training.scenes import Scene, SceneObject
from sdengine.training.scoring import score

Array = NDArray[Any]
LEFT, RIGHT = Region((0, 0, 0.5, 1)), Region((0.5, 0, 1, 1))
TEXTS = ("everything", "a circle", "b square")
GREY = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
USUAL: dict[str, Any] = {"seed": 3, "steps": 3, "sampler": "euler", "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    with load(bundle, precision="fp32", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with load("demo", threads=1) as engine:
        yield engine


def all_latents(engine: Engine, prompt: Any, negative: str = "no", **options: Any) -> list[Array]:
    return [np.array(s.latents) for s in engine.stream(prompt, negative, **{**USUAL, **options})]


def cells(pixels: Array) -> Array:
    height, width = pixels.shape
    means: Array = pixels.reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))
    return means


def counted(maps: list[Array], base: float | None, weights: list[float]) -> list[Array]:
    """Return by the formula what each part counts; base is None without a prompt for all."""
    total = sum(maps)
    if base is None:
        return [w * m / total for w, m in zip(weights, maps, strict=True)]
    own = [(1 - base) * m / np.maximum(total, 1) for m in maps]
    rest: Array = 1 - np.sum(own, axis=0)
    return [w * m for w, m in zip(weights, [rest, *own], strict=True)]


L_MAP = np.hstack([np.ones((8, 4)), np.zeros((8, 4))])
BOX = np.zeros((64, 64))
BOX[16:40, 8:20] = 1  # ends inside of cells
CASES: dict[str, tuple[list[Region], dict[str, Any], list[Array], float | None, list[float]]] = {
    "halves": ([LEFT, RIGHT], {}, [L_MAP, 1 - L_MAP], 0.2, [1, 1, 1]),
    "no base": ([LEFT, RIGHT], {}, [L_MAP, 1 - L_MAP], None, [1, 1]),
    "weights of parts": ([LEFT, RIGHT], {}, [L_MAP, 1 - L_MAP], 0.2, [1, 0.5, -1.5]),
    "a base of its own": ([LEFT], {"region_base": 0.6}, [L_MAP], 0.6, [1, 1]),
    "overlap": (
        [Region((0, 0, 1, 1)), Region((0.125, 0.25, 0.3125, 0.625), weight=3)], {},
        [np.ones((8, 8)), 3 * cells(BOX)], 0.0, [1, 1, 1],
    ),
    "grey": ([Region(mask=GREY), RIGHT], {}, [cells(GREY / 255), 1 - L_MAP], 0.2, [1, 1, 1]),
    "faint": ([Region(mask=GREY, weight=0.5)], {}, [cells(GREY / 255) / 2], 0.2, [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_cell_gets_its_prompts(engine: Engine, case: str) -> None:
    regions, options, maps, base, weights = CASES[case]
    options = {**options, **({"region_base": 0.0} if base == 0 else {})}
    texts = TEXTS[:1] * (base is not None) + TEXTS[1 : len(regions) + 1]
    prompt = " AND ".join(f"{t}:{w}" for t, w in zip(texts, weights, strict=True))
    found = all_latents(engine, prompt, regions=regions, **options)
    none = all_latents(engine, "no")  # whose direction is zero
    alone = [all_latents(engine, text) for text in texts]
    shares = counted(maps, base, weights)
    for k in range(USUAL["steps"]):
        wanted = none[k] + sum(
            share * (one[k] - none[k]) for share, one in zip(shares, alone, strict=True)
        )
        assert_close("regions", "float32", found[k], wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "dpmpp_2m"},
        {"sampler": "heun", "guidance_rescale": 0.0, "preview_every": 1},
        {"tiled_diffusion": True, "tile_size": (64, 64), "tile_overlap": 32, "width": 128},
        {"seamless": "x"},
        {"guidance_interval": (0.3, 0.7)},
        {"guidance_scale": 1.0},
        {"batch_size": 3},
        {"hires": (128, 64), "hires_upscaler": "latent_nearest"},
    ],
    ids=str,
)
def test_with_everything_else(engine: Engine, options: dict[str, Any]) -> None:
    found = all_latents(engine, "x AND a circle AND b square", regions=[LEFT, RIGHT], **options)
    none, *alone = (all_latents(engine, text, **options) for text in ("no", "x", *TEXTS[1:]))
    if options.get("guidance_scale") == 1:  # whose rows alone are not weighed against a negative
        none = alone[0]
    for k, one in enumerate(found):
        map_ = np.arange(one.shape[3]) < one.shape[3] // 2
        own = np.where(map_, alone[1][k] - none[k], alone[2][k] - none[k])
        wanted = none[k] + 0.2 * (alone[0][k] - none[k]) + 0.8 * own
        assert_close("regions", "float32", one, wanted)


def test_texts_that_change_and_chunks(engine: Engine) -> None:
    chunks = "no BREAK no"  # shorter prompts have as many as the negative
    parts = ["x", "[a circle:b:1]", "b BREAK square"]
    found = all_latents(engine, " AND ".join(parts), chunks, regions=[LEFT, RIGHT])
    none, *alone = (all_latents(engine, text, chunks) for text in (chunks, *parts))
    for k, one in enumerate(found):
        own = np.where(L_MAP, alone[1][k] - none[k], alone[2][k] - none[k])
        assert_close("regions", "float32", one, none[k] + 0.2 * (alone[0][k] - none[k]) + 0.8 * own)


def test_images_of_a_batch_have_prompts_of_their_own(engine: Engine) -> None:
    prompts = ["x AND a AND b", "c AND d"]
    together = all_latents(engine, prompts, regions=[LEFT, RIGHT])[-1]
    for index, prompt in enumerate(prompts):
        alone = all_latents(engine, prompt, regions=[LEFT, RIGHT], seed=3 + index)[-1]
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def test_maps_of_one_value_are_plain_and_bit_for_bit(engine: Engine) -> None:
    whole = Region((0, 0, 1, 1))
    same: list[tuple[str, dict[str, Any], str]] = [
        ("a AND b:0.5", {"regions": [whole, whole]}, "a:0.5 AND b:0.25"),
        ("a", {"regions": [whole]}, "a"),
        ("x AND a", {"regions": [whole], "region_base": 0.25}, "x:0.25 AND a:0.75"),
        ("x AND a", {"regions": [whole], "region_base": 1}, "x AND a:0"),
    ]
    for prompt, options, plain in same:
        for found, wanted in zip(
            all_latents(engine, prompt, **options), all_latents(engine, plain), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


SCENE = Scene(
    "white",
    (
        SceneObject("red", "circle", "medium", 0.26, 0.5, 0.16),
        SceneObject("blue", "square", "medium", 0.74, 0.5, 0.16),
    ),
    None,
    "left",
)
OF_TWO = (
    "a red circle on the left on a white background AND a blue square on the right on a white "
    "background"
)


def test_a_picture_follows(demo: Engine) -> None:
    options: dict[str, Any] = {"seed": 1, "batch_size": 2, "steps": 15}
    blank: dict[str, Any] = {"image": np.full((128, 128, 3), 255, np.uint8), "strength": 0.9}
    every: list[dict[str, Any]] = [{}, blank]
    for changes in every:
        found = demo.generate(OF_TWO, regions=[LEFT, RIGHT], **options, **changes)
        assert [score(image, SCENE)["all"] for image in found.arrays] == [1, 1]
    plain = demo.generate(OF_TWO, **options)
    assert [score(image, SCENE)["all"] for image in plain.arrays] == [0, 0]


def test_in_a_part_of_a_picture(demo: Engine) -> None:
    picture, mask = np.full((128, 256, 3), 200, np.uint8), np.zeros((128, 256), np.uint8)
    mask[32:96, 160:224] = 255  # in the right half, where only the second prompt counts
    options: dict[str, Any] = {
        "image": picture, "mask": mask, "inpaint_area": "masked", "mask_padding": 16, "width": 128,
        "height": 128, "strength": 0.9, "steps": 4, "seed": 2,
    }  # fmt: skip
    found = demo.generate("a circle AND a square", regions=[LEFT, RIGHT], **options)
    plain = demo.generate("a circle:0 AND a square", **options)
    other = demo.generate("a circle AND a square:0", **options)
    np.testing.assert_array_equal(found.arrays[0], plain.arrays[0])
    assert not np.array_equal(found.arrays[0], other.arrays[0])


def test_a_second_pass_that_is_cut() -> None:
    above = Region((0, 0, 1, 0.375)), Region((0, 0.375, 1, 1))
    request = Request("a AND b", width=64, height=64, regions=above, hires=(128, 64))
    cut = cut_regions(request, (128, 128), (128, 64), (0, 32))
    maps = region_maps(replace(request, width=128, hires=None, regions=cut), (128, 64), 8)
    np.testing.assert_array_equal(maps[0, :, 0], [1, 1, 0, 0, 0, 0, 0, 0])  # up to 48 of 128
    np.testing.assert_array_equal(maps[0], 1 - maps[1])


def test_maps_of_a_part_and_of_what_is_padded() -> None:
    request = Request("a AND b", width=64, height=64, regions=(LEFT, RIGHT))
    part = region_maps(request, (64, 64), 8, (256, 64, Box(96, 0, 160, 64)))
    np.testing.assert_array_equal(part[0], L_MAP)
    picture: Any = np.zeros((60, 60), np.uint8)
    padded = region_maps(
        Request("a", image=picture, width=60, height=60, regions=(LEFT,)),
        (64, 64), 8,
    )  # fmt: skip
    np.testing.assert_allclose(padded[0, :, 3], 0.75)  # the edge lies at 30
    np.testing.assert_array_equal(padded[0, :, 4:], 0)


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ("a", {"regions": [LEFT, RIGHT]}, "there are 2, and the prompt is 1 part joined by AND; "
         "expected 2 parts, one for each region, or 3"),
        (["a AND b", "a AND b AND c AND d"], {"regions": [LEFT, RIGHT]}, r"prompt\[1\] is 4 parts"),
        ("a AND b", {"regions": [LEFT, RIGHT], "region_base": 0.5}, "region_base: 0.5 .*default "
         "where no prompt has a part for the whole picture"),
        ("a", {"regions": [LEFT]}, r"50\.0% of the picture are in none of them"),
        ("x AND a", {"regions": [Region(mask=np.zeros((8, 8), np.uint8))]}, "region 1 covers "
         "nothing"),
        ("a AND b", {"regions": [LEFT, RIGHT], "emphasis": "literal"}, "the prompt is 1 part"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(
    engine: Engine, prompt: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        engine.generate(prompt, **USUAL, **options)


def test_replay(engine: Engine, tmp_path: Path) -> None:
    made = engine.generate(OF_TWO, regions=[Region(mask=GREY), LEFT], **USUAL)
    made.save(tmp_path / "a.png")
    fields = sdengine.read_metadata(tmp_path / "a.png").request_fields()
    assert fields["regions"][1] == LEFT and fields["regions"][0].mask.sha256
    with pytest.raises(ConfigError, match="of the mask of region 1 only the record with SHA-256"):
        engine.generate(**fields)
    again = engine.generate(**{**fields, "regions": [Region(mask=GREY), LEFT]})
    np.testing.assert_array_equal(again.arrays[0], made.arrays[0])
    boxes = engine.generate(OF_TWO, regions=[LEFT, RIGHT], **USUAL)
    boxes.save(tmp_path / "b.png")
    fields = sdengine.read_metadata(tmp_path / "b.png").request_fields()
    np.testing.assert_array_equal(engine.generate(**fields).arrays[0], boxes.arrays[0])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", OF_TWO, "--seed", "1", "--steps", "2", "-o", str(tmp_path / "a.png")]
    regions = ["--region", "0,0,0.5,1", "--region", "0.5,0,1,1,weight=2"]
    assert main([*arguments, *regions]) == 0
    fields = sdengine.read_metadata(tmp_path / "a.png").request_fields()
    assert fields["regions"] == (LEFT, Region((0.5, 0, 1, 1), weight=2))
    assert main([*arguments, "--region", "0,0,1"]) != 0
    assert "region.box: [0.0, 0.0, 1.0] is not accepted" in capsys.readouterr().err
