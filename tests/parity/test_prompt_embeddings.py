"""Whole prompts through random text encoders: our conditioning against diffusers' pipelines."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from support.tiny_architectures import TINY
from support.tiny_bundle import make_tiny_bundle
from tolerances import assert_close

import sdengine
from sdengine.backends.base import Module
from sdengine.bundle.manifest import MERGES_FILE, VOCAB_FILE, Manifest
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.prompt.conditioning import TextConditioner
from sdengine.prompt.plan import PromptOptions

TOKENIZER = Path(sdengine.__file__).parent / "checkpoints" / "demo" / "tokenizer"
NETWORKS = ("text_encoder", "text_encoder_2")
# Padding of each encoder and the hidden state that each family's pipeline takes.
PADDING = {"tiny-sd15": ["<|endoftext|>"], "tiny-sd21": ["!"], "tiny-sdxl": ["<|endoftext|>", "!"]}
PROMPTS = (
    "",
    "a photograph of an astronaut riding a horse!",
    "a cat, a dog!! It's 3.14 👩‍🔬 ÀÉ ﬁ",
    "word " * 75,
    "oil painting <|endoftext|> of a tree",
)


class TorchEncoder:
    """One of our text encoders at a fixed number of rows, as a backend's module."""

    def __init__(self, model: CLIPTextEncoder, rows: int) -> None:
        self.model = model
        config = model.config
        embeds = (rows, 77, config.hidden_size)
        states = (config.num_hidden_layers + 1, *embeds)
        width = config.projection_dim if config.with_projection else config.hidden_size
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("inputs_embeds", embeds, "float32"),
            TensorSpec("eos_index", (rows,), "int64"),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("hidden_states", states, "float32"),
            TensorSpec("normed_hidden_states", states, "float32"),
            TensorSpec("pooled", (rows, width), "float32"),
        )

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.model(*(torch.from_numpy(inputs[spec.name]) for spec in self.inputs))
        names = (spec.name for spec in self.outputs)
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    def close(self) -> None:
        pass


@dataclass
class Pair:
    """Our conditioner with its encoders, and diffusers' pipeline of the same weights."""

    family: str
    conditioner: TextConditioner
    models: dict[str, CLIPTextEncoder]
    pipeline: Any

    def ours(
        self, prompts: list[str], negatives: list[str], *, embeddings: Any = (), **options: Any
    ) -> Any:
        given = PromptOptions(**options)
        plan = self.conditioner.plan(prompts, negatives, 1, given, embeddings=embeddings)

        def get_encoder(network: str, rows: int) -> Module:
            return TorchEncoder(self.models[network], rows)

        return plan, self.conditioner.encode(plan, get_encoder)

    @torch.no_grad()
    def theirs(self, prompt: str, negative: str | None = None, **options: Any) -> Any:
        """Return embeddings, negative embeddings, pooled, negative pooled of one prompt."""
        options = {"num_images_per_prompt": 1, "device": "cpu", **options}
        options = {"do_classifier_free_guidance": True, "negative_prompt": negative, **options}
        found = self.pipeline.encode_prompt(prompt, **options)
        return (*found, None, None)[:4]


@pytest.fixture(scope="module", params=sorted(PADDING))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family = request.param
    models = {}
    for network, config in zip(NETWORKS, TINY[family].text_encoders, strict=False):
        models[network] = CLIPTextEncoder(config).eval()
        seed_weights(models[network], seed=len(network))
    bundle = make_bundle(tmp_path_factory.mktemp(family), family, models)
    return Pair(family, TextConditioner(bundle), models, make_pipeline(family, models))


def make_bundle(folder: Path, family: str, models: dict[str, CLIPTextEncoder]) -> Bundle:
    """Put real tokenizer, tables and architecture into the tiny bundle's manifest."""
    content = open_bundle(make_tiny_bundle(folder / "tiny")).manifest.model_dump(mode="json")
    is_xl = len(models) == 2
    encoders = []
    (folder / "tokenizer").mkdir()
    for file in (VOCAB_FILE, MERGES_FILE):
        shutil.copy(TOKENIZER / Path(file).name, folder / file)
    for (network, model), padding in zip(models.items(), PADDING[family], strict=True):
        table = model.text_model.embeddings.token_embedding.weight.detach().numpy()
        save_file({"token_embedding": table}, folder / f"{network}.safetensors")
        encoders.append(
            {
                "network": network,
                "token_table": f"{network}.safetensors",
                "hidden_size": model.config.hidden_size,
                "num_layers": model.config.num_hidden_layers,
                "hidden_state": {"index": -2, "kind": "raw"} if is_xl else {},
                "pad_token": padding,
            }
        )
    content["architecture"].update(
        text_encoders=encoders,
        pooled_from="text_encoder_2" if is_xl else None,
        zero_empty_negative=is_xl,
    )
    names = [VOCAB_FILE, MERGES_FILE, *(f"{network}.safetensors" for network in models)]
    kept = [entry for entry in content["files"] if entry["path"] not in names]
    added = [{"path": name, "size_bytes": 0, "sha256": "0" * 64} for name in names]
    content["files"] = kept + added
    return Bundle(Manifest.model_validate(content), folder)


