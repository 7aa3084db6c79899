"""Any text as a prompt: a plan that holds together, or an SdengineError, and soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sdengine
from sdengine.bundle.architecture import Architecture
from sdengine.errors import ConfigError, SdengineError
from sdengine.prompt.emphasis import parse_emphasis
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.prompt.planner import PromptPlanner

FILES = Path(sdengine.__file__).parent / "checkpoints" / "demo" / "tokenizer"
SYNTAX = st.sampled_from(
    [
        *("(", ")", "[", "]", ":", "|", "\\", "\n", "0", ".", "!", "a", "cat, "),
        *(" AND ", " BREAK ", ":1.3)", ":0.5]", ":2]", ":-1e9)", ":nan)", ":1e999]"),
        *("<|endoftext|>", "<|startoftext|>"),
    ]
)
TEXTS = st.lists(SYNTAX | st.text(max_size=5), max_size=40).map("".join) | st.text()


@pytest.fixture(scope="module")
def planner() -> PromptPlanner:
    content: dict[str, Any] = {
        "family": "test",
        "text_encoders": [
            {"hidden_size": 8, "num_layers": 4},
            {"hidden_size": 8, "num_layers": 4, "network": "text_encoder_2", "pad_token": "!"},
        ],
        "zero_empty_negative": True,
        "unet": {"in_channels": 4, "cross_attention_dim": 8},
        "vae": {"scaling_factor": 1.0, "latent_channels": 4},
        "scheduler": {},
    }
    architecture = Architecture.model_validate(content)
    return PromptPlanner(architecture, FILES / "vocab.json", FILES / "merges.txt")


def check(plan: PromptPlan, num_images: int, steps: int, guided: bool) -> None:
    num_texts = len(plan.texts)
    for tokens in plan.encoders.values():
        assert tokens.token_ids.shape == tokens.weights.shape == (num_texts, plan.num_chunks, 77)
        assert tokens.num_tokens.shape == (num_texts, plan.num_chunks)
        assert tokens.token_ids.min() >= 0 and tokens.token_ids.max() < 49408
        assert (tokens.token_ids[:, :, 0] == 49406).all()
        ends = np.take_along_axis(tokens.token_ids, tokens.num_tokens[:, :, None] + 1, axis=2)
        assert (ends == 49407).all()
        assert np.isfinite(tokens.weights).all()
    used: set[int] = set()
    for step in range(steps):
        rows = plan.rows(step)
        assert len(rows) == num_images
        for negative, parts in rows:
            assert (negative is not None) == guided and parts
            used.update([row for row, _ in parts], [negative] if negative is not None else [])
            assert all(np.isfinite(weight) for _, weight in parts)
    assert used == set(range(num_texts))


@settings(max_examples=400, deadline=None)
@given(
    prompts=st.lists(TEXTS, min_size=1, max_size=3),
    guided=st.booleans(),
    steps=st.integers(1, 6),
    emphasis=st.sampled_from(["original", "no_norm", "none", "literal"]),
    clip_skip=st.none() | st.integers(1, 6),
)
@example(["\ud800"], True, 1, "original", None)
@example(["[|]" * 200, "AND"], True, 2, "original", None)
def test_any_text(
    planner: PromptPlanner,
    prompts: list[str],
    guided: bool,
    steps: int,
    emphasis: str,
    clip_skip: int | None,
) -> None:
    options = PromptOptions(emphasis=emphasis, clip_skip=clip_skip)
    negatives = prompts[::-1] if guided else []
    try:
        plan = planner.plan(prompts, negatives, steps, options)
    except SdengineError as error:
        assert len(str(error)) < 400
        return
    check(plan, len(prompts), steps, guided)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_nothing_but_syntax_is_lost(text: str) -> None:
    """Letters come out as they went in, whatever the brackets around them do."""
    try:
        sections = parse_emphasis(text)
    except ConfigError:
        return
    kept = "".join(run.text for section in sections for run in section)
    assert _letters(kept) == _letters(text)


def _letters(text: str) -> list[str]:
    return [char for char in text if char.isalpha() and char not in "BREAK"]


# Each is as long as a request may be, and hard for one way of parsing or another.
LONG = {
    "round": "(" * 100_000,
    "square": "[" * 100_000,
    "pairs": "()" * 50_000,
    "nested": "[" * 50_000 + "]" * 50_000,
    "crossed": "([" * 25_000 + ")]" * 25_000,
    "unmatched": "[(" * 33_000 + "]" * 33_000,
    "edits": "[:1]" * 25_000,
    "nested edits": "[a:" * 16_000 + ":1]" * 16_000,
    "alternations": "[|]" * 33_000,
    "bars": "[" + "|" * 99_000 + "]",
    "colons": ":" * 100_000,
    "spaces": " " * 100_000,
    "colon and spaces": ":" + " " * 99_990,
    "weight": "(a:" + "1" * 99_000 + ")",
    "not a weight": "(a:" + "1" * 99_000 + "x)",
    "part's weight": "a AND b:" + "1" * 90_000 + "x",
    "when": "[a:b:" + "1" * 90_000 + "]",
    "backslashes": "\\" * 100_000,
    "AND": "AND " * 25_000,
    "BREAK": "BREAK " * 16_000,
    "one word": "a" * 100_000,
    "words": "word " * 20_000,
    "weights": "(a:1.1)(b:1.2)" * 7_000,
    "astral": "\U0001f600" * 100_000,
}


@pytest.mark.timeout(20)  # what is quadratic takes minutes
@pytest.mark.parametrize("name", LONG)
def test_longest_text(planner: PromptPlanner, name: str) -> None:
    try:
        plan = planner.plan([LONG[name]], [LONG[name]], 20, PromptOptions())
    except ConfigError as error:
        assert len(str(error)) < 400
    else:
        check(plan, 1, 20, True)
