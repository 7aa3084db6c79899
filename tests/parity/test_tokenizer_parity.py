"""Our tokenizer against transformers' CLIPTokenizer on the same files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sdengine
from sdengine.errors import BundleError, ConfigError
from sdengine.prompt.tokenizer import ClipTokenizer

FILES = Path(sdengine.__file__).parent / "checkpoints" / "demo" / "tokenizer"


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def pair(request: pytest.FixtureRequest) -> tuple[ClipTokenizer, Any]:
    from transformers import CLIPTokenizer

    files = (str(FILES / "vocab.json"), str(FILES / "merges.txt"))
    ours = ClipTokenizer(*files, pad_token=request.param)
    return ours, CLIPTokenizer(*files, pad_token=request.param)


def assert_same(pair: tuple[ClipTokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    if len(ours.encode(text)) <= 75:
        padded = theirs(text, padding="max_length", max_length=77)["input_ids"]
        assert ours.token_ids(text).tolist() == padded


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a large red circle on a blue background",
        "A  LARGE\tred\n\ncircle ",
        "it's they'll We'VE don't 's's",
        "<|endoftext|> a",
        "A <|startoftext|>b<|endoftext|>",
        "<|ENDOFTEXT|>",
        "hello!! (world:1.3), [x]",
        "\uff11\uff12\uff13 ½ ² 3.14",
        "\u00a0\u3000x\u200by\ufeff",
        "e\u0301 İstanbul ß \u017f Ω",
        "\x00\x1f\x7f",
        "👩‍👩‍👧 赤い円 Привет مرحبا",
        "x" * 300,
        "antidisestablishmentarianism",
    ],
)
def test_chosen_texts(pair: tuple[ClipTokenizer, Any], text: str) -> None:
    assert_same(pair, text)


@settings(max_examples=500, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(text="ﬁ ǅ ŉ")
def test_any_unicode(pair: tuple[ClipTokenizer, Any], text: str) -> None:
    assert_same(pair, text)


def test_mixed_text(pair: tuple[ClipTokenizer, Any]) -> None:
    chooser = random.Random(0)
    ranges = [(32, 127), (32, 127), (0, 0x300), (0x300, 0x3000), (0x1F000, 0x1FB00)]
    for _ in range(3000):
        length = chooser.randrange(30)
        text = "".join(chr(chooser.randrange(*chooser.choice(ranges))) for _ in range(length))
        assert_same(pair, text)


def test_long_prompt_names_the_count(pair: tuple[ClipTokenizer, Any]) -> None:
    ours, _ = pair
    assert len(ours.token_ids("word " * 75)) == 77
    with pytest.raises(ConfigError, match="76 tokens; at most 75"):
        ours.token_ids("word " * 76)
    with pytest.raises(ConfigError, match="negative_prompt: 10000 tokens"):
        ours.token_ids("word " * 10_000, "negative_prompt")


def test_end_of_prompt(pair: tuple[ClipTokenizer, Any]) -> None:
    ours, _ = pair
    assert ours.eos_index(ours.token_ids("")) == 1
    assert ours.eos_index(ours.token_ids("a red circle")) == 4


@pytest.mark.parametrize(
    ("vocab", "merges"),
    [
        ("[]", ""),
        ("{", ""),
        ("[" * 100_000, ""),
        ('{"a": "0"}', ""),
        ('{"a": true}', ""),
        ('{"a": 1}', ""),
        ('{"a": 0, "b": 0}', ""),
        ('{"a": 0}', ""),
        ('{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}', "a b"),
        ('{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}', "a a"),
        ('{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}', "a a a"),
        ("\udcff", ""),
    ],
)
def test_hostile_files(tmp_path: Path, vocab: str, merges: str) -> None:
    (tmp_path / "vocab.json").write_bytes(vocab.encode("utf-8", "surrogateescape"))
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(BundleError):
        ClipTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    with pytest.raises(BundleError):
        ClipTokenizer(tmp_path / "missing", tmp_path / "merges.txt")
