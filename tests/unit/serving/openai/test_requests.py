"""Calls: what fields and pictures become, against requests of the engine's own keywords."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdengine.engine import Engine
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.picture import Picture
from sdengine.loading import load
from sdengine.request.request import Request
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.limits import Limits
from sdengine.serving.openai.fields import EDITS, GENERATIONS, VARIATIONS
from sdengine.serving.openai.models import bundle_and_model, model_object, models
from sdengine.serving.openai.requests import Call, read_call
from sdengine.serving.service import Service


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load("demo", threads=1) as engine:
        yield engine


@pytest.fixture
def service(engine: Engine, tmp_path: Path) -> Service:
    (tmp_path / "style.safetensors").write_bytes(b"")
    (tmp_path / "demo.safetensors").write_bytes(b"")  # called as a bundle is
    return Service({"demo": engine}, Catalogue({"model": tmp_path}), Limits(max_images=6))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture(size: tuple[int, int] = (64, 64), alpha: Any = None) -> bytes:
    """Return a picture with a gradient, perhaps with an alpha channel [H,W]."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = np.arange(size[0])
    if alpha is not None:
        pixels = np.concatenate([pixels, np.asarray(alpha, np.uint8)[..., None]], axis=2)
    return png(Image.fromarray(pixels))


def hole(size: tuple[int, int] = (64, 64)) -> np.ndarray[Any, Any]:
    alpha = np.full((size[1], size[0]), 255, np.uint8)
    alpha[10:20, 30:40] = 0
    return alpha


def edit(service: Service, images: list[bytes], *masks: bytes, **fields: Any) -> Call:
    fields = {"prompt": "a", "seed": 1, **fields}
    return read_call(service, EDITS, fields, {"image": images, "mask": list(masks)})


def pixels_of(request: Request, field: str) -> Any:
    found = getattr(request, field)
    assert isinstance(found, Picture)
    return found.pixels


def test_a_generation_is_the_engines_request(service: Service, engine: Engine) -> None:
    fields = {"prompt": "a", "seed": 3, "n": 2, "size": "64x128", "cfg_scale": 2.0, "steps": 4}
    call = read_call(service, GENERATIONS, {**fields, "negative_prompt": "b", "sampler": "euler"})
    wanted = engine.request(
        "a", "b", seed=3, batch_size=2, width=64, height=128, guidance_scale=2.0, steps=4,
        sampler="euler",
    )  # fmt: skip
    assert call.count == 1 and call.bundle == "demo"
    assert call.request(0) == wanted


@pytest.mark.parametrize(("quality", "factor"), [("low", 0.5), ("hd", 1.5), ("max", 2.0)])
def test_quality_is_a_number_of_steps(
    service: Service, engine: Engine, quality: str, factor: float
) -> None:
    call = read_call(service, GENERATIONS, {"prompt": "a", "quality": quality})
    assert call.request(0).steps == round(engine.bundle.manifest.defaults.steps * factor)


def test_partial_pictures_are_of_one(service: Service) -> None:
    fields = {"prompt": "a", "n": 2, "stream": True, "partial_images": 1}
    with pytest.raises(ConfigError, match="partial_images: 1"):
        read_call(service, GENERATIONS, fields).request(0)


def test_unknown_fields_are_refused_by_name(service: Service) -> None:
    with pytest.raises(ConfigError, match=r"'stepz'.*Did you mean steps"):
        read_call(service, GENERATIONS, {"prompt": "a", "stepz": 3})
    with pytest.raises(ConfigError, match="prompt: it is missing"):
        read_call(service, GENERATIONS, {})


def test_what_is_transparent_in_the_mask_may_change(service: Service, engine: Engine) -> None:
    content = picture()
    request = edit(service, [content], picture(alpha=hole())).request(0)
    wanted = np.where(hole() == 0, 255, 0).astype(np.uint8)
    assert (pixels_of(request, "mask")[..., 0] == wanted).all()
    assert request == engine.request("a", image=content, mask=wanted, strength=1.0, seed=1)


def test_half_transparent_parts_change_by_half(service: Service) -> None:
    request = edit(service, [picture()], picture(alpha=np.full((64, 64), 128))).request(0)
    assert (pixels_of(request, "mask") == 127).all()


def test_a_pictures_own_transparency_is_its_mask(service: Service) -> None:
    request = edit(service, [picture(alpha=hole())]).request(0)
    assert (pixels_of(request, "mask")[..., 0] == 255 - hole()).all()
    assert request.strength == 1.0
    # One that is nowhere fully transparent is laid on a colour.
    assert edit(service, [picture(alpha=np.full((64, 64), 200))]).request(0).mask is None


def test_without_a_mask_all_of_it_changes_by_half_and_more(service: Service) -> None:
    request = edit(service, [picture()]).request(0)
    assert (request.mask, request.strength) == (None, 0.75)
    assert edit(service, [picture()], strength=0.25).request(0).strength == 0.25


@pytest.mark.parametrize(("masked", "strength"), [(False, 0.5), (True, 0.75)])
def test_high_fidelity_keeps_more(service: Service, masked: bool, strength: float) -> None:
    masks = [picture(alpha=hole())] if masked else []
    call = edit(service, [picture()], *masks, input_fidelity="high")
    assert call.request(0).strength == strength
    with pytest.raises(ConfigError, match="input_fidelity: 'high'"):
        edit(service, [picture(alpha=hole())], input_fidelity="high").request(0)


