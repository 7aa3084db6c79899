"""Hypernetworks in native U-Nets of every family, against hooks on diffusers' own U-Nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from support.single_network import files_as_bundle
from support.tiny_architectures import TINY
from tolerances import assert_close
from torch import nn

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend
from sdengine.backends.native.prepare import prepare
from sdengine.benchmarks.seeded_hypernetworks import Hooked, write
from sdengine.bundle.contexts import CONTEXTS, TEXT
from sdengine.bundle.reader import Bundle
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.native.compile import compile_native
from sdengine.export.network import export_contract
from sdengine.inputs.hypernetworks import ACTIVATIONS, read_hypernetwork
from sdengine.models.attention import Attention
from sdengine.models.contracts import unet_contract
from sdengine.models.unet import UNet2DConditionModel

LEAST_PSNR_DB = 40.0
Nets = Sequence[tuple[Mapping[int, Sequence[nn.Module]], float]]
LEFT_OUT = {"text_embeds": (2, 24), "time_ids": (2, 6)}


class Family:
    """A tiny U-Net of a family, native and diffusers', on equal weights."""

    def __init__(self, name: str, folder: Path) -> None:
        config = TINY[name].unet
        ours = UNet2DConditionModel(config)
        seed_weights(ours, seed=3)
        self.theirs: Any = diffusers.UNet2DConditionModel.from_config(config.to_dict()).eval()
        self.theirs.load_state_dict(ours.state_dict())
        contract = unet_contract(ours, controlnet=False)
        files = compile_native(
            export_contract(contract, ours, folder), folder, CompileSpec("fp32", ())
        ).files
        self.bundle: Bundle = files_as_bundle(folder, contract, files)
        self.text_width = config.cross_attention_dim
        self.widths = sorted(
            {
                self.text_width,
                *(m.to_k.in_features for m in ours.modules() if isinstance(m, Attention)),
            }
        )
        g = torch.Generator().manual_seed(4)
        self.inputs: dict[str, torch.Tensor] = {
            "sample": torch.randn(2, config.in_channels, 16, 8, generator=g),
            "timestep": torch.tensor([999.0, 20.5]),
            TEXT: torch.randn(2, 77, self.text_width, generator=g),
        }
        if config.addition_embed_type == "text_time":
            self.inputs |= {n: torch.randn(s, generator=g) for n, s in LEFT_OUT.items()}

    def native(self, weights: WeightSet, precision: str = "fp32") -> Any:
        given = {name: x.numpy() for name, x in self.inputs.items()}
        shapes = {name: x.shape for name, x in given.items()}
        session = NativeBackend().open(self.bundle, SessionOptions(precision, 1))
        module = session.load("unet", shapes, weights)
        if (contexts := weights.contexts(given[TEXT])) is not None:
            assert TEXT not in {spec.name for spec in module.inputs}
            given |= dict(zip(CONTEXTS, contexts, strict=True))
        return module.run(given)["noise_pred"].copy()

    def hooked(self, nets: Nets) -> torch.Tensor:
        self.theirs.set_attn_processor(Hooked(nets))
        added = {name: self.inputs[name] for name in LEFT_OUT if name in self.inputs}
        with torch.no_grad():
            found: torch.Tensor = self.theirs(
                *(x for name, x in self.inputs.items() if name not in added),
                added_cond_kwargs=added,
            ).sample
        return found

    def assert_agrees(self, weights: WeightSet, nets: Nets) -> None:
        found, wanted = self.native(weights), self.hooked(nets)
        assert_close("native network", "float32", found, wanted)
        error = np.square(found - wanted.numpy()).mean()
        peak = float(wanted.max() - wanted.min())
        assert 10 * np.log10(peak**2 / error) >= LEAST_PSNR_DB
        plain = self.hooked(())
        assert float((wanted - plain).square().mean() / plain.square().mean()) > 1e-4


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            made[name] = Family(name, tmp_path_factory.mktemp(name))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDENGINE_CACHE", str(tmp_path_factory.mktemp("packed")))
        yield get


@pytest.mark.parametrize("name", ["tiny", "tiny-sd21", "tiny-sdxl"])
def test_several_in_turn_are_the_web_uis(families: Any, tmp_path: Path, name: str) -> None:
    family: Family = families(name)
    one, of_one = write(
        tmp_path / "a.pt", family.widths, activation="swish", norm=True, dropout=(0, 0.3, 0, 0),
        structure=(1, 2, 2, 1), activate_output=False,
    )  # fmt: skip
    two, of_two = write(tmp_path / "b.pt", family.widths[1:], seed=1, activation="relu")
    read = read_hypernetwork(one), read_hypernetwork(two)
    weights = WeightSet(hypernetworks=((read[0], 0.8), (read[1], -0.5)))
    family.assert_agrees(weights, [(of_one, 0.8), (of_two, -0.5)])
    turned = WeightSet(hypernetworks=((read[1], -0.5), (read[0], 0.8)))
    family.assert_agrees(turned, [(of_two, -0.5), (of_one, 0.8)])
    assert turned.identity("unet") != weights.identity("unet")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_in_the_graph(families: Any, tmp_path: Path, activation: str) -> None:
    family: Family = families("tiny")
    # It jumps, so that rounding of what layers before it computed would show; texts are given.
    widths = [family.text_width] if activation == "hardshrink" else family.widths
    path, nets = write(tmp_path / "a.pt", widths, activation=activation, std=0.2)
    weights = WeightSet(hypernetworks=((read_hypernetwork(path), 1.0),))
    family.assert_agrees(weights, [(nets, 1.0)])


def test_one_width_alone_and_linear_ones(families: Any, tmp_path: Path) -> None:
    family: Family = families("tiny-sdxl")
    for width in family.widths:
        path, nets = write(tmp_path / f"{width}.pt", [width])
        read = read_hypernetwork(path)
        weights = WeightSet(hypernetworks=((read, 1.0),))
        family.assert_agrees(weights, [(nets, 1.0)])


def test_strength_zero_is_nothing_and_bf16_is_near(families: Any, tmp_path: Path) -> None:
    family: Family = families("tiny")
    path, nets = write(tmp_path / "a.pt", family.widths, activation="mish", norm=True)
    read = read_hypernetwork(path)
    none = WeightSet(hypernetworks=((read, 0.0),))
    assert none.identity("unet") == PRISTINE.identity("unet")
    np.testing.assert_array_equal(family.native(none), family.native(PRISTINE))
    weights = WeightSet(hypernetworks=((read, 1.0),))
    assert weights.identity("unet") and not weights.identity("text_encoder")
    wanted = family.hooked([(nets, 1.0)]).numpy()
    for precision in ("bf16", "int8"):
        error = np.square(family.native(weights, precision) - wanted).mean()
        assert np.sqrt(error / np.square(wanted).mean()) < 0.05


def test_products_stay_joined_where_nothing_comes_between(families: Any, tmp_path: Path) -> None:
    family: Family = families("tiny")
    shapes = {name: tuple(x.shape) for name, x in family.inputs.items()}

    def joined(widths: Sequence[int]) -> set[int]:
        path, _ = write(tmp_path / "a.pt", widths)
        weights = WeightSet(hypernetworks=((read_hypernetwork(path), 1.0),))
        prepared = prepare(family.bundle, "unet", shapes, "fp32", "portable", None, weights)
        return {one.in_features for one in prepared.packing if one.source.count("+") == 2}

    others = set(family.widths) - {family.text_width}
    assert joined([family.text_width]) >= others
    assert not joined(family.widths)
