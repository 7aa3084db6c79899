"""Textual inversions through the engine: requests, folders, results, metadata, replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.tiny_bundle import HIDDEN, make_tiny_bundle

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.metadata import CHUNK, read_metadata
from sdengine.images.result import Result
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.embeddings import Embedding
from sdengine.loading import load
from sdengine.request.request import Request

OPTIONS: dict[str, Any] = {"seed": 3, "steps": 2, "sampler": "euler"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


def save(path: Path, scale: float = 5.0, count: int = 2, width: int = HIDDEN) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"<x>": torch.full((count, width), scale)}, path)
    return path


def same(one: Result, other: Result) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.arrays, other.arrays, strict=True))


def test_a_request_brings_its_own(engine: Engine, tmp_path: Path) -> None:
    path = save(tmp_path / "my-cat.pt")
    plain = engine.generate("a my-cat", "b", **OPTIONS)
    found = engine.generate("a My-Cat", "b", embeddings=path, **OPTIONS)
    assert not same(plain, found) and found.timings.load_ms == 0
    (used,) = found.request.embeddings or ()
    assert found.embeddings == ((used,),) and used.name == "my-cat" and used.file == str(path)
    assert plain.request.embeddings is None and "TI hashes" not in plain.parameters()
    assert f'TI hashes: "my-cat: {used.sha256[:10]}"' in found.parameters()
    # Nothing of it stays behind, and a prompt without the name is what it was, to the bit.
    assert same(engine.generate("a my-cat", "b", **OPTIONS), plain)
    beside = engine.generate("a my cat", "b", embeddings=[path], **OPTIONS)
    assert same(beside, engine.generate("a my cat", "b", **OPTIONS))
    assert beside.warnings == (
        "embeddings: 'my-cat' is named in no prompt that is read, so it has no effect. Write its "
        "name where it shall stand; beside a sign such as > or - leave a space.",
    )
    assert beside.request.embeddings == ()
    renamed = engine.generate("a toy", "b", embeddings={"toy": path}, **OPTIONS)
    assert same(renamed, found)
    negative = engine.generate("a", "my-cat", embeddings=[path], **OPTIONS)
    assert not same(negative, engine.generate("a", "my-cat", **OPTIONS))


def test_a_changed_file_is_no_kept_conditioning(engine: Engine, tmp_path: Path) -> None:
    results = [
        engine.generate("my-cat", embeddings=save(tmp_path / "my-cat.pt", scale), **OPTIONS)
        for scale in (5.0, -5.0, 5.0)
    ]
    assert not same(results[0], results[1]) and same(results[0], results[2])


def test_two_of_one_file_by_one_name_are_not_the_same(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    vectors = {"warm": torch.full((1, HIDDEN), 5.0), "cold": torch.full((1, HIDDEN), -5.0)}
    save_file({f"bundle_emb.{n}.emb_params": v for n, v in vectors.items()}, path)
    of_file = {one.name: one for one in read_embeddings(path)}
    assert of_file["warm"].sha256 == of_file["cold"].sha256
    makes = [
        engine.generate("a toy", embeddings={"toy": of_file[name]}, **OPTIONS)
        for name in ("warm", "cold", "warm")
    ]
    assert not same(makes[0], makes[1]) and same(makes[0], makes[2])
    own = [Embedding("toy", one.sha256, one.parts) for one in of_file.values()]
    assert own[0] != own[1] and own[0] == Embedding("toy", own[0].sha256)
    with pytest.raises(ConfigError, match="both called 'toy'"):
        Request("toy", embeddings=tuple(own))


def test_a_folder_is_there_from_the_start(tiny: Path, tmp_path: Path) -> None:
    save(tmp_path / "my-cat.pt")
    wide = save(tmp_path / "my-dog.pt", width=768)
    with load(tiny, precision="fp32", threads=1, embeddings=tmp_path) as engine:
        assert [one.name for one in engine.embeddings] == ["my-cat"]
        assert list(engine.skipped_embeddings) == [str(wide)]
        found = engine.generate("my-cat", **OPTIONS)
        assert found.request.embeddings == engine.embeddings
        alone = engine.generate("my-cat", embeddings=tmp_path / "my-cat.pt", **OPTIONS)
        assert same(found, alone)
        # A request that has its own sees no others.
        plain = engine.generate("my-cat", embeddings=[], **OPTIONS)
        assert not same(found, plain) and plain.request.embeddings == ()
        (warning,) = engine.generate("a MY-DOG", **OPTIONS).warnings
        assert warning.startswith("prompt: 'my-dog' is read as text, because its embedding is of")
        assert "was made for Stable Diffusion 1" in warning
        assert engine.generate("a cat", **OPTIONS).warnings == ()
        engine.add_embeddings(save(tmp_path / "further" / "my-cat.bin", -5.0))
        assert not same(engine.generate("my-cat", **OPTIONS), found)
    with pytest.raises(ConfigError, match="It was made for Stable Diffusion 1"):
        load(tiny, embeddings=wide)


def test_a_request_with_files_of_others_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'wide' of '.*wide.pt' has vectors \[2, 1024\]"):
        engine.generate("a", embeddings=save(tmp_path / "wide.pt", width=1024), **OPTIONS)
    with pytest.raises(ConfigError, match="embeddings: 3 is not accepted"):
        engine.generate("a", embeddings=[3], **OPTIONS)
    with pytest.raises(ConfigError, match="makes the files of a folder available"):
        engine.generate("a", embeddings=tmp_path, **OPTIONS)
    save(tmp_path / "a" / "x.pt", 1.0), save(tmp_path / "b" / "x.pt", 2.0)
    with pytest.raises(ConfigError, match="are both called 'x'"):
        engine.generate("a", embeddings=[tmp_path / "a/x.pt", tmp_path / "b/x.pt"], **OPTIONS)


def test_a_result_is_made_again_with_the_file(engine: Engine, tmp_path: Path) -> None:
    path = save(tmp_path / "my-cat.pt")
    result = engine.generate("my-cat", embeddings=path, **OPTIONS)
    assert same(engine.run(result.request), result)
    read = Request.from_json(result.request.to_json())
    with pytest.raises(ConfigError, match=r"'my-cat', with SHA-256 [0-9a-f]{64}, is only"):
        engine.run(read)
    engine.add_embeddings(*sdengine.read_embeddings(path, "called otherwise"))
    again = engine.run(read)
    assert same(again, result) and again.request == result.request
    (file,) = result.save(tmp_path / "out.png")
    metadata = read_metadata(file)
    assert metadata.embeddings == (("my-cat", result.embeddings[0][0].sha256),)
    assert same(engine.generate(**metadata.request_fields()), result)


def test_each_image_of_a_batch_names_its_own(engine: Engine, tmp_path: Path) -> None:
    from PIL import Image

    cat, dog = save(tmp_path / "my-cat.pt"), save(tmp_path / "my-dog.pt", 2.0)
    engine.add_embeddings(cat, dog)
    batch = engine.generate(["my-cat", "a", "[my-cat:my-dog:1]"], **OPTIONS)
    names = [[one.name for one in used] for used in batch.embeddings]
    assert names == [["my-cat"], [], ["my-cat", "my-dog"]]
    for index, file in enumerate(batch.save(tmp_path / "out.png")):
        with Image.open(file) as image:
            records = json.loads(image.info[CHUNK])["request"]["embeddings"]
            assert ("TI hashes" in image.info["parameters"]) == bool(records)
        assert [record["name"] for record in records] == names[index]
        again = engine.generate(**read_metadata(file).request_fields())
        (alone,) = again.save(tmp_path / f"alone-{index}.png")
        with Image.open(alone) as image, Image.open(file) as before:
            assert image.info[CHUNK] == before.info[CHUNK]


def test_an_xl_pair_reaches_both_encoders(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "xl", kind="sdxl")
    latents = []
    with load(bundle, precision="fp32", threads=1) as engine:
        for first, second in ((1.0, 1.0), (4.0, 1.0), (1.0, 6.0)):
            ones = torch.ones(2, HIDDEN)
            pair = {"clip_l": first * ones, "clip_g": second * ones}
            torch.save(pair, tmp_path / "my-cat.pt")
            steps = engine.stream("my-cat", embeddings=tmp_path / "my-cat.pt", **OPTIONS)
            latents.append(np.array(next(iter(steps)).latents))
        with pytest.raises(ConfigError, match=r"text_encoder and \[n,8\] for text_encoder_2"):
            engine.generate("x", embeddings=save(tmp_path / "half.pt"), **OPTIONS)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(latents[a] - latents[b]).max() > 0.1


def test_a_value_is_its_name_and_hash() -> None:
    one = Embedding("a", "0" * 64, {"": np.ones((1, 8), np.float32)}, "a.pt")
    assert one == Embedding("a", "0" * 64) and hash(one) == hash(Embedding("a", "0" * 64))
    assert one != Embedding("b", "0" * 64) and one != Embedding("a", "1" * 64)
    assert one != "a" and repr(one) == "Embedding('a', 000000000000)"
    with pytest.raises(ValueError, match="read-only"):
        one.parts[""][0, 0] = 2


def test_the_second_pass_may_name_more(engine: Engine, tmp_path: Path) -> None:
    path = save(tmp_path / "my-cat.pt")
    width, height = engine.bundle.manifest.resolutions[0]
    twice: dict[str, Any] = {**OPTIONS, "width": width, "height": height, "hires": (width, height)}
    found = engine.generate("a [b:my-cat:3]", embeddings=path, hires_steps=5, **twice)
    (used,) = found.request.embeddings or ()
    assert used.name == "my-cat" and found.warnings == ()
    assert found.embeddings == ((used,),) and "TI hashes" in found.parameters()
    assert same(engine.run(found.request), found)
    assert not same(engine.generate("a b", hires_steps=5, **twice), found)
