"""The table of operations that the networks' modules call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.tiny_architectures import TINY_SD15, TINY_SD21, TINY_SDXL
from torch import nn

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.attention import GEGLU, Attention, set_attention_impl
from sdengine.models.configs import ModelArchitecture
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.ops import PLAIN_ATTENTION_OPS, TORCH_OPS, OpsModule, TorchOps, set_ops
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

FAMILIES = [TINY_SD15, TINY_SD21, TINY_SDXL]


class CountingOps(TorchOps):
    """Torch's operations, counted; `norms` holds which modules were asked for."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.norms: list[nn.Module] = []

    def attention(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.calls["attention"] += 1
        return super().attention(*arguments, **options)

    def group_norm(self, norm: nn.GroupNorm, *arguments: Any, **options: Any) -> torch.Tensor:
        self.norms.append(norm)
        return super().group_norm(norm, *arguments, **options)

    def layer_norm(self, norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        self.norms.append(norm)
        return super().layer_norm(norm, x)

    def add_layer_norm(
        self, norm: nn.LayerNorm, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.norms.append(norm)
        return super().add_layer_norm(norm, x, residual)

    def geglu(self, projected: torch.Tensor, inner: int) -> torch.Tensor:
        self.calls["geglu"] += 1
        return super().geglu(projected, inner)


def count(model: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@torch.no_grad()
def test_every_replaceable_operation_of_a_unet_goes_through_the_table(
    family: ModelArchitecture,
) -> None:
    unet = UNet2DConditionModel(family.unet).eval()
    ops = CountingOps()
    set_ops(unet, ops)
    added = {}
    if family.unet.addition_embed_type:
        added = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}
    context = torch.zeros(1, 77, family.unet.cross_attention_dim)
    unet(torch.zeros(1, 4, 8, 8), torch.ones(1), context, **added)
    assert len(ops.norms) == len(set(ops.norms)) == count(unet, nn.GroupNorm, nn.LayerNorm)
    assert ops.calls == {"attention": count(unet, Attention), "geglu": count(unet, GEGLU)}


@torch.no_grad()
def test_every_replaceable_operation_of_an_autoencoder_goes_through_the_table() -> None:
    vae = AutoencoderKL(TINY_SD15.vae).eval()
    ops = CountingOps()
    set_ops(vae, ops)
    vae(torch.zeros(1, 3, 64, 64))
    assert len(ops.norms) == len(set(ops.norms)) == count(vae, nn.GroupNorm)
    assert ops.calls["attention"] == 2


@torch.no_grad()
def test_every_replaceable_operation_of_a_text_encoder_goes_through_the_table() -> None:
    config = TINY_SD15.text_encoder
    encoder = CLIPTextEncoder(config).eval()
    ops = CountingOps()
    set_ops(encoder, ops)
    encoder(torch.zeros(1, 77, config.hidden_size), torch.tensor([5]))
    assert len(ops.norms) == len(set(ops.norms)) == count(encoder, nn.LayerNorm)
    assert ops.calls["attention"] == config.num_hidden_layers


@torch.no_grad()
def test_a_controlnet_reads_the_table_too() -> None:
    controlnet = ControlNetModel(TINY_SD15.controlnet).eval()
    ops = CountingOps()
    set_ops(controlnet, ops)
    inputs = (torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, 77, 32))
    controlnet(*inputs, torch.zeros(1, 3, 64, 64))
    assert len(ops.norms) == count(controlnet, nn.GroupNorm, nn.LayerNorm)


def test_tables_belong_to_their_model_alone() -> None:
    first, second = (Attention(8, 8, 2) for _ in range(2))
    set_ops(first, PLAIN_ATTENTION_OPS)
    assert first.ops is PLAIN_ATTENTION_OPS
    assert second.ops is OpsModule.ops is TORCH_OPS


@torch.no_grad()
def test_attention_written_out_is_the_same() -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.full((9, 9), -torch.inf).triu(1)
    for causal_mask in (None, mask):
        fused = TORCH_OPS.attention(q, k, v, 0.3, causal_mask)
        plain = PLAIN_ATTENTION_OPS.attention(q, k, v, 0.3, causal_mask)
        assert torch.allclose(fused, plain, atol=1e-5)


def test_an_unknown_implementation_is_refused() -> None:
    encoder = CLIPTextEncoder(TINY_SD15.text_encoder)
    seed_weights(encoder, 0)
    with pytest.raises(ValueError, match="attention_impl: 'flash'"):
        set_attention_impl(encoder, "flash")
