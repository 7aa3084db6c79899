"""Names of textual inversions in prompts: where they count, and what stands in their place."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdengine
from sdengine.bundle.architecture import Architecture
from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import Skipped, read_embeddings
from sdengine.inputs.embeddings import Embedding
from sdengine.prompt.embedding_library import EmbeddingLibrary
from sdengine.prompt.embedding_names import EmbeddingNames, encoder_vectors
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.prompt.planner import PromptPlanner

FILES = Path(sdengine.__file__).parent / "checkpoints" / "demo" / "tokenizer"
WIDTH, WIDTH_2 = 8, 12


def make_planner(*networks: str) -> PromptPlanner:
    widths = {"text_encoder": WIDTH, "text_encoder_2": WIDTH_2}
    encoders = [
        {"network": network, "hidden_size": widths[network], "num_layers": 4}
        | ({"pad_token": "!"} if network == "text_encoder_2" else {})
        for network in networks
    ]
    content = {
        "family": "test",
        "text_encoders": encoders,
        "unet": {"in_channels": 4, "cross_attention_dim": 8},
        "vae": {"scaling_factor": 1.0, "latent_channels": 4},
        "scheduler": {},
    }
    architecture = Architecture.model_validate(content)
    return PromptPlanner(architecture, FILES / "vocab.json", FILES / "merges.txt")


@pytest.fixture(scope="module")
def planner() -> PromptPlanner:
    return make_planner("text_encoder")


@pytest.fixture(scope="module")
def xl() -> PromptPlanner:
    return make_planner("text_encoder", "text_encoder_2")


def named(name: str, count: int = 2, **widths: int) -> Embedding:
    rng = np.random.default_rng(len(name) + count)
    parts = {key.removeprefix("only"): width for key, width in (widths or {"only": WIDTH}).items()}
    vectors = {key: rng.standard_normal((count, w), np.float32) for key, w in parts.items()}
    return Embedding(name, hashlib.sha256(f"{name} {count}".encode()).hexdigest(), vectors)


def plan_of(
    planner: PromptPlanner, prompt: str | list[str], *embeddings: Embedding, **options: Any
) -> PromptPlan:
    negatives = options.pop("negatives", [])
    skipped = options.pop("skipped", ())
    steps = options.pop("steps", 1)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    given = PromptOptions(**options)
    return planner.plan(
        prompts, negatives, steps, given, embeddings=embeddings, skipped=tuple(skipped)
    )


def read(plan: PromptPlan, row: int = 0, encoder: str = "text_encoder") -> list[list[int]]:
    """Return the tokens of each chunk, without what surrounds them."""
    tokens = plan.encoders[encoder]
    counts = tokens.num_tokens[row].tolist()
    return [tokens.token_ids[row, i, 1 : 1 + n].tolist() for i, n in enumerate(counts)]


def tokens_of(planner: PromptPlanner, text: str) -> list[int]:
    return planner.tokenizers["text_encoder"].encode(text)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("my-cat", ["", ""]),
        ("a My-CAT, red", ["a", ", red"]),
        ("my - cat", ["", ""]),  # the tokens are the same
        ("my-cat my-cat", ["", "", ""]),
        ("a my-cats", ["a my-cats"]),  # another word
        ("tommy-cat", ["tommy-cat"]),
        ("my cat", ["my cat"]),
        ("my-(cat:1.2)", ["my-cat"]),  # tokens of two weights are no name
        (r"my\-cat", ["", ""]),  # such a backslash vanishes
    ],
)
def test_where_a_name_counts(planner: PromptPlanner, prompt: str, expected: list[str]) -> None:
    """Between the texts that are expected stand two vectors each."""
    ids = tokens_of(planner, expected[0])
    for text in expected[1:]:
        ids += [-1, -2, *tokens_of(planner, text)]
    plan = plan_of(planner, prompt, embedding := named("my-cat"))
    assert read(plan) == [ids]
    found = plan.encoders["text_encoder"].vectors
    if len(expected) == 1:
        assert found is None and plan.embeddings == () and plan.used == ((),)
    else:
        np.testing.assert_array_equal(found, embedding.parts[""])
        assert plan.embeddings == (embedding,) and plan.used == ((embedding,),)


def test_the_longest_name_counts(planner: PromptPlanner) -> None:
    short, long = named("red", 1), named("red cat", 3)
    plan = plan_of(planner, "red cat, a red dog", long, short)
    comma, a, dog = tokens_of(planner, ", a dog")
    assert read(plan) == [[-1, -2, -3, comma, a, -4, dog]]
    assert plan.embeddings == (long, short)
    expected = np.concatenate([long.parts[""], short.parts[""]])
    np.testing.assert_array_equal(plan.encoders["text_encoder"].vectors, expected)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("badhand(v4)", r"a badhand\(v4\) here"),
        ("<cat-toy>", "a <cat-toy> here"),
        ("ÀÉ_ﬁ", "a àé_ﬁ here"),
        ("👩‍🔬", "a 👩‍🔬 here"),
        ("v1.5  spaces", "a v1.5 spaces here"),
        ("it's", "a it's here"),
    ],
)
def test_names_of_odd_characters(planner: PromptPlanner, name: str, prompt: str) -> None:
    a, here = tokens_of(planner, "a here")
    assert read(plan_of(planner, prompt, named(name))) == [[a, -1, -2, here]]


class Counted(list[int]):
    """Token ids that know how often they were looked at."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


