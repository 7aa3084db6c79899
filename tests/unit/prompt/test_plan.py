"""Prompt plans over the CLIP vocabulary: texts, tokens, weights, and rows by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.bundle.architecture import Architecture, TextEncoderArchitecture
from sdengine.errors import BundleError, ConfigError
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.prompt.planner import PromptPlanner, skip_layers, usual_clip_skip

FILES = Path(sdengine.__file__).parent / "checkpoints" / "demo" / "tokenizer"
BOS, EOS = 49406, 49407
# Ids from vocab.json.
A, CAT, DOG, RED, COMMA = 320, 2368, 1929, 736, 267


def make_planner(encoders: list[dict[str, Any]] | None = None, **changes: Any) -> PromptPlanner:
    content = {
        "family": "test",
        "text_encoders": [
            {"hidden_size": 8, "num_layers": 4, **encoder} for encoder in encoders or [{}]
        ],
        "unet": {"in_channels": 4, "cross_attention_dim": 8},
        "vae": {"scaling_factor": 1.0, "latent_channels": 4},
        "scheduler": {},
        **changes,
    }
    architecture = Architecture.model_validate(content)
    return PromptPlanner(architecture, FILES / "vocab.json", FILES / "merges.txt")


@pytest.fixture(scope="module")
def planner() -> PromptPlanner:
    return make_planner()


def plan_of(planner: PromptPlanner, prompt: str, steps: int = 4, **options: Any) -> PromptPlan:
    return planner.plan([prompt], [], steps, PromptOptions(**options))


def tokens_of(plan: PromptPlan, row: int = 0, encoder: str = "text_encoder") -> list[Any]:
    """Return the (id, weight) pairs of each chunk, and check what surrounds them."""
    read = plan.encoders[encoder]
    chunks = []
    for chunk, count in enumerate(read.num_tokens[row]):
        ids, weights = read.token_ids[row, chunk], read.weights[row, chunk]
        assert ids[0] == BOS and ids[count + 1] == EOS
        assert weights[0] == 1 and (weights[count + 1 :] == 1).all()
        inner = slice(1, 1 + int(count))
        chunks.append(list(zip(ids[inner].tolist(), weights[inner].tolist(), strict=True)))
    return chunks


def near(pairs: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    return [(token_id, pytest.approx(weight, rel=1e-6)) for token_id, weight in pairs]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [(A, 1), (CAT, 1)]),
        ("a (cat)", [(A, 1), (CAT, 1.1)]),
        ("a ((cat))", [(A, 1), (CAT, 1.21)]),
        ("a [cat]", [(A, 1), (CAT, 1 / 1.1)]),
        ("a (cat:1.5)", [(A, 1), (CAT, 1.5)]),
        ("a (cat:0.25)", [(A, 1), (CAT, 0.25)]),
        ("((a) cat", [(A, 1.21), (CAT, 1.1)]),
        ("(a cat, (red:1.5) dog:2)", [(A, 2), (CAT, 2), (COMMA, 2), (RED, 3), (DOG, 2)]),
        ("a(cat)dog", [(A, 1), (CAT, 1.1), (DOG, 1)]),
    ],
)
def test_token_weights(
    planner: PromptPlanner, prompt: str, expected: list[tuple[int, float]]
) -> None:
    plan = plan_of(planner, prompt)
    assert plan.num_chunks == 1
    assert tokens_of(plan) == [near(expected)]


def test_escaped_brackets_are_tokens(planner: PromptPlanner) -> None:
    tokenizer = planner.tokenizers["text_encoder"]
    [tokens] = tokens_of(plan_of(planner, r"a \(cat\) \[dog\]"))
    assert tokens == [(token_id, 1.0) for token_id in tokenizer.encode("a (cat) [dog]")]


def test_emphasis_modes(planner: PromptPlanner) -> None:
    tokenizer = planner.tokenizers["text_encoder"]
    prompt = "a (cat:1.5) BREAK [dog|red] AND a"
    for emphasis, weight in (("original", 1.5), ("no_norm", 1.5), ("none", 1.0)):
        plan = plan_of(planner, prompt, emphasis=emphasis)
        assert plan.emphasis == emphasis
        assert tokens_of(plan) == [[(A, 1.0), (CAT, weight)], [(DOG, 1.0)]]
        assert plan.rows(0) == ((None, ((0, 1.0), (1, 1.0))),)
    plan = plan_of(planner, prompt, emphasis="literal")
    assert plan.texts == (prompt,)
    assert tokens_of(plan) == [[(token_id, 1.0) for token_id in tokenizer.encode(prompt)]]
    plan_of(planner, "(a:1000)", emphasis="none")
    plan_of(planner, "(a:1000)", emphasis="literal")
    with pytest.raises(ConfigError, match="weight of 'a' is 1000"):
        plan_of(planner, "(a:1000)", emphasis="no_norm")


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (74, 1), (75, 1), (76, 2), (151, 3)])
def test_chunk_borders(planner: PromptPlanner, count: int, chunks: int) -> None:
    plan = plan_of(planner, "cat " * count)
    assert plan.num_chunks == chunks
    assert tokens_of(plan) == [
        [(CAT, 1.0)] * max(0, min(75, count - 75 * chunk)) for chunk in range(chunks)
    ]


def test_comma_and_break(planner: PromptPlanner) -> None:
    plan = plan_of(planner, "cat " * 70 + ", " + "dog " * 10)
    assert [len(chunk) for chunk in tokens_of(plan)] == [71, 10]
    plan = plan_of(planner, "cat BREAK (dog:1.5) BREAK")
    assert tokens_of(plan) == [[(CAT, 1.0)], [(DOG, 1.5)]]


def test_all_rows_have_equally_many_chunks(planner: PromptPlanner) -> None:
    plan = planner.plan(["cat " * 80, "dog"], ["", "red"], 2, PromptOptions())
    assert [tokens_of(plan, row) for row in range(1, 4)] == [
        [[(DOG, 1.0)], []],
        [[], []],
        [[(RED, 1.0)], []],
    ]


def test_equal_texts_are_one_row(planner: PromptPlanner) -> None:
    plan = planner.plan(["a", "b", "a"], ["b", "", ""], 3, PromptOptions())
    assert plan.texts == ("a", "b", "")
    expected = ((1, ((0, 1.0),)), (2, ((1, 1.0),)), (2, ((0, 1.0),)))
    assert [plan.rows(step) for step in range(3)] == [expected] * 3


def test_negatives_without_guidance_are_there_for_joined_parts_alone(
    planner: PromptPlanner,
) -> None:
    plain = planner.plan(["a", "b"], ["x", "y"], 1, PromptOptions(), is_guided=False)
    assert plain.texts == ("a", "b")
    assert [negative for negative, _ in plain.rows(0)] == [None, None]
    joined = planner.plan(["a", "b AND c"], ["x", "y"], 1, PromptOptions(), is_guided=False)
    assert joined.texts == ("a", "b", "c", "x", "y")
    assert [negative for negative, _ in joined.rows(0)] == [3, 4]


def test_rows_by_step(planner: PromptPlanner) -> None:
    plan = planner.plan(
        ["[cat:dog:0.5] AND red:0.5", "a [cat|dog]"], ["[x::1]", "c AND d"], 4, PromptOptions()
    )
    written = []
    for step in range(4):
        written.append(
            [
                (plan.texts[negative or 0], [(plan.texts[row], weight) for row, weight in parts])
                for negative, parts in plan.rows(step)
            ]
        )
    assert written == [
        [("x", [("cat", 1.0), ("red", 0.5)]), ("c AND d", [("a cat", 1.0)])],
        [("", [("cat", 1.0), ("red", 0.5)]), ("c AND d", [("a dog", 1.0)])],
        [("", [("dog", 1.0), ("red", 0.5)]), ("c AND d", [("a cat", 1.0)])],
        [("", [("dog", 1.0), ("red", 0.5)]), ("c AND d", [("a dog", 1.0)])],
    ]


def test_without_negatives(planner: PromptPlanner) -> None:
    assert plan_of(planner, "cat").rows(3) == ((None, ((0, 1.0),)),)


def test_empty_negative_of_zeros() -> None:
    zeroing = make_planner(zero_empty_negative=True)
    plan = zeroing.plan(["", "", "cat"], ["", " ", "[dog::1]"], 2, PromptOptions())
    rows = [[negative for negative, _ in plan.rows(step)] for step in range(2)]
    positive = plan.rows(0)[0][1][0][0]
    empty, blank, dog = rows[0]
    assert plan.zero_rows == (empty,)
    assert len({positive, empty, blank, dog}) == 4
    assert rows[1] == [empty, blank, empty]
    assert make_planner().plan([""], [""], 1, PromptOptions()).zero_rows == ()


def test_each_encoder_has_its_padding() -> None:
    both = make_planner([{}, {"network": "text_encoder_2", "pad_token": "!"}])
    plan = both.plan(["a cat"], [], 1, PromptOptions())
    for encoder, padding in (("text_encoder", EOS), ("text_encoder_2", 0)):
        ids = plan.encoders[encoder].token_ids
        assert ids.dtype == np.int64
        assert ids.tolist() == [[[BOS, A, CAT, EOS] + [padding] * 73]]


def test_encoders_may_differ_in_chunks() -> None:
    """A padding token means itself in a text, so that `!!` is one token here and two there."""
    both = make_planner([{}, {"network": "text_encoder_2", "pad_token": "!"}])
    plan = both.plan(["!! " * 40], [], 1, PromptOptions())
    first, second = plan.encoders["text_encoder"], plan.encoders["text_encoder_2"]
    assert first.num_tokens.tolist() == [[40, 0]]
    assert second.num_tokens.tolist() == [[75, 5]]


def test_networks_may_take_fewer_chunks_than_the_planner() -> None:
    architecture = make_planner().architecture
    files = FILES / "vocab.json", FILES / "merges.txt"
    options = PromptOptions()
    few = PromptPlanner(architecture, *files, max_chunks=4)
    assert few.plan(["cat " * 300], [], 1, options).num_chunks == 4
    told = (
        r"negative_prompt: 301 tokens fill 5 chunks of 75; at most 4 chunks, 300 tokens, are "
        r"accepted by this bundle's engines\. .* target native, which takes 40"
    )
    with pytest.raises(ConfigError, match=told):
        few.plan(["a"], ["cat " * 301], 1, options)
    assert PromptPlanner(architecture, *files, max_chunks=99).max_chunks == 40


def test_limits_name_field_and_numbers(planner: PromptPlanner) -> None:
    options = PromptOptions()
    assert planner.plan(["cat " * 3000], [], 1, options).num_chunks == 40
    with pytest.raises(ConfigError, match="prompt: 3001 tokens fill 41 chunks of 75; at most 40"):
        planner.plan(["cat " * 3001], [], 1, options)
    with pytest.raises(ConfigError, match=r"negative_prompt\[1\]: 10000 tokens fill 134 chunks"):
        planner.plan(["a", "b"], ["", "cat " * 10_000], 1, options)
    with pytest.raises(ConfigError, match="52 different texts of 40 chunks"):
        planner.plan(["cat " * 2990 + "[a|b] [c|d|e] [f|g|h|i|j] [k|l|m|n|o|p|q]"], [], 99, options)
    with pytest.raises(ConfigError, match="negative_prompt: 1 texts for 2 prompts"):
        planner.plan(["a", "b"], [""], 1, options)
    with pytest.raises(ConfigError, match="prompt: 100001 characters"):
        planner.plan(["a" * 100_001], [], 1, options)
    with pytest.raises(ConfigError, match=r"prompt: .* is not accepted; expected valid Unicode"):
        planner.plan(["\ud800"], [], 1, options)


def encoder(index: int, num_layers: int = 12) -> TextEncoderArchitecture:
    content = {"hidden_size": 8, "num_layers": num_layers, "hidden_state": {"index": index}}
    return TextEncoderArchitecture.model_validate(content)


@pytest.mark.parametrize(
    ("own", "clip_skip", "expected"),
    [
        (-1, None, -1),
        (-1, 1, -1),
        (-1, 2, -2),
        (-1, 12, -12),
        (-2, None, -2),
        (-2, 1, -2),
        (-2, 2, -3),
        (11, 2, -3),
        (0, None, 0),
        (0, 1, 0),
    ],
)
def test_clip_skip(own: int, clip_skip: int | None, expected: int) -> None:
    assert skip_layers(encoder(own), clip_skip).index == expected


def test_clip_skip_past_the_first_layer(planner: PromptPlanner) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip: 12 .* expected 1 to 11 for text_encoder"):
        skip_layers(encoder(-2), 12)
    with pytest.raises(ConfigError, match="expected 1 to 1 "):
        skip_layers(encoder(0), 2)
    with pytest.raises(ConfigError, match=r"clip_skip: 5 .* 1 to 4 for text_encoder of 4 layers"):
        plan_of(planner, "cat", clip_skip=5)
    assert plan_of(planner, "cat", clip_skip=3).encoders["text_encoder"].hidden_state.index == -3


@pytest.mark.parametrize(
    "options", [{"emphasis": "strong"}, {"emphasis": None}, {"clip_skip": 0}, {"clip_skip": True}]
)
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PromptOptions(**options)


def test_foreign_tokenizer() -> None:
    with pytest.raises(BundleError, match=r"start and end token are \(49406, 49407\)"):
        make_planner([{"eos_token_id": 5}])
    with pytest.raises(BundleError, match="lacks '<pad>'"):
        make_planner([{"pad_token": "<pad>"}])


@pytest.mark.parametrize(
    ("family", "encoders", "expected"),
    [
        ("sd1", [{"hidden_state": {"index": -1}}], 1),
        ("sd1", [{"hidden_state": {"index": 4}}], 1),
        ("sd2", [{"hidden_state": {"index": -1}}], 2),
        ("sdxl", [{"hidden_state": {"index": -2, "kind": "raw"}}], 2),
        ("sdxl", [{"hidden_state": {"index": 3, "kind": "raw"}}], 2),
    ],
)
def test_what_the_web_ui_calls_a_checkpoints_own_layer(
    family: str, encoders: list[dict[str, Any]], expected: int
) -> None:
    architecture = make_planner(encoders, family=family).architecture
    assert usual_clip_skip(architecture) == expected


def test_shorter_prompts_than_the_network_reads() -> None:
    planner = make_planner([{"prompt_length": 40}])
    plan = plan_of(planner, "cat " * 39)
    assert [len(chunk) for chunk in tokens_of(plan)] == [38, 1]
    assert plan.encoders["text_encoder"].token_ids.shape == (1, 2, 40)
    with pytest.raises(ValueError, match="prompt_length 78 of 77 tokens"):
        make_planner([{"prompt_length": 78}])
    with pytest.raises(ValueError, match="prompt_length differs"):
        make_planner([{"prompt_length": 40}, {"network": "text_encoder_2"}])
