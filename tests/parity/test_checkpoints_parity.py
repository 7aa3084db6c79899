"""What we save, diffusers and transformers load; what they save, we load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from support.tiny_checkpoints import make_tiny
from tolerances import assert_close

from sdengine.checkpoints import load_checkpoint
from sdengine.errors import CheckpointError

PROMPT_IDS = torch.tensor([[49406, 320, 736, 7117] + [49407] * 73])


@pytest.mark.parametrize("arch", ["tiny", "tiny-sd21"])
@torch.no_grad()
def test_a_saved_folder_is_a_diffusers_pipeline_and_back(arch: str, tmp_path: Path) -> None:
    folder = make_tiny(arch, tmp_path / "ours")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    ours = load_checkpoint(folder)

    assert ours.pad_tokens == {"text_encoder": pipeline.tokenizer.pad_token}
    hidden = pipeline.text_encoder(PROMPT_IDS).last_hidden_state
    _, normed, _ = ours.text_encoder().forward_ids(PROMPT_IDS, torch.tensor([4]))
    assert_close("text_encoder", "float32", normed[-1], hidden)

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500.0])
    predicted = ours.unet()(latents, t, hidden)
    assert_close("unet", "float32", predicted, pipeline.unet(latents, t, hidden).sample)
    images = ours.vae().decode(latents)
    assert_close("vae", "float32", images, pipeline.vae.decode(latents).sample)

    pipeline.save_pretrained(tmp_path / "theirs")
    again = load_checkpoint(tmp_path / "theirs")
    for part in ("unet", "vae", "text_encoder"):
        state, expected = (getattr(c, part)().state_dict() for c in (again, ours))
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert again.pad_tokens == ours.pad_tokens
    vocab, merges = ours.tokenizer_files().values()
    vocab_again, merges_again = again.tokenizer_files().values()
    assert json.loads(vocab_again) == json.loads(vocab)
    assert merges_again.split() == merges.split()


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        ("tiny-sd21", StableDiffusionPipeline),
        ("tiny-sdxl", StableDiffusionXLPipeline),
        ("tiny-sdxl-refiner", StableDiffusionXLImg2ImgPipeline),
    ],
)
def test_shards_and_variants_that_diffusers_writes_are_read(
    arch: str, kind: type[DiffusionPipeline], tmp_path: Path
) -> None:
    folder = make_tiny(arch, tmp_path / "ours")
    pipeline = kind.from_pretrained(folder, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "theirs", variant="fp16", max_shard_size="300KB")
    assert len(list((tmp_path / "theirs/unet").glob("*fp16*.safetensors"))) > 1
    ours = load_checkpoint(folder)
    for variant in ("fp16", None):
        again = load_checkpoint(tmp_path / "theirs", variant=variant)
        assert again.parts == ours.parts
        assert again.pad_tokens == ours.pad_tokens
        assert again.zero_empty_negative == ours.zero_empty_negative
        assert again.requires_aesthetic_score == ours.requires_aesthetic_score
        for part in ours.parts:
            state, expected = (c.load(part, None).state_dict() for c in (again, ours))
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match="ema"):
        load_checkpoint(tmp_path / "theirs", variant="ema").unet()