def test_names_that_begin_alike_are_not_tried_one_by_one(planner: PromptPlanner) -> None:
    (tokenizer,) = planner.tokenizers.values()
    names = EmbeddingNames(tokenizer, [named("a " * (i % 9 + 1) + str(i), 1) for i in range(900)])
    ids = Counted(tokenizer.encode("a " * 100 + "a a 10 a"))
    found = [one.name for _, one in names.find(ids) if isinstance(one, Embedding)]
    assert found == ["a a 10"] and ids.looks < 40 * len(ids)


def test_vectors_are_never_divided_between_chunks(planner: PromptPlanner) -> None:
    tree, eight = tokens_of(planner, "tree")[0], list(range(-1, -9, -1))
    embedding = named("my-cat", 8)
    for before, chunks in (
        (67, [[tree] * 67 + eight, [tree]]),
        (68, [[tree] * 68, [*eight, tree]]),
        (70, [[tree] * 70, [*eight, tree]]),
        (75, [[tree] * 75, [*eight, tree]]),
    ):
        plan = plan_of(planner, "tree " * before + "my-cat tree", embedding)
        assert read(plan) == chunks, before
    whole = list(range(-1, -76, -1))
    plan = plan_of(planner, "tree my-cat my-cat tree", named("my-cat", 75))
    assert read(plan) == [[tree], whole, whole, [tree]]


def test_what_follows_a_comma_goes_with_a_chunk_that_is_full(planner: PromptPlanner) -> None:
    """As with words: the web UI closes a chunk that is not full without looking for a comma."""
    tree, comma = tokens_of(planner, "tree ,")
    embedding = named("my-cat", 8)
    text = "tree " * 63 + ", my-cat tree tree tree tree my-cat"
    eight = list(range(-1, -9, -1))
    assert read(plan_of(planner, text, embedding)) == [
        [tree] * 63 + [comma],
        [*eight] + [tree] * 4 + eight,
    ]
    text = "tree " * 63 + ", tree tree my-cat"
    assert read(plan_of(planner, text, embedding)) == [
        [tree] * 63 + [comma, tree, tree, *eight],
    ]
    text = "tree " * 63 + ", tree tree tree tree my-cat"
    assert read(plan_of(planner, text, embedding)) == [
        [tree] * 63 + [comma] + [tree] * 4,
        eight,
    ]