def test_each_picture_of_a_list_is_edited_and_the_mask_is_the_firsts(service: Service) -> None:
    images = [picture(), picture((128, 64)), picture(alpha=hole())]
    call = edit(service, images, picture(alpha=hole()), n=2, mask_blur=1.0)
    first, second, third = (call.request(number) for number in range(call.count))
    assert first.mask is not None and first.mask_blur == 1.0 and first.batch_size == 2
    assert second.mask is None and (second.width, second.height) == (128, 64)
    assert third.mask is not None and third.image is not None


def test_a_later_picture_is_refused_before_the_first_is_edited(service: Service) -> None:
    with pytest.raises(ConfigError, match=r"^image\[1\]: the content is no picture"):
        edit(service, [picture(), b"no picture"])
    with pytest.raises(ConfigError, match="image: '4 pictures with 2 results each'"):
        edit(service, [picture()] * 4, n=2)
    with pytest.raises(ConfigError, match=r"image: '7 pictures'"):
        edit(service, [picture()] * 7)


def test_a_size_of_other_proportions_cuts_and_does_not_squeeze(service: Service) -> None:
    request = edit(service, [picture((128, 64))], size="64x64").request(0)
    assert (request.width, request.height, request.resize) == (64, 64, "crop")
    asked = edit(service, [picture((128, 64))], size="64x64", resize="fill").request(0)
    assert asked.resize == "fill"


def test_outpainting_has_no_mask_of_its_own(service: Service) -> None:
    request = edit(service, [picture(alpha=hole())], outpaint={"all": 64}).request(0)
    assert request.mask is None and request.outpaint is not None


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        ([], [], "image: it is missing"),
        ([b""], [], "image: the content is no picture"),
        ([picture()], [picture()], "mask: 'a picture without transparent parts'"),
        ([picture()], [picture((64, 128), hole((64, 128)))], "mask: '64x128 pixels'"),
        ([picture()], [b"x"], "mask: the content is no picture"),
        ([picture()], [picture(alpha=hole())] * 2, "mask: '2 pictures'"),
    ],
)
def test_pictures_that_are_none(
    service: Service, images: list[bytes], masks: list[bytes], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        edit(service, images, *masks).request(0)


def test_pictures_of_more_pixels_than_are_taken_are_not_decoded(engine: Engine) -> None:
    small = Service({"demo": engine}, limits=Limits(max_picture_pixels=64 * 63))
    with pytest.raises(ConfigError, match=r"image: '64x64'.*at most 4032 pixels"):
        edit(small, [picture()]).request(0)
    with pytest.raises(ConfigError, match=r"mask: '64x64'.*at most 4032 pixels"):
        edit(small, [picture((32, 32))], picture(alpha=hole())).request(0)


def test_a_variation_is_the_picture_without_a_prompt(service: Service) -> None:
    call = read_call(service, VARIATIONS, {"seed": 1}, {"image": [picture(alpha=hole())]})
    request = call.request(0)
    assert (request.prompt, request.strength, request.mask) == ("", 0.6, None)
    for pictures, said in (
        ({"image": [picture()] * 2}, "image: '2 pictures'"),
        ({"image": [picture()], "mask": [picture()]}, "mask: '1 pictures'.*none for variations"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_call(service, VARIATIONS, {}, pictures)


def test_markup_and_texts_in_place_of_pictures_are_refused(service: Service) -> None:
    with pytest.raises(ConfigError, match="markup: "):
        read_call(service, EDITS, {"prompt": "a"}, {"image": [picture()], "markup": [picture()]})
    with pytest.raises(ConfigError, match="mask: send it as a part"):
        read_call(service, EDITS, {"prompt": "a", "mask": "x"}, {"image": [picture()]})


def test_models_are_bundles_and_checkpoints(service: Service, engine: Engine) -> None:
    assert list(models(service)) == ["demo", "style"]
    assert bundle_and_model(service, None, None) == ("demo", None)
    assert bundle_and_model(service, "demo", None) == ("demo", None)
    assert bundle_and_model(service, "style", "demo") == ("demo", "style")
    assert bundle_and_model(service, "bundle", None) == ("demo", "bundle")
    assert bundle_and_model(service, {"style": 1.0}, None) == ("demo", {"style": 1.0})
    told = model_object("demo", engine.bundle.root)
    assert told["object"] == "model" and told["created"] > 0
    assert model_object("gone", Path("/nowhere"))["created"] == 0


@pytest.mark.parametrize("name", ["dall-e-3", "gpt-image-1", "", "../style", "style.safetensors"])
def test_models_that_are_not_there_are_not_found(service: Service, name: str) -> None:
    with pytest.raises(HTTPError, match=r"is not a model .*has demo, style\.") as e:
        bundle_and_model(service, name, None)
    assert (e.value.status, e.value.kind, e.value.field) == (404, "model_not_found", "model")


@pytest.mark.parametrize(("model", "bundle"), [(3, None), (None, "other"), (None, 3)])
def test_models_that_are_no_names(service: Service, model: Any, bundle: Any) -> None:
    with pytest.raises(ConfigError):
        bundle_and_model(service, model, bundle)


def test_a_checkpoint_that_is_none_is_refused(service: Service) -> None:
    call = read_call(service, GENERATIONS, {"prompt": "a", "model": "style"})
    with pytest.raises(CheckpointError, match="style"):
        service._prepared(call.engine, call.request(0))
