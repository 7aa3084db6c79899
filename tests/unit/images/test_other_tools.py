"""Pictures of other tools: NovelAI's and ComfyUI's JSON, EXIF, and what is not read by name."""

from __future__ import annotations

import copy
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdengine.errors import ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.request.request import Request


def png(folder: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key.replace("_at_", "-"), text)
    Image.new("RGB", (8, 8)).save(folder / "a.png", pnginfo=info)
    return folder / "a.png"


def exif(path: Path, comment: bytes = b"", model: str = "") -> Path:
    written = Image.Exif()
    if comment:
        written.get_ifd(0x8769)[0x9286] = comment
    if model:
        written[0x0110] = model
    Image.new("RGB", (8, 8)).save(path, exif=written)
    return path


COMMENT: dict[str, Any] = {
    "prompt": "1girl, (smile:1.1)",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.5,
    "cfg_rescale": 0.25,
    "seed": 3123456789,
    "n_samples": 1,
    "noise_schedule": "karras",
    "sampler": "k_euler_ancestral",
    "uc": "lowres",
    "sm": False,
    "request_type": "PromptGenerateRequest",
}
NOVELAI = {
    "prompt": "1girl, (smile:1.1)",
    "negative_prompt": "lowres",
    "steps": 28,
    "width": 832,
    "height": 1216,
    "guidance_scale": 5.5,
    "guidance_rescale": 0.25,
    "seed": 3123456789,
    "sampler": "euler_a",
    "schedule": "karras",
    "web_ui_clip_skip": 2,
}


def test_novelai(tmp_path: Path) -> None:
    texts = {"Software": "NovelAI", "Description": "1girl", "Comment": json.dumps(COMMENT)}
    found = read_metadata(png(tmp_path, **texts))
    assert found.fields == NOVELAI
    assert found.not_understood == ()
    whole = b"ASCII\0\0\0" + json.dumps(texts).encode()
    assert read_metadata(exif(tmp_path / "a.webp", whole)).fields == NOVELAI


def test_novelai_of_the_first_releases_and_what_is_left(tmp_path: Path) -> None:
    comment = {"steps": 28, "seed": 5, "sampler": "k_dpm_fast", "scale": 11.0, "uc": "x"}
    texts = {"Description": "a {{cat}}", "Comment": json.dumps({**comment, "strength": 0.69})}
    found = read_metadata(png(tmp_path, **texts))
    assert found.fields == {
        "prompt": "a {{cat}}",
        "negative_prompt": "x",
        "steps": 28,
        "seed": 5,
        "guidance_scale": 11.0,
        "web_ui_clip_skip": 2,
    }
    assert found.not_understood[:2] == ("strength", "sampler")
    assert "emphasis" in found.not_understood[2]


