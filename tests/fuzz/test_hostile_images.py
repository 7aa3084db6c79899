"""Images that lie about how they were made: only SdengineError may come out of reading them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdengine.errors import SdengineError
from sdengine.images.metadata import Metadata, read_metadata
from sdengine.images.provenance import Provenance
from sdengine.images.result import Result
from sdengine.images.timings import Timings
from sdengine.request.keywords import given_fields
from sdengine.request.request import Request

SIGNATURE = b"\x89PNG\r\n\x1a\n"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**40)
    | st.floats()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Clip skip", "Eta", "RNG"),
    *("Variation seed", "Variation seed strength", "Seed resize from", "Emphasis", "Model hash"),
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_text(key: str, text: str) -> bytes:
    data = key.encode() + b"\0\0\0\0\0" + text.encode("utf-8", "replace")
    return SIGNATURE + chunk(b"iTXt", data) + chunk(b"IEND", b"")


def example() -> Result:
    request = Request("a", "b", seed=3, variation_seed=4, variation_strength=0.5, crop=(8, 8))
    arrays = (np.zeros((8, 8, 3), np.uint8),)
    provenance = Provenance("openvino", "bf16", model="demo", model_hash="a" * 64)
    return Result(arrays, request, Timings({}, 0.0), provenance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def image(folder: Path) -> bytes:
    return example().save(folder / "good.png")[0].read_bytes()


def read(folder: Path, content: bytes) -> Metadata | None:
    """Read the file; whatever comes back is a request that can be made."""
    (folder / "a.png").write_bytes(content)
    try:
        found = read_metadata(folder / "a.png")
    except SdengineError as error:
        assert str(error).startswith("from: ")
        return None
    fields = found.request_fields()
    texts = fields.pop("prompt"), fields.pop("negative_prompt", "")
    Request(**given_fields(*texts, fields))
    assert all(key.isprintable() for key in found.not_understood)
    return found


def test_the_unharmed_image_is_read(folder: Path, image: bytes) -> None:
    assert read(folder, image) is not None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_byte_changed(folder: Path, image: bytes, data: st.DataObject) -> None:
    harmed = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        harmed[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    read(folder, bytes(harmed))


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 10_000), tail=st.binary(max_size=40))
def test_cut_and_continued(folder: Path, image: bytes, length: int, tail: bytes) -> None:
    read(folder, image[:length] + tail)


# What follows the key: as it would begin if well made, then anything.
TEXTS = st.builds(
    bytes.__add__, st.sampled_from([b"", b"\0", b"\0\0\0\0", b"\1\0\0\0"]), st.binary(max_size=40)
)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from([b"tEXt", b"zTXt", b"iTXt"]), text=TEXTS)
def test_any_text_chunk(folder: Path, kind: bytes, text: bytes) -> None:
    content = chunk(kind, b"parameters\0" + text) + chunk(b"IEND", b"")
    read(folder, SIGNATURE + content)


@settings(max_examples=300, deadline=None)
@given(value=JSON_VALUES, data=st.data())
def test_any_value_in_the_json(folder: Path, value: Any, data: st.DataObject) -> None:
    content = json.loads(example_json())
    part = data.draw(st.sampled_from([content, content["request"], content["model"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = value
    read(folder, with_text("sdengine", json.dumps(content)))


@settings(max_examples=100, deadline=None)
@given(value=JSON_VALUES)
def test_any_json(folder: Path, value: Any) -> None:
    assert read(folder, with_text("sdengine", json.dumps(value))) is None


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_parameters(folder: Path, text: str) -> None:
    read(folder, with_text("parameters", text))


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(KEYS) | st.text(max_size=10),
            st.from_regex(r"-?[0-9]{0,25}(x|\.)?[0-9]{0,5}", fullmatch=True) | st.text(max_size=10),
        ),
        max_size=8,
    )
)
def test_any_pairs(folder: Path, pairs: list[tuple[str, str]]) -> None:
    line = "Steps: 5, " + ", ".join(f"{key}: {value}" for key, value in pairs)
    assert read(folder, with_text("parameters", f"a\n{line}")) is not None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "NaN", "{", ""])
def test_json_that_is_none(folder: Path, text: str) -> None:
    assert read(folder, with_text("sdengine", text)) is None


def example_json() -> str:
    from sdengine.images.metadata import describe_image

    return describe_image(example().request, example().provenance)
