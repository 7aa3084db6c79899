"""Whole networks with the Triton kernels, interpreted, against torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.interpreted import DTYPES, assert_within_twice, hardware_bfloat16
from support.tiny_architectures import TINY_SD15, TINY_SD21, TINY_SDXL
from tolerances import assert_close
from torch import nn

from sdengine.backends.torch.triton_ops import TritonOps
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.errors import ConfigError
from sdengine.kernels.registry import OPS
from sdengine.models.configs import ModelArchitecture
from sdengine.models.ops import set_ops
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

__all__ = ["hardware_bfloat16"]
pytestmark = pytest.mark.usefixtures("hardware_bfloat16")

# The tiny families with the head dimensions of the published ones, which the kernels know.
SD15 = replace(
    TINY_SD15,
    unet=replace(TINY_SD15.unet, block_out_channels=(40, 80, 160, 160), attention_head_dim=1),
    vae=replace(TINY_SD15.vae, block_out_channels=(8, 16, 64)),
    text_encoders=(replace(TINY_SD15.text_encoder, hidden_size=64, num_attention_heads=1),),
)
SD21 = replace(
    TINY_SD21,
    unet=replace(
        TINY_SD21.unet, block_out_channels=(64, 64, 128, 128), attention_head_dim=(1, 1, 2, 2)
    ),
)
SDXL = replace(
    TINY_SDXL,
    unet=replace(TINY_SDXL.unet, block_out_channels=(64, 64, 128), attention_head_dim=(1, 1, 2)),
)
FAMILIES = [SD15, SD21, SDXL]

Outputs = tuple[torch.Tensor, ...]
Function = Callable[[nn.Module, torch.dtype], Outputs]


def unet_of(family: ModelArchitecture) -> tuple[nn.Module, Function]:
    config = family.unet
    g = torch.Generator().manual_seed(3)
    sample = torch.randn(2, 4, 8, 8, generator=g)
    context = torch.randn(2, 77, config.cross_attention_dim, generator=g)
    text_embeds = torch.randn(2, 24, generator=g)
    time_ids = torch.tensor([[64.0, 128, 0, 8, 64, 128]]).repeat(2, 1)

    def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
        added = {}
        if config.addition_embed_type:
            added = {"text_embeds": text_embeds.to(dtype), "time_ids": time_ids}
        layout = torch.channels_last
        x = sample.to(dtype).contiguous(memory_format=layout)
        return (model(x, torch.tensor([999.0, 20.5]), context.to(dtype), **added),)

    return UNet2DConditionModel(config), run


def decoder_of(family: ModelArchitecture) -> tuple[nn.Module, Function]:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))

    def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
        assert isinstance(model, AutoencoderKL)
        return (model.decode(latents.to(dtype)),)

    return AutoencoderKL(family.vae), run


def text_encoder_of(family: ModelArchitecture) -> tuple[nn.Module, Function]:
    config = family.text_encoder
    embeds = torch.randn(2, 77, config.hidden_size, generator=torch.Generator().manual_seed(5))

    def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
        hidden_states, normed, pooled = model(embeds.to(dtype), torch.tensor([4, 76]))
        return hidden_states, normed, pooled

    return CLIPTextEncoder(config), run


CASES: dict[str, tuple[nn.Module, Function]] = {
    **{f"unet {family.name}": unet_of(family) for family in FAMILIES},
    "vae decoder": decoder_of(SD15),
    "text encoder": text_encoder_of(SD15),
}


@torch.no_grad()
def outputs_of(case: str, dtype: torch.dtype, ops: TritonOps | None = None) -> Outputs:
    model, run = CASES[case]
    seed_weights(model.float(), seed=2)
    model.to(dtype).eval()
    if ops is not None:
        set_ops(model, ops)
    try:
        return run(model, dtype)
    finally:
        for module in model.modules():
            vars(module).pop("ops", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    # The families differ in what is asked of the kernels, not in how these round.
    [(case, DTYPES[0]) for case in CASES] + [("unet tiny-sd15", dtype) for dtype in DTYPES[1:]],
)
def test_networks_compute_the_same(case: str, dtype: torch.dtype) -> None:
    ops = TritonOps()
    truth = outputs_of(case, torch.float64)
    for actual, torchs, exact in zip(
        outputs_of(case, dtype, ops), outputs_of(case, dtype), truth, strict=True
    ):
        name = str(dtype).removeprefix("torch.")
        assert_close("triton network", name, actual, exact)
        if dtype != torch.float32:
            assert_within_twice(actual, torchs, exact)
    check_report(case, ops, dtype)


def check_report(case: str, ops: TritonOps, dtype: torch.dtype) -> None:
    report = ops.report()
    expected = {
        "vae decoder": {"attention", "group_norm_silu"},
        "text encoder": {"attention", "layer_norm"},
    }
    assert {choice.op for choice in report} == expected.get(case, set(OPS))
    for choice in report:
        # The interpreter does not multiply bf16.
        replaced = choice.op != "attention" or dtype != torch.bfloat16
        assert choice.replaced == replaced, choice
        assert replaced or "interpreter multiplies bfloat16" in choice.reason


@torch.no_grad()
def test_what_no_kernel_computes_stays_with_torch_and_is_reported() -> None:
    unet, run = unet_of(TINY_SD15)  # heads of 4 to 12 channels
    seed_weights(unet, seed=2)
    (expected,) = run(unet.eval(), torch.float32)
    ops = TritonOps()
    set_ops(unet, ops)
    assert_close("triton network", "float32", run(unet, torch.float32)[0], expected)
    reasons = {choice.op: choice.reason for choice in ops.report()}
    assert "head dimension" in reasons["attention"]
    assert [op for op, reason in reasons.items() if not reason] == [
        op for op in reasons if op != "attention"
    ]


@torch.no_grad()
def test_only_what_is_asked_for_is_replaced() -> None:
    unet, run = unet_of(SD21)
    ops = TritonOps(("layer_norm",))
    set_ops(unet.eval(), ops)
    run(unet, torch.float32)
    assert {choice.op for choice in ops.report() if choice.replaced} == {"layer_norm"}
    others = {choice.reason for choice in ops.report() if not choice.replaced}
    assert others == {"it is not among those to replace"}
    with pytest.raises(ConfigError, match="replace: 'convolution'"):
        TritonOps(("convolution",))


@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_maps_of_any_layout(channels_last: bool) -> None:
    ops = TritonOps()
    norm = nn.GroupNorm(4, 8)
    x = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    laid = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assert_close("group_norm_silu", "float32", ops.group_norm(norm, laid), norm(x))
    turned = x.transpose(2, 3)
    assert_close("group_norm_silu", "float32", ops.group_norm(norm, turned), norm(turned))
    layouts = [choice.shape.channels_last for choice in ops.report()]
    assert layouts == [channels_last] + ([False] if channels_last else [])
