"""Variants of the demo model: to the bit the base before training; read again once saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sdengine.checkpoints import load_checkpoint, save_checkpoint
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.cli.main import main
from sdengine.errors import ConfigError
from sdengine.models.attention import set_attention_impl
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.tiny_vae import TinyAutoencoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.training.demo_parts import DemoParts
from sdengine.training.loop import Draw, train
from sdengine.training.schedule import Schedule
from sdengine.training.variants import VARIANTS, find_variant, widened


@pytest.fixture(scope="module")
def parts() -> DemoParts:
    return DemoParts.load()


def _inputs(parts: DemoParts) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Steps of 1/16, so that sums of the first convolution are exact in any order.
    latents = torch.randint(-64, 65, (2, 4, 16, 16), generator=generator) / 16
    return latents, torch.tensor([17, 900]), parts.embed(["a red circle on a blue background", ""])


@pytest.mark.parametrize("in_channels", [5, 9])
def test_further_channels_say_nothing_before_training(parts: DemoParts, in_channels: int) -> None:
    base = UNet2DConditionModel(parts.unet.config)
    base.load_state_dict(parts.unet.state_dict())
    set_attention_impl(base, "plain")  # as the variants have it
    with torch.no_grad():
        for parameter in base.conv_in.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    wide = widened(base, in_channels)
    x, timestep, context = _inputs(parts)
    with torch.no_grad():
        expected = base(x, timestep, context)
        for scale in (0.0, 1.0, 1e4):
            extra = scale * torch.randn(2, in_channels - 4, 16, 16)
            found = wide(torch.cat([x, extra], dim=1), timestep, context)
            assert torch.equal(found, expected)
        wide.conv_in.weight[:, 4:] = 0.01
        assert not torch.equal(wide(torch.cat([x, extra], dim=1), timestep, context), expected)


def test_an_untrained_controlnet_leaves_the_base_as_it_is(parts: DemoParts) -> None:
    net = VARIANTS["controlnet"].task(parts, 1).model
    x, timestep, context = _inputs(parts)
    with torch.no_grad():
        expected = parts.unet(x, timestep, context)
        down, mid = net(x, timestep, context, torch.rand(2, 3, 128, 128))
        found = parts.unet(x, timestep, context, down_residuals=down, mid_residual=mid)
    assert torch.equal(found, expected)
    for name, value in net.state_dict().items():
        if name in parts.unet.state_dict():
            assert torch.equal(value, parts.unet.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        (
            "inpainting",
            {
                "conv_in",
                "down_blocks.0",
                "down_blocks.1",
                "up_blocks.2",
                "conv_norm_out",
                "conv_out",
            },
        ),
        (
            "depth",
            {
                "conv_in",
                *(f"down_blocks.{i}" for i in range(3)),
                "up_blocks.1",
                "up_blocks.2",
                "conv_norm_out",
                "conv_out",
            },
        ),
        ("controlnet", {"controlnet_down_blocks.0", "controlnet_mid_block"}),
    ],
)
def test_only_what_is_to_learn_gets_a_gradient(
    parts: DemoParts, kind: str, trained: set[str]
) -> None:
    task = VARIANTS[kind].task(parts, 1)
    loss, _ = task.loss(Draw.at(0, 1), 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    moved = {n for n, p in task.model.named_parameters() if p.grad is not None and p.grad.any()}
    tops = {".".join(n.split(".")[: 2 if "_blocks" in n else 1]) for n in moved}
    assert tops >= trained
    if kind == "controlnet":
        # Behind convolutions that are zero nothing is felt yet; the whole copy learns.
        assert tops == {"controlnet_mid_block", *(f"controlnet_down_blocks.{i}" for i in range(6))}
        assert all(p.requires_grad for p in task.model.parameters())
    else:
        assert tops == trained
    assert not any(p.requires_grad for p in parts.unet.parameters())


def test_a_resumed_training_has_the_same_losses(parts: DemoParts, tmp_path: Path) -> None:
    schedule = Schedule(steps=4, learning_rate=1e-3, warmup=2)

    def losses(folder: str, stop: int) -> dict[int, float]:
        found: dict[int, float] = {}

        def report(step: int, steps: int, figures: dict[str, float]) -> None:
            found[step] = figures["loss"]
            if step == stop:
                raise KeyboardInterrupt

        task = VARIANTS["controlnet"].task(parts, 1)
        task.sheet = lambda model: np.zeros((8, 8, 3), np.uint8)  # type: ignore[method-assign]
        train(task, tmp_path / folder, schedule, save_every=2, report=report)
        return found

    whole = losses("whole", 99)
    with pytest.raises(KeyboardInterrupt):
        losses("cut", 3)
    resumed = losses("cut", 99)
    assert list(resumed) == [3, 4]
    assert resumed == {step: whole[step] for step in resumed}
    assert len(set(whole.values())) == 4


@pytest.mark.parametrize(("kind", "channels"), [("inpainting", 9), ("depth", 5)])
def test_a_saved_variant_is_a_checkpoint_that_diffusers_knows(
    parts: DemoParts, kind: str, channels: int, tmp_path: Path
) -> None:
    task = VARIANTS[kind].task(parts, 1)
    VARIANTS[kind].save(task.model, parts, tmp_path / "saved")
    checkpoint = load_checkpoint(tmp_path / "saved")
    assert checkpoint.unet_config == replace(parts.unet.config, in_channels=channels)
    assert checkpoint.vae_config == parts.vae.config
    assert checkpoint.defaults == parts.checkpoint.defaults
    assert checkpoint.resolutions == parts.checkpoint.resolutions
    for part in ("vae", "text_encoder"):
        assert checkpoint.part_sha256(part) == parts.checkpoint.part_sha256(part)


def test_a_saved_controlnet_is_one_that_diffusers_knows(parts: DemoParts, tmp_path: Path) -> None:
    import diffusers

    task = VARIANTS["controlnet"].task(parts, 1)
    assert isinstance(task.model, ControlNetModel)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.copy_(parameter.half())
    VARIANTS["controlnet"].save(task.model, parts, tmp_path / "saved")
    read = read_controlnet(tmp_path / "saved")
    assert read.control_config.to_dict() == task.model.controlnet_config.to_dict()
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "saved")
    for name, value in theirs.state_dict().items():
        assert torch.equal(value.float(), task.model.state_dict()[name]), name


def test_a_tiny_decoder_learns_from_the_whole_one_and_is_read_again(
    parts: DemoParts, tmp_path: Path
) -> None:
    task = VARIANTS["tiny"].task(parts, 1)
    model = task.model
    assert isinstance(model, TinyAutoencoder)
    losses = []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(12):
        loss, _ = task.loss(Draw.at(0, 1), 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in parts.vae.parameters())
    VARIANTS["tiny"].save(model, parts, tmp_path / "saved")
    read = load_checkpoint("demo", tiny_vae=tmp_path / "saved").load("tiny_vae")
    for name, value in read.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name


def test_other_models_and_kinds_are_refused(parts: DemoParts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inpainting, depth, controlnet, tiny"):
        find_variant("pose")
    wide = widened(parts.unet, 9)
    save_checkpoint(
        tmp_path / "wide",
        unet=wide,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer_dir=parts.checkpoint.root / "tokenizer",
        scheduler_config=parts.checkpoint.scheduler_config,
    )
    with pytest.raises(ConfigError, match="sdengine train save"):
        DemoParts.load(tmp_path / "wide")


def test_the_command_refuses_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    run = tmp_path / "run"
    for kind, output, said in (
        ("pose", tmp_path / "new", "kind"),
        ("depth", taken, "taken"),
        ("depth", tmp_path / "no" / "new", "does not exist"),
    ):
        assert main(["train", "variant", kind, str(run), "-o", str(output)]) != 0
        assert said in capsys.readouterr().err
        assert not run.exists()
