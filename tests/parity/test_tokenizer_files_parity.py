"""Tokenizers of fine-tunes: every file in which tokens are added, against transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_folders import edit_json
from support.tiny_architectures import TINY_SD15

import sdengine
from sdengine.checkpoints import convert, load_checkpoint
from sdengine.checkpoints.added_tokens import TokenizerSettings
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.errors import CheckpointError
from sdengine.prompt.plan import PromptOptions
from sdengine.prompt.planner import PromptPlanner
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.storage.checkpoint_folder import CheckpointFolder

FIRST_FREE = 49408
CLIP = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}
CAT = {"content": "<my-cat>", "normalized": True, "special": False, **FLAGS}
STRIPS = {**CAT, "content": "sks-Dog", "lstrip": True, "single_word": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens": {"<my-cat>": 49408, "sks-Dog": 49409}},
    "the same, special": {
        "added_tokens": {"<my-cat>": 49408},
        "special_tokens_map": {"additional_special_tokens": ["<my-cat>"]},
    },
    "decoder": {
        "tokenizer_config": {"added_tokens_decoder": {"49408": CAT, "49409": STRIPS}},
    },
    "special alone": {"special_tokens_map": {"additional_special_tokens": ["<my-cat>"]}},
    "special of a configuration": {
        "tokenizer_config": {"additional_special_tokens": ["<my-cat>", "sks-Dog"]}
    },
    "of the vocabulary": {"special_tokens_map": {"additional_special_tokens": ["cat", "!"]}},
    "padding of its own": {"tokenizer_config": {"pad_token": "[PAD]"}},
    "padding and more": {
        "tokenizer_config": {"pad_token": "[PAD]", "additional_special_tokens": ["<my-cat>"]}
    },
    # As Stable Diffusion 2 is published: the map counts.
    "two paddings": {
        "tokenizer_config": {"pad_token": "<|endoftext|>"},
        "special_tokens_map": {"pad_token": "!"},
    },
    "two paddings with ids": {
        "tokenizer_config": {"pad_token": "<|endoftext|>", "added_tokens_decoder": {"49408": CAT}},
        "special_tokens_map": {"pad_token": "!"},
    },
}
TEXTS = (
    "a <my-cat> b",
    "a<my-cat>b, <my-cat><my-cat>",
    "<MY-CAT> <My-Cat>",
    "a  sks-Dog  x",
    "sks-dogs sks-DOG,",
    "a cat! and [PAD] [pad]",
    "<|endoftext|> <|STARTOFTEXT|> x",
)


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(demo_tokenizer_dir() / name, folder)
    for name, content in files.items():
        usual = CLIP if name == "tokenizer_config" else {}
        (folder / f"{name}.json").write_text(json.dumps({**usual, **content}))
    return folder


def ours(folder: Path, scratch: Path) -> ClipTokenizer:
    opened = CheckpointFolder(folder)
    scratch.mkdir(exist_ok=True)
    paths = {}
    for name, content in read_tokenizer(opened, ".").items():
        paths[name] = scratch / name
        paths[name].write_bytes(content)
    padding = TokenizerSettings(opened, ".").pad_token
    files = paths["vocab.json"], paths["merges.txt"]
    return ClipTokenizer(*files, padding, paths.get("added_tokens.json"))


def theirs(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def assert_same(found: ClipTokenizer, expected: Any) -> None:
    for text in TEXTS:
        assert found.encode(text) == expected(text, add_special_tokens=False)["input_ids"], text
    assert found.vocab_size == len(expected)
    assert found.pad_token_id == expected.pad_token_id


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_that_adds_tokens(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "t", **LAYOUTS[name])
    assert_same(ours(folder, tmp_path / "files"), theirs(folder))


def test_one_tokenizer_json(tmp_path: Path) -> None:
    from transformers import AddedToken

    made = theirs(write(tmp_path / "t"))
    made.add_tokens(["<my-cat>", AddedToken("sks-Dog", lstrip=True)])
    made.add_special_tokens({"additional_special_tokens": ["<Spec>"]})
    made.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/vocab.json").exists()
    found = ours(tmp_path / "saved", tmp_path / "files")
    assert_same(found, made)
    assert found.encode("<my-cat> sks-dog <Spec>") == [49408, 49409, 49410]
    content = json.loads((tmp_path / "saved/tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFKC"}
    (tmp_path / "saved/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="its normalizer is NFKC; CLIP's is NFC, Replace"):
        read_tokenizer(CheckpointFolder(tmp_path / "saved"), ".")


def test_files_keep_the_ids_that_they_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", added_tokens={"<my-cat>": 49410})
    found = ours(folder, tmp_path / "files")
    assert (found.encode("<my-cat>"), found.vocab_size) == ([49410], 49411)
    assert found.token(49410) == "<my-cat>"


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose token table has two more rows, and whose prompts have 40 tokens."""
    encoder = replace(TINY_SD15.text_encoder, vocab_size=FIRST_FREE + 2)
    folder = tmp_path_factory.mktemp("fine-tune") / "cat"
    make_synthetic(replace(TINY_SD15, text_encoders=(encoder,)), folder, dtype=torch.float32)
    tokens = {"<my-cat>": FIRST_FREE, "sks-Dog": FIRST_FREE + 1}
    (folder / "tokenizer/added_tokens.json").write_text(json.dumps(tokens))
    edit_json(folder / "tokenizer/tokenizer_config.json", model_max_length=40)
    return folder


