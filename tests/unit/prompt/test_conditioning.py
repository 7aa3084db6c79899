"""Text encoders run over a plan: which rows they see, and what becomes of their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import HIDDEN, LAYERS, make_tiny_bundle

from sdengine.backends.base import Module
from sdengine.bundle.architecture import HiddenState
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import BundleError, NonFiniteError
from sdengine.prompt.conditioning import TextConditioner, apply_weights, layer_number
from sdengine.prompt.plan import PromptOptions

LENGTH = 77


class FakeEncoder:
    """Layer i is (i+1) times the embeddings, normed by subtracting 3.

    Pooled is the sum of the embeddings of the first token and of the end token.
    """

    def __init__(self, rows: int, scale: float = 1.0, dtype: str = "float32") -> None:
        states = (LAYERS + 1, rows, LENGTH, HIDDEN)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("inputs_embeds", (rows, LENGTH, HIDDEN), dtype),
            TensorSpec("eos_index", (rows,), "int64"),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("hidden_states", states, dtype),
            TensorSpec("normed_hidden_states", states, dtype),
            TensorSpec("pooled", (rows, HIDDEN), dtype),
        )
        self.scale = scale
        self.seen: list[np.ndarray] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x, eos_index = inputs["inputs_embeds"] * self.scale, inputs["eos_index"]
        assert x.shape == self.inputs[0].shape and str(inputs["inputs_embeds"].dtype) == (
            self.inputs[0].dtype
        )
        self.seen.append(x)
        states = np.stack([(i + 1) * x for i in range(LAYERS + 1)])
        with np.errstate(invalid="ignore"):  # some tests feed infinity
            pooled = x[:, 1] + x[np.arange(len(x)), eos_index]
        return {"hidden_states": states, "normed_hidden_states": states - 3, "pooled": pooled}

    def close(self) -> None:
        pass


class ChoosingEncoder(FakeEncoder):
    """Hands over one layer alone, as engines do."""

    def __init__(self, rows: int, **options: Any) -> None:
        super().__init__(rows, **options)
        self.inputs += (TensorSpec("layer", (rows,), "int64"),)
        stack, _, pooled = self.outputs
        self.outputs = (TensorSpec("states", stack.shape[1:], stack.dtype), pooled)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = super().run(inputs)
        (layer,) = set(inputs["layer"].tolist())
        stacks = np.concatenate([found["hidden_states"], found["normed_hidden_states"]])
        return {"states": stacks[layer], "pooled": found["pooled"]}


class Encoders:
    """Give fake encoders by name and rows, each made once, and remember what was asked for."""

    def __init__(self, kind: type[FakeEncoder] = FakeEncoder, **options: Any) -> None:
        self.kind = kind
        self.options = options
        self.made: dict[tuple[str, int], FakeEncoder] = {}

    def __call__(self, network: str, rows: int) -> Module:
        if (network, rows) not in self.made:
            self.made[network, rows] = self.kind(rows, **self.options)
        return self.made[network, rows]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {kind: open_bundle(make_tiny_bundle(folder / kind, kind=kind)) for kind in KINDS}


KINDS = ("sd", "sdxl", "refiner")


def embeddings(conditioner: TextConditioner, plan: Any, network: str) -> np.ndarray:
    """Return [N,77*chunks,D]: the layer that the tiny bundle chooses, -2 raw, is twice these."""
    ids = plan.encoders[network].token_ids
    looked_up: np.ndarray = conditioner.token_tables[network][ids]
    return looked_up.reshape(len(ids), -1, HIDDEN)


def test_states_of_each_row(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    plan = conditioner.plan(["cat", "dog " * 80, "bird"], ["x", "", ""], 1, PromptOptions())
    assert plan.num_chunks > 1
    found = conditioner.encode(plan, Encoders())
    assert found.prompt_embeds.dtype == np.float32 and found.pooled is None
    expected = 2 * embeddings(conditioner, plan, "text_encoder")
    np.testing.assert_array_equal(found.prompt_embeds, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_that_is_asked_for_is_that_of_all(bundles: dict[str, Bundle], kind: str) -> None:
    conditioner = TextConditioner(bundles[kind])
    plan = conditioner.plan(["a (cat:1.3)", "dog " * 80], ["x", ""], 1, PromptOptions())
    expected = conditioner.encode(plan, Encoders())
    found = conditioner.encode(plan, Encoders(ChoosingEncoder))
    np.testing.assert_array_equal(found.prompt_embeds, expected.prompt_embeds)
    np.testing.assert_array_equal(found.pooled, expected.pooled)


@pytest.mark.parametrize(
    ("index", "kind", "number"),
    [(0, "raw", 0), (-1, "raw", 2), (-2, "raw", 1), (0, "normed", 3), (-1, "normed", 5)],
)
def test_layers_are_numbered_raw_then_normed(
    bundles: dict[str, Bundle], index: int, kind: str, number: int
) -> None:
    (encoder,) = bundles["sd"].manifest.architecture.text_encoders
    encoder = encoder.model_copy(update={"num_layers": 2})
    choice = HiddenState.model_validate({"index": index, "kind": kind})
    assert layer_number(encoder, choice) == number


def test_few_row_counts(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    for texts, rows, runs in (("a", 1, 1), ("ab", 2, 1), ("abc", 2, 2), ("abcdefg", 2, 4)):
        encoders = Encoders()
        plan = conditioner.plan(list(texts), [], 1, PromptOptions())
        found = conditioner.encode(plan, encoders)
        assert list(encoders.made) == [("text_encoder", rows)]
        assert len(encoders.made["text_encoder", rows].seen) == runs
        assert len(found.prompt_embeds) == len(texts)


def test_equal_chunks_run_once(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    plan = conditioner.plan(["a BREAK b BREAK a", "b", "(b:1.5)"], [], 1, PromptOptions())
    encoders = Encoders()
    conditioner.encode(plan, encoders)
    seen = np.concatenate(encoders.made["text_encoder", 2].seen)
    assert len(seen) == 4  # a, b and the empty chunk, and one row to make pairs


def test_weights_reach_their_tokens(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    options = PromptOptions(emphasis="no_norm")
    plan = conditioner.plan(["a (b:1.5) BREAK (c:0)"], [], 1, options)
    found = conditioner.encode(plan, Encoders()).prompt_embeds
    expected = 2 * embeddings(conditioner, plan, "text_encoder")
    expected[0, 2] *= 1.5
    expected[0, LENGTH + 1] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_original_emphasis_keeps_each_chunks_mean(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    texts = ["a (b:1.5) BREAK c", "d"]
    weighted = conditioner.encode(
        conditioner.plan(texts, [], 1, PromptOptions("original")), Encoders()
    ).prompt_embeds
    multiplied = conditioner.encode(
        conditioner.plan(texts, [], 1, PromptOptions("no_norm")), Encoders()
    ).prompt_embeds
    plain = conditioner.encode(
        conditioner.plan(texts, [], 1, PromptOptions("none")), Encoders()
    ).prompt_embeds
    first = slice(0, LENGTH)
    before = plain[0, first].astype(float).mean()
    factor = before / multiplied[0, first].astype(float).mean()
    np.testing.assert_allclose(weighted[0, first], multiplied[0, first] * factor, rtol=1e-5)
    assert weighted[0, first].astype(float).mean() == pytest.approx(before, rel=1e-4)
    np.testing.assert_array_equal(weighted[0, LENGTH:], plain[0, LENGTH:])
    np.testing.assert_array_equal(weighted[1], plain[1])


def test_mean_of_zero_is_left() -> None:
    states = np.ones((1, 1, 2, 3), dtype=np.float32)
    weights = np.array([[[1, -1]]], dtype=np.float32)
    found = apply_weights(states, weights, "original")
    np.testing.assert_array_equal(found, states * weights[..., None])


def test_two_encoders_are_joined(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sdxl"])
    plan = conditioner.plan(["cat BREAK dog", "b"], ["", "x"], 1, PromptOptions())
    found = conditioner.encode(plan, Encoders())
    halves = [embeddings(conditioner, plan, name) for name in ("text_encoder", "text_encoder_2")]
    assert not np.array_equal(halves[0], halves[1])
    expected = 2 * np.concatenate(halves, axis=2)
    [empty] = plan.zero_rows
    assert plan.texts[empty] == ""
    expected[empty] = 0
    np.testing.assert_array_equal(found.prompt_embeds, expected)
    pooled = []
    for row, ids in enumerate(plan.encoders["text_encoder_2"].token_ids[:, 0]):
        end = ids.tolist().index(513)
        pooled.append((halves[1][row, 1] + halves[1][row, end]) * (row != empty))
    assert found.pooled is not None
    np.testing.assert_array_equal(found.pooled, pooled)


def test_second_encoder_alone(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["refiner"])
    plan = conditioner.plan(["cat"], [""], 1, PromptOptions())
    encoders = Encoders()
    found = conditioner.encode(plan, encoders)
    assert list(encoders.made) == [("text_encoder_2", 2)]
    assert found.pooled is not None and found.pooled.shape == (2, HIDDEN)
    assert plan.zero_rows == ()


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_clip_skip_of_one_is_the_checkpoints_choice(
    bundles: dict[str, Bundle], clip_skip: int | None
) -> None:
    conditioner = TextConditioner(bundles["sd"])
    plan = conditioner.plan(["cat"], [], 1, PromptOptions(clip_skip=clip_skip))
    found = conditioner.encode(plan, Encoders()).prompt_embeds
    np.testing.assert_array_equal(found, 2 * embeddings(conditioner, plan, "text_encoder"))


def test_clip_skip_from_the_last_normed_layer(tmp_path: Path) -> None:
    bundle = open_bundle(make_tiny_bundle(tmp_path / "b"))
    content = bundle.manifest.model_dump()
    content["architecture"]["text_encoders"][0]["hidden_state"] = {"index": -1, "kind": "normed"}
    bundle = Bundle(type(bundle.manifest).model_validate(content), bundle.root)
    conditioner = TextConditioner(bundle)
    for clip_skip, factor in ((None, 3), (1, 3), (2, 2)):
        plan = conditioner.plan(["cat"], [], 1, PromptOptions(clip_skip=clip_skip))
        found = conditioner.encode(plan, Encoders()).prompt_embeds
        expected = factor * embeddings(conditioner, plan, "text_encoder") - 3
        np.testing.assert_array_equal(found, expected)


def test_inputs_in_the_encoders_dtype(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["sd"])
    plan = conditioner.plan(["cat"], [], 1, PromptOptions())
    assert conditioner.encode(plan, Encoders(dtype="float16")).prompt_embeds.dtype == np.float32


@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize("emphasis", ["original", "no_norm"])
def test_not_finite(bundles: dict[str, Bundle], scale: float, emphasis: str) -> None:
    conditioner = TextConditioner(bundles["sdxl"])
    plan = conditioner.plan(["(cat:1.5)"], [], 1, PromptOptions(emphasis=emphasis))
    with pytest.raises(NonFiniteError, match="text_encoder: the output holds NaN or infinity"):
        conditioner.encode(plan, Encoders(scale=scale))


def test_foreign_encoders(bundles: dict[str, Bundle]) -> None:
    conditioner = TextConditioner(bundles["refiner"])
    plan = conditioner.plan(["cat"], [], 1, PromptOptions())

    def changed(**changes: Any) -> Any:
        module = FakeEncoder(1)
        for name, value in changes.items():
            setattr(module, name, value)
        return lambda network, rows: module

    whole = FakeEncoder(1)
    for changes, message in (
        ({"inputs": whole.inputs[:1]}, "there is no tensor 'eos_index'"),
        ({"outputs": whole.outputs[1:]}, "there is no tensor 'hidden_states'"),
        ({"outputs": whole.outputs[:2]}, "output 'pooled' is missing"),
        ({"outputs": FakeEncoder(3).outputs}, "'hidden_states' is float32"),
        ({"inputs": (*whole.inputs, TensorSpec("more", (1,), "int64"))}, "inputs more are unknown"),
        ({"outputs": (*whole.outputs[:2], TensorSpec("pooled", (1,), "float32"))}, r"is \[1\]"),
    ):
        with pytest.raises(BundleError, match=f"text_encoder_2: .*{message}"):
            conditioner.encode(plan, changed(**changes))


def test_short_token_table(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    table = bundles["sd"].token_table(bundles["sd"].manifest.architecture.text_encoders[0])
    monkeypatch.setattr(Bundle, "token_table", lambda self, encoder: table[:-1])
    with pytest.raises(BundleError, match="text_encoder has 513 rows for a vocabulary of 514"):
        TextConditioner(bundles["sd"])
