"""Image embeddings: arrays and files, the shapes that adapters read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.ip_adapters import HIDDEN, IDENTITY, PROJECTION, make_ip_adapter

from sdengine.errors import ConfigError
from sdengine.inputs.image_embeds import ImageEmbeds, read_image_embeds
from sdengine.inputs.image_projections import Projection, read_projection


def projection(kind: str) -> Projection:
    tensors = make_ip_adapter("tiny", kind)
    own = {
        name.removeprefix("image_proj."): tensor.numpy()
        for name, tensor in tensors.items()
        if name.startswith("image_proj.")
    }
    return read_projection(own)


def read(value: Any) -> ImageEmbeds:
    found = read_image_embeds("ip_adapter.embeds", value)
    assert isinstance(found, ImageEmbeds)
    return found


def test_every_file_gives_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 1, PROJECTION)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", np.asfortranarray(values.astype(np.float64)))
    save_file({"embeds": values}, tmp_path / "c.safetensors")
    torch.save([torch.from_numpy(values)], tmp_path / "d.ipadpt")
    torch.save(torch.from_numpy(values), tmp_path / "e.pt")
    for value in (values, *sorted(tmp_path.iterdir())):
        np.testing.assert_array_equal(read(value).values, values)
    assert read(values) == read(values.copy())
    torch.save([torch.from_numpy(values).to(torch.bfloat16)], tmp_path / "f.bin")
    np.testing.assert_allclose(read(tmp_path / "f.bin").values, values, rtol=1e-2)


def test_shapes_say_what_is_what() -> None:
    rng = np.random.default_rng(1)
    for kind, one in (("plain", (PROJECTION,)), ("plus", (17, HIDDEN)), ("face_id", (IDENTITY,))):
        values = rng.standard_normal((2, 3, *one)).astype(np.float32)
        positive, negative = read(values).rows("x", projection(kind))
        np.testing.assert_array_equal(positive, values[1])
        np.testing.assert_array_equal(negative, values[0])
        for given in (values[1:], values[1]):
            positive, negative = read(given).rows("x", projection(kind))
            np.testing.assert_array_equal(positive, values[1])
            assert negative is None
        positive, _ = read(values[1, 2]).rows("x", projection(kind))
        np.testing.assert_array_equal(positive, values[1, 2:])
    faces = rng.standard_normal((2, 3, 1, IDENTITY)).astype(np.float32)  # as diffusers keeps them
    positive, negative = read(faces).rows("x", projection("face_id"))
    np.testing.assert_array_equal(positive, faces[1, :, 0])
    assert negative is not None


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("plain", (PROJECTION + 1,)),
        ("plain", (3, 2, PROJECTION)),
        ("plain", (2, 1, 1, PROJECTION)),
        ("plain", (65, PROJECTION)),
        ("plus", (HIDDEN,)),
        ("plus", (3, 1, 17, HIDDEN)),
    ],
)
def test_other_shapes_are_refused(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^x: .*expected .*"):
        read(np.zeros(shape, np.float32)).rows("x", projection(kind))


def test_what_is_no_embedding_is_refused(tmp_path: Path) -> None:
    good = np.ones((1, PROJECTION), np.float32)
    np.save(tmp_path / "good.npy", good)
    content = (tmp_path / "good.npy").read_bytes()
    files: dict[str, Any] = {
        "claims.npy": content.replace(b"(1, 24)", b"(9, 24)"),
        "cut.npy": content[:-4],
        "magic.npy": b"x" * 200,
        "other.txt": content,
        "cut.safetensors": content,
        "odd.pt": b"\x80\x02c__builtin__\neval\nq\x00.",
    }
    for name, one in files.items():
        (tmp_path / name).write_bytes(one)
        with pytest.raises(ConfigError, match=r"^ip_adapter\.embeds: "):
            read(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", good * np.nan)
    save_file({"a": good, "b": good}, tmp_path / "two.safetensors")
    torch.save([torch.ones(3), torch.ones(3)], tmp_path / "two.ipadpt")
    odd: list[Any] = ["objects.npy", "nan.npy", "two.safetensors", "two.ipadpt", "none.npy"]
    for value in (
        *(tmp_path / name for name in odd), good.astype(np.uint16), good.astype(int), 3,
        np.float32(1), np.zeros((0, 3), np.float32), np.zeros((1,) * 5, np.float32),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"^ip_adapter\.embeds: "):
            read(value)