def make_pipeline(family: str, models: dict[str, CLIPTextEncoder]) -> Any:
    import diffusers

    library: Any = diffusers  # its type annotations are incomplete
    parts: dict[str, Any] = {"vae": None, "unet": None, "scheduler": None}
    for (network, model), padding in zip(models.items(), PADDING[family], strict=True):
        files = (str(TOKENIZER / "vocab.json"), str(TOKENIZER / "merges.txt"))
        suffix = network.removeprefix("text_encoder")
        parts[f"tokenizer{suffix}"] = transformers.CLIPTokenizer(
            *files, pad_token=padding, model_max_length=77
        )
        content = model.config.to_dict()
        model_class = getattr(transformers, content["architectures"][0])
        theirs = model_class(transformers.CLIPTextConfig(**content)).eval()
        prefixed = next(iter(theirs.state_dict())).startswith("text_")
        theirs.load_state_dict(
            {
                name if prefixed else name.removeprefix("text_model."): value
                for name, value in model.state_dict().items()
            }
        )
        if not prefixed:
            # Where diffusers looks for the norm; recent transformers have that level no more.
            theirs.__dict__["text_model"] = theirs
        parts[network] = theirs
    if len(models) == 2:
        return library.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    checks = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return library.StableDiffusionPipeline(**parts, **checks)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_plain_prompts(pair: Pair, clip_skip: int | None) -> None:
    """diffusers counts the layers left out, 0 of them being our 1."""
    prompts = list(PROMPTS)
    ours_skip = None if clip_skip is None else clip_skip + 1
    plan, found = pair.ours(prompts, ["blurry, ugly!"] * len(prompts), clip_skip=ours_skip)
    for (negative, ((row, _),)), prompt in zip(plan.rows(0), prompts, strict=True):
        embeds, negative_embeds, pooled, negative_pooled = pair.theirs(
            prompt, "blurry, ugly!", clip_skip=clip_skip
        )
        assert_close("text_encoder", "float32", found.prompt_embeds[[row]], embeds)
        if clip_skip is None:  # diffusers leaves out no layers of negative prompts
            assert_close(
                "text_encoder", "float32", found.prompt_embeds[[negative]], negative_embeds
            )
        assert (found.pooled is None) == (pooled is None)
        if found.pooled is not None:
            assert_close("text_encoder", "float32", found.pooled[[row]], pooled)
            assert_close("text_encoder", "float32", found.pooled[[negative]], negative_pooled)


def test_no_negative_prompt(pair: Pair) -> None:
    plan, found = pair.ours(["a cat"], [""])
    [(negative, _)] = plan.rows(0)
    _, negative_embeds, _, negative_pooled = pair.theirs("a cat", None)
    assert_close("text_encoder", "float32", found.prompt_embeds[[negative]], negative_embeds)
    if found.pooled is not None:
        assert_close("text_encoder", "float32", found.pooled[[negative]], negative_pooled)


def test_long_prompt_is_its_chunks(pair: Pair) -> None:
    texts = ["tree " * 75, "house " * 75, "a cat"]
    plan, found = pair.ours(["".join(texts), "short"], ["", ""])
    assert plan.num_chunks == 3
    chunks = [pair.theirs(text) for text in texts]
    expected = np.concatenate([embeds.numpy() for embeds, *_ in chunks], axis=1)
    assert_close("text_encoder", "float32", found.prompt_embeds[[0]], expected)
    padded = [pair.theirs(text)[0].numpy() for text in ("short", "", "")]
    assert_close(
        "text_encoder", "float32", found.prompt_embeds[[1]], np.concatenate(padded, axis=1)
    )
    if found.pooled is not None:
        assert_close("text_encoder", "float32", found.pooled[[0]], chunks[0][2])


def test_weights(pair: Pair) -> None:
    """Each token's row is multiplied; "original" then restores each encoder's mean of the chunk."""
    embeds = pair.theirs("a red cat on grass")[0].numpy().astype(np.float64)
    factors = np.ones((1, 77, 1))
    factors[:, 2:4] = 1.4  # start, a, red, cat
    factors[:, 5] = 1 / 1.1
    prompt = "a (red cat:1.4) on [grass]"
    _, found = pair.ours([prompt], [], emphasis="no_norm")
    assert_close("text_encoder", "float32", found.prompt_embeds, embeds * factors)
    _, found = pair.ours([prompt], [], emphasis="original")
    widths = [model.config.hidden_size for model in pair.models.values()]
    expected = []
    for part in np.split(embeds, np.cumsum(widths)[:-1], axis=2):
        weighted = part * factors
        expected.append(weighted * (part.mean() / weighted.mean()))
    assert_close("text_encoder", "float32", found.prompt_embeds, np.concatenate(expected, axis=2))