def hidden(path: Path, text: bytes, signature: bytes = b"stealth_pngcomp", bits: int = -1) -> Path:
    """Write a picture with a text in its lowest bits, pixel by pixel as the layout says."""
    data = gzip.compress(text) if signature.endswith(b"comp") else text
    length = 8 * len(data) if bits < 0 else bits
    message = signature + struct.pack(">I", length) + data
    image = Image.new("RGBA", (64, max(96, len(message) // 8 + 1)), (10, 20, 30, 254))
    pixels = image.load()
    assert pixels is not None
    stream = iter([byte >> shift & 1 for byte in message for shift in range(7, -1, -1)])
    for x in range(image.width):
        for y in range(image.height):
            pixel = pixels[x, y]
            assert isinstance(pixel, tuple)
            red, green, blue, alpha = pixel
            if signature.startswith(b"stealth_rgb"):
                channels = [value & ~1 | next(stream, 0) for value in (red, green, blue)]
                pixels[x, y] = (*channels, alpha)
            else:
                pixels[x, y] = (red, green, blue, alpha & ~1 | next(stream, 0))
    image.save(path, lossless=True)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
@pytest.mark.parametrize("kind", ["pnginfo", "pngcomp", "rgbinfo", "rgbcomp"])
def test_text_in_pixels(tmp_path: Path, kind: str, name: str) -> None:
    whole = json.dumps({"Description": "1girl", "Comment": json.dumps(COMMENT)}).encode()
    found = read_metadata(hidden(tmp_path / name, whole, b"stealth_" + kind.encode()))
    assert found.fields == NOVELAI
    web_ui = b"a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5"
    path = hidden(tmp_path / name, web_ui, b"stealth_" + kind.encode())
    assert read_metadata(path).fields["negative_prompt"] == "dog"


@pytest.mark.parametrize(
    ("text", "signature", "bits", "message"),
    [
        (b"{}", b"stealth_pnginfo", 8 * 64 * 96, "claims more bits than it has pixels"),
        (b"\xff\xfe", b"stealth_pnginfo", -1, "not UTF-8"),
        (b"x" * 100, b"stealth_pngcomp", 80, "cannot be unpacked|ends early"),
        (b"x" * (5 << 20), b"stealth_pngcomp", -1, "more than 4 MiB"),
        (b"{}", b"stealth_nothing", -1, "says nothing"),
    ],
)
def test_bad_text_in_pixels(
    tmp_path: Path, text: bytes, signature: bytes, bits: int, message: str
) -> None:
    path = hidden(tmp_path / "a.png", text, signature, bits)
    with pytest.raises(ConfigError, match=message):
        read_metadata(path)


GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 7,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
COMFYUI = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "steps": 20,
    "seed": 5,
    "guidance_scale": 7,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "width": 512,
    "height": 768,
}


def graph(**changes: dict[str, Any]) -> str:
    """Change nodes of the graph, given as n3 and so on; new ones are added."""
    made = copy.deepcopy(GRAPH)
    for name, node in changes.items():
        old = made.get(name[1:], {"inputs": {}})
        inputs = {**old["inputs"], **node.get("inputs", {})}
        made[name[1:]] = {**old, **node, "inputs": inputs}
    return json.dumps(made)


def test_comfyui(tmp_path: Path) -> None:
    found = read_metadata(png(tmp_path, prompt=graph(), workflow="{}"))
    assert (found.fields, found.not_understood) == (COMFYUI, ())
    webp = exif(tmp_path / "a.webp", model=f"prompt:{graph()}")
    assert read_metadata(webp).fields == COMFYUI
    Request(**found.fields)


@pytest.mark.parametrize(
    ("changes", "fields", "left"),
    [
        (
            {
                "n6": {"inputs": {"clip": ["10", 0]}},
                "n7": {"inputs": {"clip": ["10", 0]}},
                "n10": {
                    "class_type": "CLIPSetLastLayer",
                    "inputs": {"stop_at_clip_layer": -2, "clip": ["4", 1]},
                },
            },
            {"web_ui_clip_skip": 2},
            (),
        ),
        (
            {
                "n3": {"inputs": {"model": ["11", 0]}},
                "n11": {
                    "class_type": "LoraLoader",
                    "inputs": {"lora_name": "x.pt", "model": ["4", 0], "clip": ["4", 1]},
                },
            },
            {},
            ("LoRA x.pt",),
        ),
        (
            {
                "n6": {"inputs": {"text": "(embedding:my-cat:1.2), my embedding: of it"}},
                "n7": {"inputs": {"text": "embedding:sub/bad_v1.5.pt, Embedding:other"}},
            },
            {
                "prompt": "(my-cat:1.2), my embedding: of it",
                "negative_prompt": "bad_v1.5, other",
            },
            (),
        ),
        (
            {
                "n3": {"inputs": {"seed": ["12", 0], "negative": ["13", 0]}},
                "n12": {"class_type": "Seed Everywhere", "inputs": {"seed": 9}},
                "n13": {"class_type": "ConditioningZeroOut", "inputs": {}},
                "n5": {"inputs": {"batch_size": 4}},
            },
            {"seed": 9, "negative_prompt": ""},
            ("batch_size, whose images have other noise here",),
        ),
    ],
)
def test_graphs_of_the_plain_kind(
    tmp_path: Path, changes: dict[str, Any], fields: dict[str, Any], left: tuple[str, ...]
) -> None:
    found = read_metadata(png(tmp_path, prompt=graph(**changes)))
    assert found.fields == {**COMFYUI, **fields}
    assert found.not_understood == left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n20": {"class_type": "KSampler"}}, "2 samplers"),
        ({"n3": {"class_type": "SamplerCustom"}}, "0 samplers"),
        ({"n3": {"inputs": {"denoise": 0.5}}}, "denoise 0.5 of its sampler"),
        ({"n5": {"class_type": "VAEEncode"}}, "VAEEncode of its latent image"),
        ({"n6": {"class_type": "ControlNetApply"}}, "ControlNetApply of its positive prompt"),
        ({"n6": {"inputs": {"text": ["4", 0]}}}, "text of CLIPTextEncode"),
        ({"n3": {"inputs": {"steps": "x"}}}, "steps of KSampler"),
        ({"n3": {"inputs": {"steps": 10**9}}}, "steps: 1000000000"),
        ({"n3": {"inputs": {"model": ["3", 0]}}}, "the path of model"),
        ({"n3": {"inputs": {"positive": ["99", 0]}}}, "positive of KSampler"),
    ],
)
def test_other_graphs_name_what_is_not_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"graph of ComfyUI is not read, because of .*{message}"):
        read_metadata(png(tmp_path, prompt=graph(**changes)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"workflow": "{}"}, "made by ComfyUI's editor"),
        ({"invokeai_metadata": "{}"}, "made by InvokeAI"),
        ({"sd_at_metadata": "{}"}, "made by InvokeAI"),
        ({"parameters": '{"sui_image_params": {}}'}, "is the JSON of SwarmUI"),
        ({"parameters": '{"base_model": "x", "cfg": 3}'}, "a tool that writes 'base_model', 'cfg'"),
        ({"Comment": "made with a drawing program"}, "says nothing"),
        ({"prompt": "[" * 100_000}, "says nothing"),
        ({"prompt": '{"a": ' * 100_000}, "says nothing"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_metadata(png(tmp_path, **texts))


def test_a_text_that_is_too_long_is_named(tmp_path: Path) -> None:
    for key in ("sdengine", "parameters", "prompt"):
        with pytest.raises(ConfigError, match=f"its text '{key}' has more than 4 MiB"):
            read_metadata(png(tmp_path, **{key: "x" * (5 << 20)}))
    # What is not needed may be of any length.
    path = png(tmp_path, parameters="a\nSteps: 3, Seed: 4", workflow="x" * (5 << 20))
    assert read_metadata(path).fields["seed"] == 4


def test_web_ui_text_in_exif(tmp_path: Path) -> None:
    text = "a cät\nNegative prompt: dog\nSteps: 20, Seed: 5"
    for name in ("a.jpg", "a.webp"):
        path = exif(tmp_path / name, b"UNICODE\0" + text.encode("utf-16-be"))
        fields = read_metadata(path).fields
        assert fields["prompt"] == "a cät" and fields["seed"] == 5
    with pytest.raises(ConfigError, match="says nothing"):
        read_metadata(exif(tmp_path / "b.jpg", b"ASCII\0\0\0our holidays", model="a camera"))


def test_a_picture_that_asks_for_too_much_says_so(tmp_path: Path) -> None:
    request = {"prompt": "a", "steps": 1000, "batch_size": 256, "width": 4096, "height": 64}
    text = json.dumps({"format": 1, "request": request, "model": {}})
    found = read_metadata(png(tmp_path, sdengine=text))
    assert found.beyond_limits() == [
        "256 images (at most 16)",
        "1000 steps (at most 150)",
        "4096 width (at most 2048)",
    ]
    assert found.beyond_limits({"steps", "num_images_per_prompt"}) == ["4096 width (at most 2048)"]
    many = json.dumps({"format": 1, "request": {"prompt": ["a"] * 17}, "model": {}})
    assert read_metadata(png(tmp_path, sdengine=many)).beyond_limits() == ["17 images (at most 16)"]
    twice = png(tmp_path, parameters="a\nSteps: 9, Size: 512x1024, Hires upscale: 3")
    asked = read_metadata(twice).beyond_limits()
    assert asked == ["3072 pixels of hires (at most 2048)"]
    assert read_metadata(twice).beyond_limits({"hires"}) == []
    source = {"sha256": "ab" * 32, "width": 64, "height": 64}
    request = {"prompt": "a", "image": source, "outpaint": {"left": 2000, "right": 49}}
    request |= {"inpaint_area": "masked"}  # whose canvas is not what is computed
    wide = json.dumps({"format": 1, "request": request, "model": {}})
    asked = read_metadata(png(tmp_path, sdengine=wide)).beyond_limits()
    assert asked == ["2049 pixels of outpaint (at most 2048)"]
    usual = read_metadata(png(tmp_path, parameters="a\nSteps: 150, Size: 2048x2048, Clip skip: 2"))
    assert usual.beyond_limits() == []
