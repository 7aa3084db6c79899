"""The text encoders against transformers', on equal weights."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import tiny_architectures
from tolerances import assert_close

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.configs import SD15, SD21, SDXL
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig

EOS = 49407
TINY = {
    f"{family.name}-{i}": config
    for family in tiny_architectures.TINY.values()
    for i, config in enumerate(family.text_encoders)
}


def oracle(config: TextEncoderConfig) -> torch.nn.Module:
    """Build transformers' model of the same configuration."""
    content = config.to_dict()
    model_class = getattr(transformers, content["architectures"][0])
    model: torch.nn.Module = model_class(transformers.CLIPTextConfig(**content)).eval()
    return model


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give parameters the names that they have in checkpoint files.

    Recent transformers drop the prefix in memory where there is no projection.
    """
    return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}


def token_ids(pad: int) -> torch.Tensor:
    """Make three prompts of different lengths: [3,77]."""
    rows = torch.full((3, 77), pad)
    for row, length in enumerate((0, 9, 75)):
        words = torch.arange(length) * 37 % 49000 + 1
        rows[row, : length + 2] = torch.tensor([49406, *words.tolist(), EOS])
    return rows


@pytest.mark.parametrize("pad", [EOS, 0], ids=["pad-is-eos", "pad-is-not-eos"])
@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_every_hidden_state_and_the_pooled_output_match(name: str, pad: int) -> None:
    ours = CLIPTextEncoder(TINY[name]).eval()
    seed_weights(ours, seed=1)
    theirs = oracle(TINY[name])
    prefixed = next(iter(theirs.state_dict())).startswith("text_")
    theirs.load_state_dict(
        {k if prefixed else k.removeprefix("text_model."): v for k, v in ours.state_dict().items()}
    )

    ids = token_ids(pad)
    eos_index = (ids == EOS).int().argmax(dim=1)
    hidden, normed, pooled = ours.forward_ids(ids, eos_index)
    expected = theirs(ids, output_hidden_states=True)

    assert len(hidden) == TINY[name].num_hidden_layers + 1
    for state, expected_state in zip(hidden, expected.hidden_states, strict=True):
        assert_close("text_encoder", "float32", state, expected_state)
    assert_close("text_encoder", "float32", normed[-1], expected.last_hidden_state)
    pooled_name = "text_embeds" if TINY[name].with_projection else "pooler_output"
    assert_close("text_encoder", "float32", pooled, getattr(expected, pooled_name))


@torch.no_grad()
def test_later_tokens_do_not_reach_back() -> None:
    model = CLIPTextEncoder(TINY["tiny-sd15-0"]).eval()
    seed_weights(model, seed=1)
    ids = token_ids(EOS)[1:2]
    changed = ids.clone()
    changed[0, 5] = 7
    eos_index = torch.tensor([10])
    a, b = (model.forward_ids(x, eos_index)[0][-1, 0] for x in (ids, changed))
    assert torch.equal(a[:5], b[:5])
    assert not torch.equal(a[5], b[5])


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SD15.text_encoder, 123_060_480),
        (SD21.text_encoder, 340_387_840),
        (SDXL.text_encoders[1], 694_659_840),
    ],
    ids=["CLIP-L", "OpenCLIP-H", "OpenCLIP-bigG"],
)
def test_full_size_has_the_published_names_shapes_and_count(
    config: TextEncoderConfig, count: int
) -> None:
    with torch.device("meta"):
        ours, theirs = CLIPTextEncoder(config), oracle(config)
    assert sum(p.numel() for p in ours.parameters()) == count
    expected = published_names(theirs.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }


def test_config_survives_its_own_json() -> None:
    for config in TINY.values():
        assert TextEncoderConfig.from_dict(config.to_dict()) == config
