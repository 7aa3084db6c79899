"""Hostile files of textual inversions: a typed error or vectors, and nothing else."""

from __future__ import annotations

import base64
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.embeddings import MAX_VECTORS, ONLY

FILES = ("web-ui.pt", "old.bin", "pair.safetensors", "text.png")
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let an allocation of what a header merely claims fail at once."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = torch.linspace(-1, 1, 16).reshape(2, 8)
    nested = {"string_to_param": {"*": vectors}, "string_to_token": {"*": 265}, "name": "x"}
    torch.save(nested, folder / FILES[0])
    parameters = {"string_to_param": torch.nn.ParameterDict({"*": vectors.clone()})}
    torch.save(parameters, folder / FILES[1], _use_new_zipfile_serialization=False)
    save_file({"clip_l": vectors, "clip_g": vectors.clone()}, folder / FILES[2])
    text = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}})
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(text.encode()).decode())
    Image.new("RGB", (8, 8)).save(folder / FILES[3], pnginfo=info)
    return {name: (folder / name).read_bytes() for name in FILES}


def read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = read_embeddings(path)
    except ConfigError:
        return
    for embedding in found:
        assert embedding.parts.keys() <= {ONLY, "clip_l", "clip_g", "clip_h"}
        for vectors in embedding.parts.values():
            assert vectors.ndim == 2 and 0 < len(vectors) <= MAX_VECTORS


@SETTINGS
@given(name=st.sampled_from(FILES), data=st.data())
def test_changed_bytes(tmp_path: Path, contents: dict[str, bytes], name: str, data: Any) -> None:
    content = bytearray(contents[name])
    places = st.integers(0, min(len(content) - 1, 1500))
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    read(tmp_path / name, bytes(content))


@SETTINGS
@given(name=st.sampled_from(FILES), share=st.floats(0, 1))
def test_cut_files(tmp_path: Path, contents: dict[str, bytes], name: str, share: float) -> None:
    content = contents[name]
    read(tmp_path / name, content[: int(len(content) * share)])


def test_the_files_are_sound(tmp_path: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (found,) = read_embeddings(tmp_path / name)
        assert found.num_vectors == 2
