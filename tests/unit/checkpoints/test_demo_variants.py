"""The demo model's variant in the package: its own tensors but for those that were trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdengine.checkpoints import DEMO_EDGES, load_checkpoint, save_checkpoint
from sdengine.checkpoints.controls import open_controls
from sdengine.checkpoints.weights import Weights, save_tensors
from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError


def test_a_variant_is_the_demo_model_with_other_tensors() -> None:
    demo, variant = load_checkpoint("demo"), load_checkpoint("demo-inpainting")
    assert variant.unet_config.in_channels == 9
    assert variant.ignored == {} and variant.name == "demo-inpainting"
    assert variant.sha256 != demo.sha256
    for part in ("vae", "text_encoder"):
        assert variant.part_sha256(part) == demo.part_sha256(part)
    own, other = (dict(c.tensors("unet")) for c in (demo, variant))
    changed = {
        n for n in own if own[n].shape != other[n].shape or not torch.equal(own[n], other[n])
    }
    assert {n.partition(".")[0] for n in changed} == {
        "conv_in", "down_blocks", "up_blocks", "conv_norm_out", "conv_out",
    }  # fmt: skip
    # The first channels have not been forgotten, and the others are read.
    first = other["conv_in.weight"].float()
    assert first[:, :4].std() > 0.5 * own["conv_in.weight"].float().std()
    assert all(first[:, c].abs().max() > 1e-3 for c in range(4, 9))


def test_the_depth_variant_holds_the_way_down_and_the_finest_of_the_way_up() -> None:
    demo, variant = load_checkpoint("demo"), load_checkpoint("demo-depth")
    assert variant.unet_config.in_channels == 5 and variant.name == "demo-depth"
    assert len({c.sha256 for c in (demo, variant, load_checkpoint("demo-inpainting"))}) == 3
    own, other = (dict(c.tensors("unet")) for c in (demo, variant))
    changed = {
        n for n in own if own[n].shape != other[n].shape or not torch.equal(own[n], other[n])
    }
    tops = {".".join(n.split(".")[: 2 if "_blocks" in n else 1]) for n in changed}
    assert tops == {
        "conv_in", "down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.1", "up_blocks.2",
        "conv_norm_out", "conv_out",
    }  # fmt: skip
    assert other["conv_in.weight"][:, 4].float().abs().max() > 1e-2


def test_changes_replace_what_has_their_names(tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "base.safetensors")
    save_tensors({"b": torch.full((2, 3), 5.0)}, tmp_path / "changes.safetensors")
    base, changes = (
        Weights([tmp_path / f"{name}.safetensors"], lambda stored: stored)
        for name in ("base", "changes")
    )
    joined = base.with_changes(changes)
    found = dict(joined.tensors({"a": (2,), "b": (2, 3)}))
    assert found["a"].tolist() == [0, 0] and (found["b"] == 5).all()
    assert dict(base.tensors({"a": (2,), "b": (2,)}))["b"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match=r"changes\.safetensors: tensor 'b' has shape"):
        list(joined.tensors({"a": (2,), "b": (2,)}))


def test_what_a_variant_has_not_is_refused() -> None:
    for name in ("demo-inpainting", "demo-depth"):
        with pytest.raises(ConfigError, match="variant"):
            load_checkpoint(name, variant="fp16")
    with pytest.raises(CheckpointError, match="neither a folder nor a file"):
        open_controls({"edges": "demo-pose"}, load_checkpoint("demo"))
    with pytest.raises(
        CheckpointError, match=r"does not exist\. Give demo, demo-inpainting, demo-depth, a fo"
    ):
        load_checkpoint("demo-pose")
    with pytest.raises(CheckpointError, match=r"tiny_vae 'nope' does .* AutoencoderTiny wrote"):
        load_checkpoint("demo", tiny_vae="nope")
    with pytest.raises(CheckpointError, match=r"^vae 'nope' does .* folder of an autoencoder"):
        load_checkpoint("demo", vae="nope")


@pytest.mark.parametrize(("name", "task"), [("demo-depth", "depth"), ("demo-inpainting", "mask")])
def test_what_it_is_for_is_said(capsys: pytest.CaptureFixture[str], name: str, task: str) -> None:
    assert main(["inspect", name]) == 0
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("task"))
    assert task in line
    assert main(["inspect", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == name.removeprefix("demo-")
    assert main(["generate", "a circle", "--bundle", name]) == 2
    assert f"sdengine build {name} -o {name}" in capsys.readouterr().err


def test_parts_of_bundles_are_told_from_bundles(capsys: pytest.CaptureFixture[str]) -> None:
    for name, option in (("demo-edges", "--control edges="), ("demo-tiny", "--tiny-vae ")):
        assert main(["inspect", name]) == 2
        assert f"sdengine build demo {option}{name} -o" in capsys.readouterr().err


def test_the_demo_models_own_controlnet_has_a_name() -> None:
    (edges,) = open_controls({"edges": "demo-edges"}, load_checkpoint("demo")).values()
    assert edges.root == DEMO_EDGES
    assert edges.ignored == {}
    added = dict(edges.tensors("controlnet"))["controlnet_mid_block.weight"]
    assert added.abs().max() > 0.01  # trained, no longer zero


def test_the_demo_models_own_tiny_decoder_has_a_name() -> None:
    checkpoint = load_checkpoint("demo", tiny_vae="demo-tiny")
    assert checkpoint.tiny_vae_config is not None and checkpoint.tiny_vae_config.has_decoder
    assert sum(tensor.numel() for _, tensor in checkpoint.tensors("tiny_vae")) < 100_000


def test_a_variant_can_be_written_as_a_folder(tmp_path: Path) -> None:
    variant = load_checkpoint("demo-inpainting")
    save_checkpoint(
        tmp_path / "whole",
        unet=variant.unet(),
        vae=variant.vae(),
        text_encoder=variant.text_encoder(),
        tokenizer_dir=load_checkpoint("demo").root / "tokenizer",
        scheduler_config=variant.scheduler_config,
        defaults=variant.defaults,
        resolutions=variant.resolutions,
        batch=variant.batch,
    )
    assert load_checkpoint(tmp_path / "whole").sha256 == variant.sha256
