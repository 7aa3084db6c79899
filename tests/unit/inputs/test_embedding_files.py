"""Files of textual inversions: every form is read, and what is none or damaged is named."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import read_embedding_folder, read_embeddings
from sdengine.inputs.embedding_pictures import _masks
from sdengine.inputs.embeddings import Embedding
from sdengine.storage.content_hash import sha256_of

VECTORS = torch.linspace(-30, 30, 24).reshape(3, 8)  # far above those of a vocabulary
SECOND = torch.linspace(-1, 1, 36).reshape(3, 12)
ONE = VECTORS[0]


def web_ui(vectors: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "another name",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


def read(path: Path) -> Embedding:
    (found,) = read_embeddings(path)
    assert found.sha256 == sha256_of(path) and found.file == str(path) and found.is_given
    return found


def assert_holds(found: Embedding, **parts: torch.Tensor) -> None:
    assert found.parts.keys() == {name.removeprefix("only") for name in parts}
    for name, expected in parts.items():
        array = found.parts[name.removeprefix("only")]
        assert array.dtype == np.float32 and not array.flags.writeable
        np.testing.assert_array_equal(array, expected.float().numpy())


PICKLED: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {
    "web UI": (web_ui(VECTORS), {"only": VECTORS}),
    "parameter": (web_ui(torch.nn.Parameter(VECTORS)), {"only": VECTORS}),
    "half": (web_ui(VECTORS.half()), {"only": VECTORS.half()}),
    "bfloat16": (web_ui(VECTORS.bfloat16()), {"only": VECTORS.bfloat16()}),
    "double": (web_ui(VECTORS.double()), {"only": VECTORS}),
    "ParameterDict": (
        {**web_ui(0), "string_to_param": torch.nn.ParameterDict({"*": VECTORS.clone()})},
        {"only": VECTORS},
    ),
    "token of a tensor": ({**web_ui(VECTORS), "string_to_token": {"*": torch.tensor(265)}},
                          {"only": VECTORS}),
    "diffusers": ({"<cat-toy>": VECTORS}, {"only": VECTORS}),
    "diffusers, one vector": ({"<cat-toy>": ONE}, {"only": ONE[None]}),
    "params": ({"emb_params": VECTORS}, {"only": VECTORS}),
    "pair": ({"clip_l": VECTORS, "clip_g": SECOND}, {"clip_l": VECTORS, "clip_g": SECOND}),
    "list": ([{"a": VECTORS}], {"only": VECTORS}),
    "list of vectors": ([{"a": ONE}, {"b": VECTORS[1:]}], {"only": VECTORS}),
    "list of a pair": (
        [{"clip_l": VECTORS}, {"clip_g": SECOND}], {"clip_l": VECTORS, "clip_g": SECOND},
    ),
    "list of widths": (
        [{"a": torch.ones(2, 768)}, {"b": torch.ones(2, 1280)}],
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", PICKLED)
def test_pickles(tmp_path: Path, kind: str, legacy: bool) -> None:
    content, expected = PICKLED[kind]
    path = tmp_path / "My Name.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read(path)
    assert found.name == "My Name"
    assert_holds(found, **expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", ["emb_params", "<cat-toy>", "*"])
def test_safetensors(tmp_path: Path, key: str, dtype: torch.dtype) -> None:
    save_file({key: VECTORS.to(dtype)}, tmp_path / "x.safetensors", {"format": "pt"})
    assert_holds(read(tmp_path / "x.safetensors"), only=VECTORS.to(dtype))
    save_file({key: ONE.to(dtype)}, tmp_path / "one.sft")
    assert_holds(read(tmp_path / "one.sft"), only=ONE[None].to(dtype))


def test_safetensors_of_a_pair_and_of_one_named_encoder(tmp_path: Path) -> None:
    save_file({"clip_l": VECTORS, "clip_g": SECOND}, tmp_path / "xl.safetensors")
    assert_holds(read(tmp_path / "xl.safetensors"), clip_l=VECTORS, clip_g=SECOND)
    save_file({"clip_h": VECTORS}, tmp_path / "h.safetensors")
    assert_holds(read(tmp_path / "h.safetensors"), clip_h=VECTORS)


def test_those_that_a_lora_brings(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_mid_block.alpha": torch.tensor(4.0),
        "lora_unet_mid_block.lora_down.weight": torch.ones(4, 8),
        "bundle_emb.first.string_to_param.*": VECTORS,
        "bundle_emb.v1.5 second.clip_l": VECTORS.clone(),
        "bundle_emb.v1.5 second.clip_g": SECOND,
    }
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    first, second = sorted(read_embeddings(path), key=lambda one: one.name)
    assert (first.name, second.name) == ("first", "v1.5 second")
    assert_holds(first, only=VECTORS)
    assert_holds(second, clip_l=VECTORS, clip_g=SECOND)
    with pytest.raises(ConfigError, match="holds 2 embeddings with names of their own, 'first'"):
        read_embeddings(path, "mine")


def as_json(vectors: torch.Tensor) -> str:
    return json.dumps(web_ui({"TORCHTENSOR": vectors.tolist()}))


def with_text(path: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (16, 16), "white").save(path, pnginfo=info)
    return path


def test_text_of_a_png(tmp_path: Path) -> None:
    path = with_text(tmp_path / "x.png", base64.b64encode(as_json(VECTORS).encode()).decode())
    found = read(path)
    assert found.name == "another name"  # pictures carry it
    assert_holds(found, only=VECTORS)
    assert read_embeddings(path, "mine")[0].name == "mine"


def hide(text: str, height: int = 64) -> Image.Image:
    """Hide a text as the web UI does: halves of bytes left and right of a picture."""
    packed = np.frombuffer(zlib.compress(text.encode(), 9), np.uint8)
    count = -(-len(packed) // (3 * height)) * 3 * height
    packed = np.resize(packed, count).reshape(height, -1, 3)
    number, masks = 0, []
    for _ in range(packed.size):
        number = (1664525 * number + 1013904223) % 2**32
        masks.append(number % 255 & 0x0F)
    mask = np.array(masks, np.uint8).reshape(packed.shape)
    shade = np.random.default_rng(0).integers(1, 16, packed.shape, np.uint8) << 4
    low, high = shade | ((packed & 0x0F) ^ mask), shade | ((packed >> 4) ^ mask)
    middle = np.full((height, 40, 3), 200, np.uint8)
    black = np.zeros((height, 1, 3), np.uint8)
    return Image.fromarray(np.concatenate([low, black, middle, black, high], axis=1))


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_pixels_of_a_picture(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    hide(as_json(VECTORS)).save(path, lossless=True)
    found = read(path)
    assert found.name == "another name"
    assert_holds(found, only=VECTORS)


def test_the_generator_is_the_known_one() -> None:
    """Its first numbers modulo 255, by their low four bits, as the web UI lists them."""
    known = [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4, 177, 95, 130, 79, 78]
    assert _masks(len(known)).tolist() == [number & 0x0F for number in known]


def test_pictures_that_are_nothing_more(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "black").save(tmp_path / "black.png")
    striped = np.full((16, 16, 3), 200, np.uint8)
    striped[:, [4, 11]] = 0
    Image.fromarray(striped).save(tmp_path / "striped.png")
    for name in ("black.png", "striped.png"):
        with pytest.raises(ConfigError, match="is a picture that holds no embedding"):
            read_embeddings(tmp_path / name)
    assert read_embedding_folder(tmp_path) == ([], [])


def saved(content: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        torch.save(content, folder / "x.pt")
        return folder / "x.pt"

    return save


def as_text(text: bytes | str) -> Callable[[Path], Path]:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: with_text(folder / "x.png", base64.b64encode(data).decode())


def as_bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def hidden(text: str) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        hide(text).save(folder / "x.png")
        return folder / "x.png"

    return save


def tensors(**content: torch.Tensor) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        save_file(content, folder / "x.safetensors")
        return folder / "x.safetensors"

    return save


NAN = VECTORS.clone()
NAN[1, 3] = float("nan")
NUMBERS = '{"string_to_param": {"*": {"TORCHTENSOR": %s}}}'
LAUGHING: list[Any] = []
for _ in range(3):
    LAUGHING = [LAUGHING] * 1000
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "NaN": (saved(web_ui(NAN)), r"tensor '\*' is float32 \[3, 8\] and holds NaN or infinity"),
    "infinite in fp32": (saved({"a": VECTORS.double() * 1e300}), "float64.*holds NaN or infinity"),
    "76 vectors": (saved({"a": torch.ones(76, 8)}), r"\[76, 8\]: 76 vectors; at most 75"),
    "no vector": (saved({"a": torch.ones(0, 8)}), r"is float32 \[0, 8\]; expected \[vectors"),
    "a number": (saved({"a": torch.tensor(1.0)}), r"is float32 \[\]; expected \[vectors"),
    "three axes": (saved({"a": torch.ones(1, 2, 8)}), r"is float32 \[1, 2, 8\]; expected"),
    "integers": (saved({"a": torch.ones(2, 8).long()}), r"is int64 \[2, 8\]; expected numbers"),
    "unequal pair": (
        tensors(clip_l=VECTORS, clip_g=SECOND[:2]),
        r"clip_l is \[3, 8\] and clip_g is \[2, 12\]; both text encoders must have equally many",
    ),
    "output vectors": (
        tensors(clip_l=VECTORS, clip_l_out=VECTORS.clone()),
        "tensor 'clip_l_out' is added to what a text encoder puts out, which is not done here",
    ),
    "output vectors of a LoRA": (
        tensors(**{"bundle_emb.cat.clip_l": VECTORS, "bundle_emb.cat.clip_l_out": VECTORS.clone()}),
        "embedding 'cat': tensor 'clip_l_out' is added",
    ),
    "a LoRA": (tensors(a=VECTORS, b=SECOND), "holds 2 tensors, 'a', 'b'; an embedding has string"),
    "two words": (saved({"<a>": ONE, "<b>": ONE}), "holds 2 tensors, '<a>', '<b>'"),
    "pieces": (saved([{"a": ONE}, {"a": torch.ones(2, 3)}]), "holds 2 tensors"),
    "nothing": (saved({"step": 3}), "holds no embedding; expected tensors under string_to_param"),
    "a text": (saved("x"), "holds no embedding"),
    "a call": (
        lambda folder: as_bytes("x.bin", b"")(folder).parent / _attack(folder),
        "calls 'os.system'|calls 'posix.system'",
    ),
    "laughing lists": (saved(LAUGHING), "more than 100000 entries"),
    "no pickle": (as_bytes("x.pt", b"hello"), "not a file of torch.save"),
    "no safetensors": (as_bytes("x.safetensors", b"\xff" * 64), "a header of 18446744073709551615"),
    "no picture": (as_bytes("x.png", b"hello"), "is no picture that can be read"),
    "no ending": (as_bytes("x.onnx", b""), r"does not end as a file of an embedding; accepted are"),
    "missing": (lambda folder: folder / "x.pt", "x.pt' cannot be read: No such file or directory"),
    "missing folder": (lambda folder: folder / "x", "x' cannot be read: No such file or directory"),
    "folder": (lambda folder: folder, "is a folder.*--embeddings"),
    "LoRA": (
        tensors(**{"lora_unet_x.lora_up.weight": ONE, "lora_unet_x.lora_down.weight": SECOND}),
        "It is a LoRA: give it with --lora",
    ),
    "no base64": (lambda folder: with_text(folder / "x.png", "&&&"), "embedding in it is damaged"),
    "no JSON": (as_text("{"), "embedding in it is damaged"),
    "no object": (as_text("[1]"), "embedding in it is damaged: not a JSON object"),
    "deep JSON": (as_text("[" * 100_000), "embedding in it is damaged"),
    "much JSON": (as_text(" " * (9 << 20)), "more than 8 MiB of JSON"),
    "a JSON bomb": (hidden(" " * (9 << 20)), "more than 8 MiB of JSON"),
    "ragged": (as_text(NUMBERS % "[[1, 2], [3]]"), "a tensor is no table of numbers"),
    "texts": (as_text(NUMBERS % '[["1", "2"]]'), "a tensor holds what is no number"),
    "NaN in JSON": (as_text(NUMBERS % "[[1, NaN]]"), "holds NaN or infinity"),
    "deep tensor": (as_text(NUMBERS % ("[" * 99 + "1" + "]" * 99)), "damaged"),
}  # fmt: skip


def _attack(folder: Path) -> str:
    class Attack:
        def __reduce__(self) -> Any:
            import os

            return os.system, ("touch pwned",)

    with open(folder / "y.pt", "wb") as file:
        torch.save({"a": Attack()}, file, pickle_module=pickle)
    return "y.pt"


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_embedding_is_named(tmp_path: Path, kind: str) -> None:
    write, message = BAD[kind]
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_embeddings(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [(" ", "it is empty"), ("a\nb", "control characters"), ("x" * 201, "201 characters")],
)
def test_names_that_no_prompt_has(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_embeddings(saved({"a": ONE})(tmp_path), name)


def test_a_folder_is_read_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "below" / "further").mkdir(parents=True)
    torch.save({"a": ONE}, tmp_path / "below" / "further" / "deep.PT")
    torch.save({"a": NAN}, tmp_path / "nan.bin")
    save_file({"emb_params": ONE}, tmp_path / "good.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "good.preview.png")
    (tmp_path / "good.png").write_bytes((tmp_path / "good.preview.png").read_bytes())
    (tmp_path / "outside").symlink_to("/")
    found, skipped = read_embedding_folder(tmp_path)
    assert [one.name for one in found] == ["good", "deep"]
    assert [(one.name, one.file) for one in skipped] == [("nan", str(tmp_path / "nan.bin"))]
    assert "holds NaN" in skipped[0].reason