def load_embedding(pair: Pair, vectors: dict[str, torch.Tensor], folder: Path) -> tuple[Any, Any]:
    """Return diffusers' pipeline with an embedding called my-cat, and ours of the same file."""
    path = folder / "my-cat.safetensors"
    pipeline = make_pipeline(pair.family, pair.models)
    save_torch_file(vectors, path)
    if len(vectors) == 1:
        pipeline.load_textual_inversion(vectors, token="my-cat")
    else:
        for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
            encoder = getattr(pipeline, f"text_encoder{suffix}")
            tokenizer = getattr(pipeline, f"tokenizer{suffix}")
            pipeline.load_textual_inversion(
                vectors[key], token="my-cat", text_encoder=encoder, tokenizer=tokenizer
            )
    return pipeline, read_embeddings(path)


@pytest.fixture(scope="module")
def embedding(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, tuple[Any, ...]]:
    """Return the pair whose pipeline has an embedding of 8 loud vectors, and ours."""
    generator = torch.Generator().manual_seed(1)
    keys = ("clip_l", "clip_g") if len(pair.models) == 2 else ("my-cat",)
    vectors = {
        key: torch.randn(8, model.config.hidden_size, generator=generator)
        for key, model in zip(keys, pair.models.values(), strict=True)
    }
    pipeline, ours = load_embedding(pair, vectors, tmp_path_factory.mktemp("embedding"))
    return replace(pair, pipeline=pipeline), ours


EMBEDDING_PROMPTS = {
    "alone": ("my-cat", "my-cat"),
    "upper case": ("a MY-CAT, red", "a my-cat, red"),
    "twice": ("my-cat on my-cat", "my-cat on my-cat"),
    "inside another word": ("a tommy-cats", "a tommy-cats"),
    "at the end of a chunk": ("tree " * 67 + "my-cat", "tree " * 67 + "my-cat"),
}


@pytest.mark.parametrize("kind", EMBEDDING_PROMPTS)
def test_textual_inversion(embedding: tuple[Pair, tuple[Any, ...]], kind: str) -> None:
    """diffusers is asked without capitals, and with no name inside a word, which it would take."""
    pair, ours = embedding
    prompt, theirs = EMBEDDING_PROMPTS[kind]
    pair_of_all = pair if kind != "inside another word" else replace(
        pair, pipeline=make_pipeline(pair.family, pair.models)
    )  # fmt: skip
    plan, found = pair.ours([prompt], ["ugly, my-cat"], embeddings=ours)
    [(negative, ((row, _),))] = plan.rows(0)
    embeds, _, pooled, _ = pair_of_all.theirs(theirs, "ugly, my-cat")
    _, negative_embeds, _, negative_pooled = pair.theirs(theirs, "ugly, my-cat")
    assert_close("text_encoder", "float32", found.prompt_embeds[[row]], embeds)
    assert_close("text_encoder", "float32", found.prompt_embeds[[negative]], negative_embeds)
    if found.pooled is not None:
        assert_close("text_encoder", "float32", found.pooled[[row]], pooled)
        assert_close("text_encoder", "float32", found.pooled[[negative]], negative_pooled)


def test_textual_inversion_that_does_not_fit_begins_a_chunk(
    embedding: tuple[Pair, tuple[Any, ...]],
) -> None:
    pair, ours = embedding
    plan, found = pair.ours(["tree " * 70 + "(my-cat:1.3) tree"], [], embeddings=ours)
    assert plan.num_chunks == 2
    first, *_, pooled, _ = pair.theirs("tree " * 70)
    second = pair.theirs("my-cat tree")[0].numpy().astype(np.float64)
    factors = np.ones((1, 77, 1))
    factors[:, 1:9] = 1.3
    widths = [model.config.hidden_size for model in pair.models.values()]
    expected = []
    for part in np.split(second, np.cumsum(widths)[:-1], axis=2):
        expected.append(part * factors * (part.mean() / (part * factors).mean()))
    joined = np.concatenate([first, np.concatenate(expected, axis=2)], axis=1)
    assert_close("text_encoder", "float32", found.prompt_embeds, joined)
    if found.pooled is not None:
        assert_close("text_encoder", "float32", found.pooled, pooled)


def test_prompts_beside_a_textual_inversion_are_the_same_to_the_bit(
    embedding: tuple[Pair, tuple[Any, ...]],
) -> None:
    pair, ours = embedding
    for prompt in PROMPTS:
        _, plain = pair.ours([prompt], ["ugly"])
        _, beside = pair.ours([prompt], ["ugly"], embeddings=ours)
        np.testing.assert_array_equal(plain.prompt_embeds, beside.prompt_embeds)
        if plain.pooled is not None:
            np.testing.assert_array_equal(plain.pooled, beside.pooled)