def test_a_bundle_conditions_as_diffusers_does(fine_tune: Path, tmp_path: Path) -> None:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    bundle = tmp_path / "bundle"
    sdengine.build(fine_tune, bundle, target="torch", precision="fp32", resolutions=(64,))
    pipeline = library.StableDiffusionPipeline.from_pretrained(fine_tune, safety_checker=None)
    asked: dict[str, Any] = {"height": 64, "width": 64, "guidance_scale": 4.0}
    prompt = "a <my-cat> and SKS-DOG, on a " + "very " * 29 + "red mat"
    assert len(pipeline.tokenizer(prompt)["input_ids"]) == 40
    with sdengine.load(bundle, precision="fp32") as engine:
        encoder = engine.bundle.manifest.architecture.text_encoders[0]
        assert (encoder.max_length, encoder.chunk_length) == (77, 40)
        given = {"sampler": "ddim", "schedule": "normal", "eta": 0.0, "seed": 5}
        found = engine.generate(prompt, "dog", steps=2, **asked, **given)  # type: ignore[arg-type]
        pieces = engine.generate("a my cat", steps=2, **asked, **given)  # type: ignore[arg-type]
    pipeline.scheduler = library.DDIMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(5)
    expected = pipeline(
        prompt,
        negative_prompt="dog",
        num_inference_steps=2,
        generator=generator,
        output_type="np",
        **asked,
    ).images[0]
    error = np.abs(found.arrays[0].astype(float) - expected * 255)
    assert error.max() < 1.0
    assert np.abs(pieces.arrays[0].astype(float) - expected * 255).max() > 2.0


def test_a_bundle_without_the_file_reads_as_before(fine_tune: Path, tmp_path: Path) -> None:
    plain = make_synthetic(TINY_SD15, tmp_path / "plain", dtype=torch.float32)
    assert set(load_checkpoint(plain).tokenizer_files()) == {"vocab.json", "merges.txt"}
    sdengine.build(plain, tmp_path / "bundle", target="torch", resolutions=(64,))
    text = (tmp_path / "bundle/manifest.json").read_text()
    assert "prompt_length" not in text and "added_tokens" not in text
    with sdengine.load(tmp_path / "bundle") as engine:
        planner = PromptPlanner.from_bundle(engine.bundle)
    assert planner.plan(["a <my-cat>"], [], 1, PromptOptions()).num_chunks == 1
    assert FIRST_FREE not in planner.tokenizers["text_encoder"].encode("a <my-cat>")


def test_a_converted_folder_keeps_them(fine_tune: Path, tmp_path: Path) -> None:
    folder = convert(fine_tune, tmp_path / "again", dtype="fp32")
    assert load_checkpoint(folder).sha256 == load_checkpoint(fine_tune).sha256
    expected = theirs(folder / "tokenizer")
    assert expected("a <my-cat>", add_special_tokens=False)["input_ids"] == [320, FIRST_FREE]
    assert expected.model_max_length == 40


def test_a_token_table_without_their_rows_is_refused(fine_tune: Path, tmp_path: Path) -> None:
    tokens = {"<my-cat>": FIRST_FREE, "sks-Dog": FIRST_FREE + 2}
    copy = shutil.copytree(fine_tune, tmp_path / "copy")
    (copy / "tokenizer/added_tokens.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError, match=r"the last one 'sks-Dog'; .* has 49410 rows"):
        sdengine.build(copy, tmp_path / "bundle", target="torch", resolutions=(64,))
