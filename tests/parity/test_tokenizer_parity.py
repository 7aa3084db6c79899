"""Our tokenizer against transformers' CLIPTokenizer on the same files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sdengine
from sdengine.errors import BundleError
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


# Where tokenizers differ: what joins, folds or vanishes, and tokens spelled out in the text.
FRAGMENTS = st.sampled_from(
    [
        "<|endoftext|>",
        "<|startoftext|>",
        "<|ENDOFTEXT|>",
        "<|end",
        "oftext|>",
        "</w>",
        "!",
        "'s",
        "'Re",
        "\u0301",
        "\u0e33",
        "\u1112\u1161\u11ab",
        "\U0001f469\u200d\U0001f52c",
        "\U0001f1e9\U0001f1ea",
        "\u0130",
        "\u03a3",
        "\ufb01",
        "\x00",
        "\x85",
        "\u2028",
        "\u3000",
        "\u180e",
        " ",
        "a" * 200,
    ]
)
CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.characters(min_codepoint=0, max_codepoint=0x17F),
    st.characters(categories=["Mn", "Mc", "Me"]),
    st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp", "Co", "Cn"]),
    st.characters(min_codepoint=0x0E00, max_codepoint=0x0E7F),
    st.characters(min_codepoint=0x1100, max_codepoint=0x11FF),
    st.characters(min_codepoint=0x10000),
)


@settings(max_examples=1000, deadline=None)
@given(text=st.lists(FRAGMENTS | CHARACTERS, max_size=40).map("".join))
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


@pytest.mark.parametrize("text", ["x" * 20_000, "👩‍🔬" * 2000, "a, " * 5000])
def test_long_text(pair: tuple[ClipTokenizer, Any], text: str) -> None:
    assert_same(pair, text)


def test_names_of_tokens(pair: tuple[ClipTokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.comma_token_id == theirs(",", add_special_tokens=False)["input_ids"][0]
    for token_id in (0, 267, 320, 49406, 49407):
        assert ours.token(token_id) == theirs.convert_ids_to_tokens(token_id)


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