def test_all_vectors_have_one_weight(planner: PromptPlanner) -> None:
    plan = plan_of(planner, "a (my-cat:1.3) b", named("my-cat", 3))
    weights = plan.encoders["text_encoder"].weights[0, 0, :7]
    np.testing.assert_allclose(weights, [1, 1, 1.3, 1.3, 1.3, 1, 1], rtol=1e-6)
    literal = plan_of(planner, "a my-cat AND b", named("my-cat", 3), emphasis="literal")
    assert read(literal)[0][1:4] == [-1, -2, -3]


def test_negatives_parts_edits_and_sections(planner: PromptPlanner) -> None:
    cat, dog, bad = named("my-cat"), named("my-dog", 1), named("bad-hands", 3)
    plan = plan_of(
        planner,
        ["[my-cat:my-dog:1] AND b", "a BREAK MY-DOG"],
        cat,
        dog,
        bad,
        negatives=["ugly", "bad-hands, my-dog"],
        steps=2,
    )
    assert plan.used == ((cat, dog), (dog, bad))
    assert plan.embeddings == (cat, dog, bad)
    by_text = {text: read(plan, row) for row, text in enumerate(plan.texts)}
    (a,), (comma,) = tokens_of(planner, "a"), tokens_of(planner, ",")
    assert by_text["my-cat"][0] == [-1, -2]
    assert by_text["my-dog"][0] == [-3]
    assert by_text["a BREAK MY-DOG"] == [[a], [-3]]
    assert by_text["bad-hands, my-dog"][0] == [-4, -5, -6, comma, -3]


def test_an_unguided_negative_names_nothing(planner: PromptPlanner) -> None:
    plan = planner.plan(
        ["a"], ["my-cat"], 1, PromptOptions(), is_guided=False, embeddings=(named("my-cat"),)
    )
    assert plan.used == ((),) and plan.embeddings == ()


def test_other_prompts_are_as_without(planner: PromptPlanner) -> None:
    plain = plan_of(planner, "a (red:1.2) cat, AND dog", steps=3)
    beside = plan_of(planner, "a (red:1.2) cat, AND dog", named("my-cat"), steps=3)
    assert beside.identity == plain.identity and beside.steps == plain.steps
    assert plain.identity != plan_of(planner, "my-cat", named("my-cat")).identity


def test_identity_tells_files_of_one_name_apart(planner: PromptPlanner) -> None:
    plans = [plan_of(planner, "my-cat", named("my-cat", 2)) for _ in range(2)]
    assert plans[0].identity == plans[1].identity
    one = named("my-cat", 2)
    other = Embedding("my-cat", "f" * 64, {"": one.parts[""] + 1})
    assert plan_of(planner, "my-cat", other).identity != plans[0].identity


def test_a_pair_gives_each_encoder_its_own(xl: PromptPlanner) -> None:
    pair = named("my-cat!", 3, clip_l=WIDTH, clip_g=WIDTH_2)
    plan = plan_of(xl, "a my-cat! here", pair)
    for network, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        np.testing.assert_array_equal(plan.encoders[network].vectors, pair.parts[key])
        assert read(plan, encoder=network)[0][1:4] == [-1, -2, -3]


def test_the_refiner_takes_the_second_half(xl: PromptPlanner) -> None:
    refiner = make_planner("text_encoder_2")
    pair = named("my-cat", 3, clip_l=WIDTH, clip_g=WIDTH_2)
    found = encoder_vectors(refiner.architecture, pair)
    assert found.keys() == {"text_encoder_2"} and found["text_encoder_2"] is pair.parts["clip_g"]


