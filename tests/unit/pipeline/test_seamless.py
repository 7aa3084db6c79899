"""Seamless pictures: edges that meet, by networks that wrap and by latents that are shifted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine import opened_bundle
from sdengine.backends.native.backend import NativeSession, NativeUNet
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.backends.native.sampler_steps import NativeRun
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import ConfigError, UnsupportedShapeError
from sdengine.images.metadata import read_metadata
from sdengine.images.web_ui_text import parse_parameters
from sdengine.loading import load
from sdengine.pipeline import pipeline as pipeline_module
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.encoding import encoded
from sdengine.pipeline.inpainting import computed_part
from sdengine.pipeline.latents import noise_of
from sdengine.pipeline.loaded_networks import Networks, WeightedNetworks
from sdengine.pipeline.previews import preview
from sdengine.pipeline.seamless import (
    MARGIN,
    Shifts,
    continued,
    decode_seamless,
    inner,
    shifted,
    shifted_back,
    vae_size,
)
from sdengine.request.request import Request

PROMPT = "a large red circle on a blue background"
RNG = np.random.default_rng(0)
Array = NDArray[Any]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=1) as engine:
        yield engine


class ShiftingNetworks(Networks):
    """Networks of a backend that has none which wrap."""

    can_wrap = False


@pytest.fixture(scope="module", params=["wrapping", "shifting"])
def either(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The demo model by both ways: as it is, and as a backend has it whose networks cannot wrap."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "shifting":
            patch.setattr(opened_bundle, "Networks", ShiftingNetworks)
        engine = sdengine.load("demo", threads=1)
    with engine:
        yield engine


@pytest.fixture(scope="module")
def exact() -> Iterator[Engine]:
    with sdengine.load("demo", precision="fp32", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("seamless") / "tiny")
    with load(bundle, precision="fp32", threads=1) as engine:
        yield engine


def test_shifts_are_even_of_the_axes_asked_for_and_of_the_seed_alone() -> None:
    seeds = (5, 2**64 - 1)
    both, across, down = (
        [Shifts(seeds, (9, 16), axes).at(k) for k in range(60)] for axes in ("xy", "x", "y")
    )
    numbers = np.array(both)
    assert (numbers % 2 == 0).all() and (numbers >= 0).all()
    assert {*numbers[..., 0].ravel()} == {0, 2, 4, 6}
    assert {*numbers[..., 1].ravel()} == {*range(0, 16, 2)}
    assert (numbers[:, 0] != numbers[:, 1]).any(axis=1).mean() > 0.8
    np.testing.assert_array_equal(np.array(across), numbers * [0, 1])
    np.testing.assert_array_equal(np.array(down), numbers * [1, 0])
    assert Shifts(seeds[1:], (9, 16), "xy").at(7) == both[7][1:]


def test_what_is_shifted_comes_back_image_by_image() -> None:
    moves, maps = [(2, 0), (4, 6)], RNG.random((4, 3, 8, 12)).astype(np.float32)
    found = shifted(maps, moves)
    for i, (down, right) in enumerate((*moves, *moves)):  # two blocks of two images
        np.testing.assert_array_equal(found[i, :, down, right], maps[i, :, 0, 0])
    np.testing.assert_array_equal(shifted_back(found, moves), maps)
    one = shifted(np.repeat(maps[:1], 8, axis=3), moves, 8)
    assert one.shape[0] == 2
    np.testing.assert_array_equal(one[1, :, 32 % 8, 48], maps[0, :, 0, 0])


def test_a_picture_goes_on_beyond_its_edges_by_its_other_ones() -> None:
    maps = RNG.random((1, 2, 6, 10)).astype(np.float32)
    wide = continued(maps, "x", MARGIN)
    assert wide.shape == (1, 2, 6, 34)
    np.testing.assert_array_equal(wide, np.tile(maps, 5)[..., 8:42])  # more than once around
    for axes in ("none", "x", "y", "xy"):
        np.testing.assert_array_equal(inner(continued(maps, axes, 3), axes, 3), maps)
    assert vae_size((64, 40), "y", 8) == (64, 40 + 16 * MARGIN)
    assert vae_size((64, 40), "none", 8) == (64, 40)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "heun"])
def test_a_u_net_without_edges_gives_the_same(tiny: Engine, sampler: str) -> None:
    """Registers hold what is not shifted, and noise is what it was."""
    fields: dict[str, Any] = {"sampler": sampler, "steps": 4, "seed": 1, "width": 128}
    plain, again, tiled = (
        [*tiny.stream("a [b:c:2]", "d", batch_size=2, **fields, **more)][-1]
        for more in ({}, {"seamless": "xy"}, {"seamless": "x", "tiled_diffusion": True})
    )
    assert plain.latents is not None and plain.result is not None
    for one in (again, tiled):
        assert one.latents is not None and one.result is not None
        np.testing.assert_allclose(one.latents, plain.latents, atol=1e-4)
        for found, wanted in zip(one.result.arrays, plain.result.arrays, strict=True):
            assert found.shape == wanted.shape
            assert np.abs(found.astype(int) - wanted).max() <= 1


def border(images: Iterable[Array], axis: int) -> float:
    """Return the mean second difference over the border of an axis."""
    found = []
    for image in images:
        lines = np.moveaxis(image.astype(float), axis, 0)
        last, first = lines[-2:], lines[:2]
        found += [
            np.abs(first[0] - 2 * last[1] + last[0]).mean(),
            np.abs(last[1] - 2 * first[0] + first[1]).mean(),
        ]
    return float(np.mean(found))


def test_edges_of_the_demo_models_pictures_meet(either: Engine) -> None:
    engine = either
    fields: dict[str, Any] = {"seed": 11, "steps": 8, "batch_size": 4}
    prompt = "a cyan ring above a black cross"
    plain, across, both = (
        engine.generate(prompt, seamless=axes, **fields) for axes in ("none", "x", "xy")
    )
    for axis in (0, 1):
        assert border(both.arrays, axis) < 0.6 * border(plain.arrays, axis)
    assert border(across.arrays, 1) < 0.6 * border(plain.arrays, 1)
    alone = engine.run(Request.from_json(both.request.only(2).to_json()))
    assert np.abs(alone.arrays[0].astype(int) - both.arrays[2]).max() <= 1


def test_the_vae_sees_no_edges(either: Engine) -> None:
    """A picture that is shifted first gives the same; else by its groups' statistics alone."""
    engine = either
    networks, clock = WeightedNetworks(engine._networks), StageClock()
    latents = RNG.standard_normal((1, 4, 16, 16)).astype(np.float32)

    def decoding_error(axes: str) -> Array:
        first, second = (
            decode_seamless(one, axes, networks, clock)[0].astype(float)
            for one in (latents, np.roll(latents, 8, 3))
        )
        found: Array = np.abs(second - np.roll(first, 64, 1))
        return found

    edges = np.s_[:, [0, 1, 62, 63, 64, 65, -2, -1]]  # of both pictures
    seamless, plain = decoding_error("x"), decoding_error("none")
    assert plain[edges].mean() > 10 * seamless[edges].mean()
    assert seamless[edges].mean() < 2 * seamless.mean()
    pixels = RNG.integers(0, 255, (128, 128, 3), np.uint8)

    def encoding_error(axes: str) -> float:
        first, second = (
            encoded(one, networks, clock, seamless=axes)[0]
            for one in (pixels, np.roll(pixels, 64, 0))
        )
        return float(np.abs(second - np.roll(first, 8, 2))[:, :, [0, 7, 8, -1]].mean())

    assert encoding_error("none") > 10 * encoding_error("y")


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_networks_that_wrap_know_no_edges_at_all(exact: Engine, axes: str) -> None:
    """What they read of a picture that is shifted around gives the same, shifted, and no other."""
    networks, clock = WeightedNetworks(exact._networks), StageClock()
    assert networks.can_wrap
    both = tuple(2 + "yx".index(axis) for axis in axes)
    latents = RNG.standard_normal((2, 4, 16, 24)).astype(np.float32)

    def moved(maps: Array, cells: int) -> Array:
        return np.roll(maps, (cells,) * len(both), both)

    def relative_error(found: Array, wanted: Array) -> float:
        return float(np.abs(found - wanted).max() / np.abs(wanted).max())

    width = exact.bundle.manifest.architecture.unet.cross_attention_dim
    inputs = {
        "sample": latents,
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": RNG.standard_normal((2, 77, width)).astype(np.float32),
    }
    for wraps, is_exact in ((axes, True), ("none", False)):
        unet = networks.get("unet", 2, 128, 192, wraps=wraps)
        plain = unet.run(inputs)["noise_pred"].copy()
        found = unet.run({**inputs, "sample": moved(latents, 8)})["noise_pred"]
        assert (relative_error(found, moved(plain, 8)) < 1e-4) == is_exact
    first, second = (
        decode_seamless(one, axes, networks, clock) for one in (latents, moved(latents, 3))
    )
    for before, after in zip(first, second, strict=True):
        wanted = np.roll(before, (24,) * len(both), tuple(axis - 2 for axis in both))
        assert np.abs(after.astype(int) - wanted).max() <= 1
    pixels = RNG.integers(0, 255, (128, 192, 3), np.uint8)
    one, two = (
        encoded(picture, networks, clock, seamless=axes)[0]
        for picture in (
            pixels,
            np.roll(pixels, (40,) * len(both), tuple(axis - 2 for axis in both)),
        )
    )
    assert relative_error(two, moved(one, 5)) < 1e-4


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_noise_that_is_shifted_gives_the_picture_shifted(
    exact: Engine, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    fields: dict[str, Any] = {"seed": 4, "steps": 6, "sampler": sampler, "seamless": "xy"}
    plain = exact.generate(PROMPT, **fields).arrays[0]

    def shifted_noise(*given: Any) -> Any:
        noise = noise_of(*given)
        first = noise.initial
        monkeypatch.setattr(noise, "initial", lambda: np.roll(first(), (8, 8), (2, 3)))
        return noise

    monkeypatch.setattr(pipeline_module, "noise_of", shifted_noise)
    found = exact.generate(PROMPT, **fields).arrays[0]
    wanted = np.roll(plain, (64, 64), (0, 1))
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert np.abs(found.astype(int) - plain).max() > 50


def test_networks_that_wrap_share_weights_and_are_freed() -> None:
    with sdengine.load("demo", threads=1) as engine:
        fields: dict[str, Any] = {"seed": 4, "steps": 2}
        before = engine.generate(PROMPT, **fields).arrays[0]
        result = engine.generate(PROMPT, **fields, seamless="xy")
        again = engine.generate(PROMPT, **fields).arrays[0]
        np.testing.assert_array_equal(before, again)
        assert not np.array_equal(before, result.arrays[0])
        plain, wrapping = (
            engine._networks.get("unet", 2, 128, 128, wraps=axes) for axes in ("none", "xy")
        )
        assert isinstance(plain, NativeUNet) and isinstance(wrapping, NativeUNet)
        for name, values in plain._packed.tensors.items():
            assert wrapping._packed.tensors[name] is values
        assert plain.prepared.program().arena_bytes == wrapping.prepared.program().arena_bytes
        session = engine.session
        assert isinstance(session, NativeSession)
        laid_out = {key[3] for key in session._laid_out if isinstance(key, tuple)}
        assert laid_out == {"none", "xy"}
        del plain, wrapping
        engine._networks.release("unet", "vae_decoder")
        left = [key for key in session._laid_out if isinstance(key, tuple) and key[3] == "xy"]
        assert not left


def test_steps_of_networks_that_wrap_run_beside_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    advance = NativeRun.advance

    def counted(self: NativeRun, count: int, noise: Any) -> int:
        calls.append(count)
        return advance(self, count, noise)

    monkeypatch.setattr(NativeRun, "advance", counted)
    engine.generate(PROMPT, steps=5, seamless="xy", seed=1)
    assert calls == [5]
    engine.generate(
        PROMPT, steps=5, seamless="xy", seed=1, tiled_diffusion=True, tile_size=(64, 64)
    )
    assert calls == [5]  # tiles have edges of their own, and are shifted


def test_pictures_and_second_passes_are_seamless(either: Engine) -> None:
    engine = either
    fields: dict[str, Any] = {"seed": 3, "steps": 3, "seamless": "xy"}
    picture = RNG.integers(0, 255, (128, 128, 3), np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[:, :32] = 255
    found = engine.generate(PROMPT, image=picture, mask=mask, mask_blur=0, **fields).arrays[0]
    np.testing.assert_array_equal(found[mask == 0], picture[mask == 0])
    larger = engine.generate(PROMPT, hires=1.5, hires_upscaler="lanczos", **fields)
    assert larger.arrays[0].shape == (192, 192, 3)


def test_masks_that_are_resized_know_no_edges(engine: Engine) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :4] = 255

    def laid(mask: Array) -> Array:
        request = engine.request(
            "a", width=64, height=64, image=np.zeros((32, 32, 3), np.uint8), mask=mask,
            mask_blur=0, strength=0.5, seamless="x",
        )  # fmt: skip
        assert request.image is not None
        pixels = np.zeros((32, 32, 3), np.uint8)
        found = computed_part(request, pixels, (64, 64), engine.bundle.manifest)[1]
        assert found is not None
        return found.laid

    np.testing.assert_allclose(np.roll(laid(mask), 16, 1), laid(np.roll(mask, 8, 1)), atol=1e-6)


def test_previews_know_no_edges(exact: Engine) -> None:
    networks, clock = WeightedNetworks(exact._networks), StageClock()
    clean = RNG.standard_normal((2, 4, 16, 32)).astype(np.float32)
    plain, found = (
        preview(one, "vae", networks, clock, "x").astype(int)
        for one in (clean, np.roll(clean, 6, 3))
    )
    wanted = np.roll(plain, 6 * plain.shape[2] // 32, 2)
    assert np.abs(found - wanted).max() <= 1


def test_a_step_shows_the_preview_of_a_seamless_picture(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def shown(*given: Any) -> Any:
        asked.append(given[4])
        return preview(*given)

    monkeypatch.setattr(pipeline_module, "preview", shown)
    for axes in ("none", "y"):
        [*engine.stream(PROMPT, steps=2, seed=1, preview_every=1, seamless=axes)]
    assert asked == ["none", "none", "y", "y"]


def test_the_command_and_the_web_ui_know_it(tmp_path: Path) -> None:
    first, again = (str(tmp_path / name) for name in ("a.png", "b.png"))
    assert (
        main(["generate", PROMPT, "--steps", "2", "--seed", "3", "--seamless", "xy", "-o", first])
        == 0
    )
    assert b"Tiling: True" in Path(first).read_bytes()
    assert read_metadata(first).request_fields()["seamless"] == "xy"
    assert main(["generate", "--from", first, "-o", again]) == 0
    assert Path(first).read_bytes() == Path(again).read_bytes()
    for text, axes in (("True", "xy"), ("False", "none")):
        found = parse_parameters(f"a\nSteps: 5, Sampler: Euler, Tiling: {text}, Size: 64x64")
        assert found.fields["seamless"] == axes and not found.not_understood
    assert "seamless" not in Request("a").to_dict()


def test_what_cannot_meet_is_refused(engine: Engine) -> None:
    for value in ("z", True, ""):
        with pytest.raises(ConfigError, match=r"^seamless: .*one of none, x, y, xy"):
            Request("a", seamless=value)  # type: ignore[arg-type]
    picture = RNG.integers(0, 255, (128, 100, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"^width: 100 .*128, or another that needs no padding"):
        engine.generate(PROMPT, image=picture, steps=1, strength=1.0, seamless="x")
    assert engine.generate(PROMPT, image=picture, steps=1, strength=1.0, seamless="y").arrays
    mask = np.zeros((128, 100), np.uint8)
    mask[40:50, 40:50] = 255
    with pytest.raises(ConfigError, match=r"^seamless: .*inpaint_area"):
        engine.generate(PROMPT, image=picture, mask=mask, inpaint_area="masked", seamless="x")
    with pytest.raises(UnsupportedShapeError, match=r"^hires: 140x140 is computed at 160x160, and"):
        engine.generate(PROMPT, hires=1.1, hires_upscaler="lanczos", seamless="x")
    with pytest.raises(ConfigError, match=r"^hires: '192x128' .*own proportions, with seamless"):
        engine.generate(PROMPT, hires=(192, 128), hires_upscaler="lanczos", seamless="y")
    assert engine.generate(
        PROMPT, hires=(192, 128), hires_upscaler="lanczos", seamless="x", steps=1, seed=1
    ).arrays


def test_a_limit_counts_the_vaes_larger_maps(either: Engine) -> None:
    engine = either
    budget = engine.session.budget
    assert isinstance(budget, NativeBudget)
    asked: list[Any] = []

    def check(*given: Any) -> None:
        asked.append(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "check", check)
        for axes in ("none", "x"):
            engine.plan(engine.request(PROMPT, seamless=axes))
    wide = 128 + 16 * MARGIN
    usual = (128, 128, (), None)
    assert asked == [usual, usual if engine._networks.can_wrap else (wide, 128, (), (128, 128))]
