"""Tokenizer files of checkpoints: what contradicts itself is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdengine.checkpoints.added_tokens import TokenizerSettings
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.errors import BundleError, CheckpointError
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.storage.checkpoint_folder import CheckpointFolder

VOCAB = {
    "a": 0,
    "a</w>": 1,
    "b": 2,
    "ab</w>": 3,
    "b</w>": 4,
    "<|startoftext|>": 5,
    "<|endoftext|>": 6,
}


def write(folder: Path, **files: Any) -> CheckpointFolder:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return CheckpointFolder(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"x": 7}, "tokenizer_config": {"model_max_length": 2}}, None),
        ({"added_tokens": {"x": 3}}, "'x' and 'ab</w>' have the id 3"),
        ({"added_tokens": {"ab</w>": 9}}, "'ab</w>' has the ids 3 and 9"),
        ({"added_tokens": {"x": 7, "y": 7}}, "'y' and 'x' have the id 7"),
        ({"added_tokens": {"x": "7"}}, "'x' has the id '7'"),
        ({"added_tokens": {"": 7}}, "'' is not the text of a token"),
        ({"added_tokens": {"x": 1 << 30}}, "'x' has the id"),
        (
            {
                "added_tokens": {"x": 7},
                "tokenizer_config": {"added_tokens_decoder": {"8": {"content": "x"}}},
            },
            "'x' has the ids 8 and 7",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "x"}}}}, "under 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"8": {"id": 8}}}}, "not an added token"),
        ({"tokenizer_config": {"added_tokens_decoder": [3]}}, "no list"),
        ({"tokenizer_config": {"additional_special_tokens": 3}}, "no list of tokens"),
        ({"tokenizer": {"added_tokens": [3]}}, "3' is not an added token"),
        (
            {"tokenizer": {"added_tokens": [{"content": "x", "id": 9, "lstrip": 1}]}},
            "neither true nor false",
        ),
    ],
)
def test_contradictions(tmp_path: Path, files: dict[str, Any], message: str | None) -> None:
    folder = write(tmp_path / "t", **files)
    if message is None:
        assert json.loads(read_tokenizer(folder, ".")["added_tokens.json"])[0]["id"] == 7
        return
    with pytest.raises(CheckpointError) as raised:
        read_tokenizer(folder, ".")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, "tokenizer_class is 'T5Tokenizer'"),
        ({"bos_token": "<s>"}, "bos_token is '<s>'; expected '<|startoftext|>'"),
        ({"eos_token": {"content": "</s>"}}, "eos_token is '</s>'"),
        ({"pad_token": 3}, "tokenizer_config.json: pad_token is not a token"),
    ],
)
def test_tokenizers_of_other_kinds(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        _ = TokenizerSettings(write(tmp_path / "t", tokenizer_config=content), ".").pad_token
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(None, None), (40, 40), (1e30, 1 << 20), (2, "expected a number from 3"), ("40", "'40'")],
)
def test_length_of_prompts(tmp_path: Path, length: Any, expected: Any) -> None:
    content = {} if length is None else {"model_max_length": length}
    settings = TokenizerSettings(write(tmp_path / "t", tokenizer_config=content), ".")
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match=expected):
            _ = settings.max_length
    else:
        assert settings.max_length == expected


@pytest.mark.parametrize("content", ["", "#version: 0.2\n", "\n\n"])
def test_merges_that_are_empty(tmp_path: Path, content: str) -> None:
    """Every word would fall into letters, silently."""
    shutil.copy(demo_tokenizer_dir() / "vocab.json", tmp_path)
    (tmp_path / "merges.txt").write_text(content)
    with pytest.raises(BundleError, match=r"merges\.txt holds no merges.*get it again"):
        ClipTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize(
    "content",
    ["{", "3", '[{"id": 9}]', '[{"content": "x", "id": -1}]', '[{"content": 3, "id": 9}]'],
)
def test_lists_of_a_hostile_bundle(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path / "t").root
    (folder / "added.json").write_text(content)
    with pytest.raises(BundleError, match=r"added\.json"):
        ClipTokenizer(
            folder / "vocab.json", folder / "merges.txt", added_file=folder / "added.json"
        )
