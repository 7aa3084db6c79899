"""Batches: each a function of its number; latents kept as mean and deviation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_architectures import TINY
from support.tuning import pictures
from tolerances import assert_close

from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.vae import AutoencoderKL
from sdengine.training.loop import Draw
from sdengine.training.tuning.buckets import place
from sdengine.training.tuning.dataset import Arrangement, Dataset
from sdengine.training.tuning.latent_cache import LatentCache
from sdengine.training.tuning.pictures import find_examples, read_pixels


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY["tiny"].vae).eval()


def dataset(folder: Path, vae: AutoencoderKL, data: Path | None = None, **changes: Any) -> Dataset:
    data = data or pictures(folder / "data", [(64, 64)] * 3 + [(96, 64)] * 2)
    arrangement: dict[str, Any] = {"resolution": 64, "step": 8, "batch": 2, **changes}
    cache = LatentCache(folder / "latents", vae, "a hash")
    return Dataset(find_examples(data), cache, Arrangement(**arrangement))


def test_every_epoch_shows_every_picture_as_often_as_asked(
    tmp_path: Path, vae: AutoencoderKL
) -> None:
    found = dataset(tmp_path, vae, repeats=3)
    per_epoch = found.batches_per_epoch
    assert per_epoch == 5 + 3  # nine of one size and six of another, by twos
    orders = []
    for epoch in range(2):
        captions = [
            caption
            for number in range(epoch * per_epoch, (epoch + 1) * per_epoch)
            for caption in found.batch(number, Draw.at(0, number)).captions
        ]
        assert Counter(captions) == {f"a red circle, number {i}": 3 for i in range(5)}
        orders.append(captions)
    assert orders[0] != orders[1]


def test_batches_are_functions_of_their_number(tmp_path: Path, vae: AutoencoderKL) -> None:
    first = dataset(tmp_path, vae, mirror=True, dropout=0.3)
    second = dataset(tmp_path, vae, tmp_path / "data", mirror=True, dropout=0.3)
    for number in (11, 3, 7):
        one, two = (d.batch(number, Draw.at(0, number)) for d in (first, second))
        assert torch.equal(one.latents, two.latents) and one.captions == two.captions
        assert len({*map(tuple, one.sizes.tolist())}) >= 1
        assert one.latents.shape[2:] == tuple(int(s) // 8 for s in one.sizes[0, 4:])


def test_latents_are_drawn_anew_from_mean_and_deviation(tmp_path: Path, vae: AutoencoderKL) -> None:
    data = pictures(tmp_path / "one", [(64, 64)])
    found = dataset(tmp_path, vae, data, batch=1)
    pixels, _ = read_pixels("data", data / "0.png")
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        mean, log_variance = vae.encode(x).chunk(2, dim=1)
    drawn = torch.cat([found.batch(n, Draw.at(0, n)).latents for n in range(400)])
    deviation = (0.5 * log_variance).exp()[0]
    error = (drawn.mean(dim=0) - mean[0]) / deviation
    assert error.abs().max() < 6 / 20  # six deviations of a mean of 400
    assert_close("deviation of latents", "float32", drawn.std(dim=0), deviation)


def test_mirror_images_have_latents_of_their_own(tmp_path: Path, vae: AutoencoderKL) -> None:
    data = pictures(tmp_path / "one", [(64, 64)])
    found = dataset(tmp_path, vae, data, mirror=True)
    plain, mirrored = (found.cache.read(key)[0] for key in found.items[0].keys)
    pixels, _ = read_pixels("data", data / "0.png")
    x = torch.from_numpy(np.array(pixels[:, ::-1])).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        wanted = vae.encode(x).chunk(2, dim=1)[0][0]
    assert torch.equal(mirrored, wanted)
    assert not torch.allclose(mirrored, plain.flip(2))


def test_what_is_known_is_not_encoded_again(
    tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path, vae)
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "renamed.png")
    calls = []
    encode = vae.encode

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return encode(x)

    monkeypatch.setattr(vae, "encode", counted)
    dataset(tmp_path, vae, tmp_path / "data")
    assert not calls  # the content names it
    Image.new("RGB", (64, 64), "red").save(tmp_path / "data" / "renamed.png")
    dataset(tmp_path, vae, tmp_path / "data")
    assert len(calls) == 1
    found = dataset(tmp_path, vae, tmp_path / "data")
    (tmp_path / "latents" / f"{found.items[0].keys[0]}.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"damaged.*Delete it"):
        for number in range(3):
            found.batch(number, Draw.at(0, number))


def test_captions_are_made_of_templates_or_left_out(tmp_path: Path, vae: AutoencoderKL) -> None:
    templates = ("a {name} and {caption}", "one {name}")
    found = dataset(tmp_path, vae, templates=templates, name="cat {x}", dropout=0.25, batch=1)
    seen = Counter(found.batch(number, Draw.at(0, number)).captions[0] for number in range(400))
    assert set(seen) <= found.captions
    assert "one cat {x}" in seen and "a cat {x} and a red circle, number 1" in seen
    assert 60 < seen[""] < 140


def test_sizes_are_what_sdxl_is_told(tmp_path: Path, vae: AutoencoderKL) -> None:
    data = pictures(tmp_path / "wide", [(192, 64)])
    found = dataset(tmp_path, vae, data, batch=1, buckets=False)
    batch = found.batch(0, Draw.at(0, 0))
    assert batch.sizes.tolist() == [[64, 192, 0, 64, 64, 64]]
    assert batch.hints is None


def test_hints_follow_their_pictures(tmp_path: Path, vae: AutoencoderKL) -> None:
    data = pictures(tmp_path / "data", [(96, 64), (64, 64)])
    found = dataset(tmp_path, vae, data, mirror=True, preprocessor="canny")
    for number in range(8):
        hints = found.batch(number, Draw.at(0, number)).hints
        assert hints is not None and hints.min() >= 0 and hints.max() <= 1 and hints.any()
        plain = [found._hint(i) for i in range(2) if found._hint(i).shape == hints.shape[1:]]
        assert any(torch.equal(h, p) or torch.equal(h, p.flip(2)) for h in hints for p in plain)
    own = pictures(tmp_path / "hints", [(96, 64), (64, 64)], captions=False)
    examples = find_examples(data, own)
    given = Dataset(examples, found.cache, Arrangement(64, 8, batch=1))
    pixels, _ = read_pixels("hints", own / "1.png")
    assert np.array_equal(given.hint_picture(1), place(pixels, (64, 64)).pixels)
    Image.new("RGB", (32, 32)).save(own / "1.png")
    with pytest.raises(ConfigError, match=r"hints: '1\.png' is 32x32; its picture '1\.png' is 64"):
        Dataset(examples, found.cache, Arrangement(64, 8))