REFUSED: dict[str, tuple[tuple[Embedding, ...], str]] = {
    "of SD 1": (
        (named("x-y", 2, only=768),),
        r"'x-y' has vectors \[2, 768\]; this bundle's text encoders read \[n,8\] for text_encoder. "
        "It was made for Stable Diffusion 1. Give one",
    ),
    "of SD 2": ((named("x-y", 1, only=1024),), "It was made for Stable Diffusion 2"),
    "of SDXL": (
        (named("x-y", 2, clip_l=8, clip_g=12),),
        r"has clip_l \[2, 8\] and clip_g \[2, 12\]; .* It was made for SDXL",
    ),
    "of the second encoder": ((named("x-y", 2, clip_g=8),), r"has clip_g \[2, 8\]"),
    "the end": ((named("<|endoftext|>"),), "'<|endoftext|>': no prompt can hold that name"),
    "one name": (
        (named("my-cat", 1), named("MY - cat", 2)),
        r"'my-cat' \(.*\) and 'MY - cat' \(.*\) are the same name to the tokenizer",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_bundle_does_not_take_is_refused(planner: PromptPlanner, kind: str) -> None:
    embeddings, message = REFUSED[kind]
    with pytest.raises(ConfigError, match=message):
        plan_of(planner, "a", *embeddings)


def test_one_half_is_refused_for_two_encoders(xl: PromptPlanner) -> None:
    for widths in ({"only": WIDTH}, {"clip_l": WIDTH}, {"clip_l": WIDTH, "clip_g": WIDTH}):
        with pytest.raises(ConfigError, match=r"\[n,8\] for text_encoder and \[n,12\] for"):
            plan_of(xl, "a", named("x-y", 2, **widths))


def test_a_skipped_name_is_told_and_is_text(planner: PromptPlanner) -> None:
    skipped = [Skipped("my-cat", "f.pt", "the reason."), Skipped("unused", "g.pt", "none")]
    plan = plan_of(planner, "a my-cat, My-Cat", skipped=skipped)
    assert read(plan) == [tokens_of(planner, "a my-cat, my-cat")]
    assert plan.skipped == (
        "prompt: 'my-cat' is read as text, because its embedding is of no use here: the reason.",
    )
    known = plan_of(planner, "my-cat", named("my-cat"), skipped=skipped)
    assert read(known) == [[-1, -2]] and known.skipped == ()


def save(path: Path, count: int, width: int = WIDTH) -> Path:
    torch.save({"x": torch.full((count, width), float(count))}, path)
    return path


def test_library_of_a_folder_and_of_files(planner: PromptPlanner, tmp_path: Path) -> None:
    save(tmp_path / "A-b.pt", 1)
    save(tmp_path / "a-B.bin", 2)
    save(tmp_path / "wide.pt", 1, 1024)
    save(tmp_path / "z.pt", 3)
    library = EmbeddingLibrary(planner)
    library.add(tmp_path)
    assert [(one.name, one.num_vectors) for one in library.embeddings] == [("A-b", 1), ("z", 3)]
    reasons = {Path(one.file).name: one.reason for one in library.skipped}
    assert "are the same name to the tokenizer" in reasons["a-B.bin"]
    assert "was made for Stable Diffusion 2" in reasons["wide.pt"]
    library.add(tmp_path / "a-B.bin")  # whoever names a file wants it
    assert [(one.name, one.num_vectors) for one in library.embeddings] == [("a-B", 2), ("z", 3)]
    assert [Path(one.file).name for one in library.skipped] == ["wide.pt"]
    library.add(*read_embeddings(tmp_path / "z.pt", "other"))
    assert [one.name for one in library.embeddings] == ["a-B", "other", "z"]
    with pytest.raises(ConfigError, match="are the same name to the tokenizer"):
        library.add(tmp_path / "a-B.bin", tmp_path / "A-b.pt")
    with pytest.raises(ConfigError, match="Stable Diffusion 2"):
        library.add(tmp_path / "wide.pt")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        library.add(tmp_path / "missing")


def test_records_are_found_by_their_hash(planner: PromptPlanner, tmp_path: Path) -> None:
    library = EmbeddingLibrary(planner)
    library.add(save(tmp_path / "a.pt", 1))
    (held,) = library.embeddings
    record = Embedding("once-called", held.sha256)
    (found,) = library.resolve((record,))
    assert found.is_given and found == record and found.parts is not None
    assert library.resolve(None) == (held,)
    with pytest.raises(ConfigError, match=f"'a', with SHA-256 {'0' * 64}, is only known by its"):
        library.resolve((Embedding("a", "0" * 64),))
