"""Memory of a training: counted from shapes as autograd keeps it, and what the command says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.tiny_architectures import TINY
from torch import Tensor, nn

from sdengine.checkpoints.architecture_source import published_architecture, source_of
from sdengine.cli.main import main
from sdengine.errors import ConfigError
from sdengine.models.unet import UNet2DConditionModel
from sdengine.training.tuning.lora import Lora
from sdengine.training.tuning.memory import estimate_training
from sdengine.training.tuning.options import OPTIONS


def estimate(kind: str, **options: Any) -> Any:
    more: dict[str, Any] = {"preprocessor": "canny"} if kind == "controlnet" else {}
    return estimate_training(source_of(TINY["tiny"]), OPTIONS[kind](**more, **options))


def test_what_is_counted_is_what_autograd_keeps() -> None:
    """On the CPU the fused attention keeps what is assumed, so that both counts are one."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(TINY["tiny"].unet).requires_grad_(False)
    lora = Lora({"unet": unet}, rank=3, alpha=3.0)
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in [*unet.parameters(), *lora.parameters()]}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights and not isinstance(tensor, nn.Parameter):
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 77, 32))
    found = estimate("lora", rank=3, batch=2)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert found.activations == pytest.approx(measured, rel=0.03)
    assert found.trained == sum(p.numel() for p in lora.parameters())
    assert 0 < found.recomputed < 0.5 * found.activations


def test_every_kind_takes_what_its_trained_numbers_take() -> None:
    found = {kind: estimate(kind) for kind in ("embedding", "controlnet", "finetune")}
    with torch.device("meta"):
        count = sum(p.numel() for p in UNet2DConditionModel(TINY["tiny"].unet).parameters())
    assert found["finetune"].trained == count
    assert found["embedding"].trained == 32
    assert count / 4 < found["controlnet"].trained < count
    for one in found.values():
        assert one.gradients == 4 * one.trained and one.optimiser == 8 * one.trained
        assert one.total(recompute=True, eight_bit=True) < one.total()
    averaged = estimate("finetune", ema_decay=0.9)
    assert averaged.total() - found["finetune"].total() == 4 * count


def test_published_sizes_are_in_the_right_region() -> None:
    found = estimate_training(published_architecture("sd15"), OPTIONS["lora"](precision="bf16"))
    assert found.width == 512 and 2e9 < found.total() < 6e9
    with pytest.raises(ConfigError, match=r"resolution: 500.*a multiple of 64"):
        estimate_training(published_architecture("sd15"), OPTIONS["lora"](resolution=500))


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "train", "embedding", "sd15", "--resolutions", "64"]) == 0
    printed = capsys.readouterr().out
    assert "fits 8 GiB" in printed and "64x64" in printed and "--gradient-checkpointing" in printed
    assert main(["plan", "train", "embedding", "--resolutions", "64", "--json"]) == 0
    (one,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert one["sizes"][0]["total"]["as it is"] > 1e9 and len(one["memory_bytes"]) == 3
    assert main(["plan", "train", "lora", "sd15", "--resolutions", "64"]) == 0
    assert "lora in fp32" in capsys.readouterr().out  # as `sdengine train lora` computes
    for words in (["train", "pose"], ["train"], ["sd15", "sdxl"]):
        assert main(["plan", *words]) == 2
