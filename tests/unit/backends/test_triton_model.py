"""What the triton backend changes of a network: products it joins, nothing of its results."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.tiny_architectures import TINY_SD15, TINY_SDXL
from tolerances import assert_close
from torch import Tensor, nn

from sdengine.backends.torch.triton_model import JoinedCrossAttention, SplitUNet, prepare
from sdengine.models.attention import Attention, BasicTransformerBlock
from sdengine.models.ops import TorchOps
from sdengine.models.unet import UNet2DConditionModel


class NotedOps(TorchOps):
    """Torch's operations, and the layout of what attention reads."""

    def __init__(self) -> None:
        self.copied: list[bool] = []

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Any = None) -> Tensor:
        self.copied.append(k.untyped_storage().data_ptr() != v.untyped_storage().data_ptr())
        return super().attention(q, k, v, scale, mask)


def products(block: nn.Module, *inputs: Tensor) -> int:
    """Count the linear layers that a block runs."""
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1

    linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(note) for module in linear]
    block(*inputs)
    for hook in hooks:
        hook.remove()
    return count


@torch.inference_mode()
def test_a_block_runs_three_products_fewer_and_computes_the_same() -> None:
    torch.manual_seed(0)
    block, ops = BasicTransformerBlock(32, 48, 4), NotedOps()
    x, context = torch.randn(2, 9, 32), torch.randn(2, 7, 48)
    expected, before = block(x, context), products(block, x, context)
    weights = sum(parameter.numel() for parameter in block.parameters())
    prepare(block, ops)
    assert products(block, x, context) == before - 3
    assert_close("triton network", "float32", block(x, context).numpy(), expected.numpy())
    assert sum(parameter.numel() for parameter in block.parameters()) == weights
    assert not any(ops.copied)  # keys and values are read where the one product left them


@torch.inference_mode()
@pytest.mark.parametrize("config", [TINY_SD15.unet, TINY_SDXL.unet], ids=["sd15", "sdxl"])
def test_a_unet_computes_the_same(config: Any) -> None:
    torch.manual_seed(0)
    model, ops = UNet2DConditionModel(config).eval(), NotedOps()
    inputs = [torch.randn(2, 4, 8, 8), torch.full((2,), 500.0)]
    inputs.append(torch.randn(2, 7, config.cross_attention_dim))
    if config.addition_embed_type is not None:
        inputs += [torch.randn(2, 24), torch.full((2, 6), 64.0)]
    expected = model(*inputs)
    prepare(model, ops)
    assert_close("triton network", "float32", model(*inputs).numpy(), expected.numpy())
    assert not [module for module in model.modules() if isinstance(module, Attention)]
    assert ops.copied and not any(ops.copied)
    four = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in four)


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    [TINY_SD15.unet, TINY_SDXL.unet, dataclasses.replace(TINY_SD15.unet, time_cond_proj_dim=16)],
    ids=["sd15", "sdxl", "lcm"],
)
def test_what_steps_have_in_common_is_computed_once_for_all_of_them(config: Any) -> None:
    torch.manual_seed(0)
    model = UNet2DConditionModel(config).eval()
    text = torch.randn(2, 7, config.cross_attention_dim)
    added: dict[str, Tensor] = {}
    if config.addition_embed_type is not None:
        added = {"text_embeds": torch.randn(2, 24), "time_ids": torch.randn(2, 6).abs() * 64}
    if config.time_cond_proj_dim is not None:
        added = {"timestep_cond": torch.randn(2, 16)}
    timesteps = torch.tensor([981.0, 500.5, 1.0], dtype=torch.float64)
    samples = torch.randn(3, 2, 4, 8, 8)
    expected = [
        model(sample, t.expand(2), text, **added)
        for sample, t in zip(samples, timesteps, strict=True)
    ]
    prepare(model, TorchOps())
    split = SplitUNet(model, list(added))
    moves, *keys_values = split.common(timesteps, text, *added.values())
    crossing = [m for m in model.modules() if isinstance(m, JoinedCrossAttention)]
    assert moves.shape[0] == 3 and len(keys_values) == len(crossing) > 0
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("to_kv", "time_emb_proj")) or "embedding" in name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    for k, sample in enumerate(samples):
        found = split.step(sample, torch.tensor([k], dtype=torch.int32), moves, *keys_values)
        assert_close("triton network", "float32", found.numpy(), expected[k].numpy())
    assert not ran
