"""Tags in prompts are LoRAs given otherwise, and pictures' metadata say them as web UIs do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.adapters import Array, draw, write

import sdengine
from sdengine.bundle.reader import open_bundle
from sdengine.errors import AdapterError, ConfigError
from sdengine.storage.tensor_file import map_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
OPTIONS: Any = {"seed": 3, "steps": 2}
RANK = 6
_LAYERS = {
    "unet": ("lora_unet_", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"),
    "text_encoder": ("lora_te_", "text_model.encoder.layers.0.self_attn.q_proj"),
}


def lora(path: Path, seed: int, metadata: dict[str, str] | None = None, rank: int = RANK) -> Path:
    """Write a LoRA of a layer of both networks; its alpha is RANK, so that its scale is not."""
    tensors: dict[str, Array] = {}
    bundle = open_bundle("demo")
    for network, (prefix, layer) in _LAYERS.items():
        weight = map_tensors(bundle.path(f"{network}.safetensors"))[f"{layer}.weight"]
        stem = prefix + layer.replace(".", "_")
        down, up = (
            draw(RANK, weight.shape[1], seed=seed),
            draw(weight.shape[0], RANK, seed=seed + 1),
        )
        tensors[f"{stem}.lora_down.weight"] = 8 * down[:rank]
        tensors[f"{stem}.lora_up.weight"] = up[:, :rank]
        tensors[f"{stem}.alpha"] = np.asarray(float(rank), np.float32)
    return write(path, tensors, metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    (folder / "deep").mkdir()
    lora(folder / "one style.safetensors", 1, {"ss_output_name": "its trainer's name"})
    lora(folder / "deep" / "two.safetensors", 11)
    lora(folder / "lcm-lora.safetensors", 21)
    lora(folder / "same.safetensors", 31)
    lora(folder / "deep" / "same.safetensors", 41)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[sdengine.Engine]:
    with sdengine.load("demo", loras_folder=folder) as engine:
        yield engine


def picture(engine: sdengine.Engine, prompt: Any, **options: Any) -> Array:
    result = engine.generate(prompt, **{**OPTIONS, **options})
    assert not result.warnings
    return result.arrays[0]


@pytest.mark.parametrize(
    ("tag", "strengths"),
    [
        ("<lora:one style>", 1.0),
        ("<lora:one style:0.5>", 0.5),
        ("<lora:ONE STYLE:0.5:-0.25>", (0.5, -0.25)),
        ("<lyco:its trainer's name:unet=0.75:te=0>", (0.0, 0.75)),
        ("<lora:one style:0>", 0.0),
    ],
)
def test_a_tag_is_a_lora_given_otherwise(
    tag: str, strengths: Any, engine: sdengine.Engine, folder: Path
) -> None:
    given = picture(engine, "a red circle", loras={folder / "one style.safetensors": strengths})
    result = engine.generate(f"a red circle {tag}", **OPTIONS)
    assert np.array_equal(result.arrays[0], given) and not result.warnings
    # It is a field of the request from then on, and no longer a part of the prompt.
    assert result.request.prompt == "a red circle"
    (used,) = result.request.loras or ()
    both = strengths if isinstance(strengths, tuple) else (strengths, strengths)
    assert (used.name, used.text, used.unet) == ("one style", *both)
    assert np.array_equal(engine.run(result.request).arrays[0], given)


def test_tags_beside_given_loras_and_in_batches(engine: sdengine.Engine, folder: Path) -> None:
    one, two = folder / "one style.safetensors", folder / "deep" / "two.safetensors"
    both = picture(engine, "a red circle", loras={one: 0.5, two: 1.0})
    tagged = picture(engine, "a red circle <lora:two> <lora:one style:0.5>", loras={one: 3.0})
    assert np.array_equal(tagged, both)  # in place of what is given for the same file
    prompts = ["a red circle <lora:two>", "a blue square <lora:two>", "a star <lora:one style>"]
    result = engine.generate(prompts, **OPTIONS)
    assert result.request.prompt == ("a red circle", "a blue square", "a star <lora:one style>")
    assert len(result.warnings) == 1 and "<lora:one style> is not applied" in result.warnings[0]
    assert "or the prompt is not the first of its batch" in result.warnings[0]
    alone = picture(engine, "a blue square", loras={two: 1}, seed=4)
    assert np.array_equal(result.arrays[1], alone)


def test_a_tag_leaves_other_files_as_they_are(
    engine: sdengine.Engine, folder: Path, tmp_path: Path
) -> None:
    """Also a file that is given twice, under two names, and counts twice."""
    one = folder / "one style.safetensors"
    copy = Path(shutil.copy(one, tmp_path / "copy.safetensors"))
    two = folder / "deep" / "two.safetensors"
    wanted = picture(engine, "a red circle", loras={one: 0.5, copy: 0.25, two: 1.0})
    tagged = picture(engine, "a red circle <lora:two>", loras={one: 0.5, copy: 0.25})
    assert np.array_equal(tagged, wanted)


def test_a_record_is_found_beside_files_that_are_gone(tmp_path: Path) -> None:
    paths = [lora(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 11)]
    with sdengine.load("demo", loras_folder=tmp_path) as engine:
        request = engine.request("a red circle", loras={paths[1]: 1.0}, **OPTIONS)
        paths[0].unlink()
        recorded = sdengine.Request.from_json(request.to_json())
        assert np.array_equal(engine.run(recorded).arrays[0], engine.run(request).arrays[0])


def test_tags_without_effect_are_told(engine: sdengine.Engine) -> None:
    before = engine.generate("a red circle", "a square", **OPTIONS).arrays[0]
    for prompt, negative, said in (
        ("a red circle <lora:unknown:1>", "a square", "<lora:unknown:1> is not applied"),
        ("a red circle", "a square <lora:two>", "negative_prompt: <lora:two> has no effect"),
        ("a red circle <lora:same>", "a square", "<lora:same> may mean .*same.safetensors' and"),
    ):
        result = engine.generate(prompt, negative, **OPTIONS)
        assert np.array_equal(result.arrays[0], before)
        assert re.search(said, " ".join(result.warnings)), result.warnings
    for wrong in ("<lora:two:x>", "<lora:two:1:1:0>", "<lora:two:te=1:te=2>"):
        with pytest.raises(ConfigError, match="prompt"):
            engine.generate(f"a red circle {wrong}", **OPTIONS)


def test_a_rank_takes_the_first_rows(engine: sdengine.Engine, folder: Path, tmp_path: Path) -> None:
    """As the web UI does, whose scale stays that of the whole; see `lora`."""
    short = lora(tmp_path / "short.safetensors", 1, rank=2)
    cut = picture(engine, "a red circle <lora:one style:1:1:2>")
    assert np.array_equal(cut, picture(engine, "a red circle", loras={short: 1}))
    assert np.array_equal(cut, picture(engine, "a red circle <lora:one style:dyn=2>"))
    whole = picture(engine, "a red circle <lora:one style>")
    assert not np.array_equal(cut, whole)
    assert np.array_equal(picture(engine, "a red circle <lora:one style:dyn=6>"), whole)
    diff = {"lora_unet_conv_in.diff_b": draw(64)}
    engine.add_loras(write(tmp_path / "full.safetensors", diff))
    with pytest.raises(AdapterError, match=r"full difference.*no rank that could be cut to 2"):
        engine.generate("a red circle <lora:full:dyn=2>", **OPTIONS)
    recorded = engine.generate("a red circle <lora:one style:1:1:2>", **OPTIONS).request
    assert sdengine.Request.from_json(recorded.to_json()) == recorded


def test_loras_for_few_steps_set_what_a_request_leaves(engine: sdengine.Engine) -> None:
    result = engine.generate("a red circle <lora:lcm-lora>", seed=3)
    asked = result.request
    assert (asked.sampler, asked.schedule, asked.steps, asked.guidance_scale) == (
        "lcm", "normal", 4, 1.0,
    )  # fmt: skip
    assert result.notes == (
        "lcm-lora is a LoRA for few steps (LCM): sampled as it wants, sampler lcm, schedule "
        "normal, steps 4, guidance_scale 1.0.",
    )
    other = engine.generate("a red circle <lora:lcm-lora>", seed=3, sampler="euler", steps=2)
    assert (other.request.sampler, other.request.guidance_scale) == ("euler", 1.0)
    assert "(LCM): it wants sampler lcm and not euler, steps 4 and not 2." in other.notes[0]
    usual = engine.generate("a red circle <lora:lcm-lora:1:0>", **OPTIONS)
    assert usual.request.sampler != "lcm" and usual.notes == ()


def test_metadata_say_them_as_web_uis_do(
    engine: sdengine.Engine, folder: Path, tmp_path: Path, run: Run
) -> None:
    result = engine.generate("a red circle <lora:one style:0.5:0.25> <lora:two>", **OPTIONS)
    text = result.parameters()
    content = (folder / "deep" / "two.safetensors").read_bytes()
    of_tensors = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert text.startswith("a red circle <lora:one style:0.5:0.25> <lora:two:1>\n")
    assert f'two: {of_tensors[:12]}"' in text and 'Lora hashes: "one style: ' in text
    out = tmp_path / "out.png"
    result.save(out)
    known = sdengine.read_metadata(out)
    assert known.request_fields()["loras"] == result.request.loras
    # The text alone, as another tool would keep it.
    web_ui = tmp_path / "web_ui.png"
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text)
    Image.fromarray(result.arrays[0]).save(web_ui, pnginfo=info)
    read = sdengine.read_metadata(web_ui)
    assert read.loras[1] == ("two", of_tensors[:12])
    again = engine.generate(**read.request_fields())
    assert np.array_equal(again.arrays[0], result.arrays[0])
    done = run("generate", "--from", out, "--loras", folder, "-o", tmp_path / "again.png")
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    lost = run("generate", "--from", out, "-o", tmp_path / "lost.png", "--json")
    assert "made with one style:0.5:0.25" in lost.stderr and "no LoRA" in lost.stderr
    assert "loras" not in json.loads(lost.stdout)
    lora(folder / "deep" / "two.safetensors", 12)
    other = run("generate", "--from", web_ui, "--loras", folder, "-o", tmp_path / "other.png")
    assert "another file of the LoRA 'two'" in other.stderr
