"""Controls beside the U-Net: which rows they run with, and what they give summed for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sdengine.bundle.architecture import UNetArchitecture
from sdengine.bundle.controls import ControlArchitecture
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import BundleError, NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.control_plan import PlannedControl
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.steering import HINT, Steering, first_row
from sdengine.pipeline.unet_inputs import MicroConditioning, UNetInputs
from sdengine.prompt.conditioning import Conditioning
from sdengine.request.control import Control
from sdengine.request.request import Request

RNG = np.random.default_rng(0)
SHAPES = {"down_residual_0": (6, 4, 4), "mid_residual": (7, 2, 2)}
# Two images, their unconditional rows first.
GUIDED = RowPlan((0, 0, 1, 2), np.ones((1, 2), np.float32), has_negative=True)
CONDITIONING = Conditioning(RNG.standard_normal((3, 77, 5)).astype(np.float32), None)
HINT_VALUES = RNG.random((1, 3, 32, 32)).astype(np.float32)


class Network:
    """A control that gives what was drawn for it, and keeps what it read."""

    def __init__(self, rows: int, seed: int, channels: int = 4) -> None:
        self.inputs = (
            TensorSpec("sample", (rows, channels, 4, 4), "float32"),
            TensorSpec("timestep", (rows,), "float32"),
            TensorSpec("encoder_hidden_states", (rows, 77, 5), "float32"),
            TensorSpec(HINT, (rows, 3, 32, 32), "float32"),
        )
        self.outputs = tuple(TensorSpec(n, (rows, *s), "float32") for n, s in SHAPES.items())
        rng = np.random.default_rng(seed)
        self.given = {
            n: rng.standard_normal((rows, *s)).astype(np.float32) for n, s in SHAPES.items()
        }
        self.read: list[dict[str, Any]] = []

    def run(self, inputs: Any) -> Any:
        self.read.append({name: np.array(value) for name, value in inputs.items()})
        return self.given

    def close(self) -> None: ...


class PlainUNet:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class FillingUNet(PlainUNet):
    def zero_unless_given(self) -> frozenset[str]:
        return frozenset(SHAPES)


def unet_inputs(kind: type = PlainUNet, rows: int = 4, extra: Any = None) -> UNetInputs:
    channels = 4 if extra is None else 4 + extra.shape[1]
    specs = (
        TensorSpec("sample", (rows, channels, 4, 4), "float32"),
        TensorSpec("timestep", (rows,), "float32"),
        TensorSpec("encoder_hidden_states", (rows, 77, 5), "float32"),
        *(TensorSpec(n, (rows, *s), "float32") for n, s in SHAPES.items()),
    )
    output = (TensorSpec("noise_pred", (rows, 4, 4, 4), "float32"),)
    unet: Any = kind(inputs=specs, outputs=output)
    inputs = UNetInputs(
        unet,
        UNetArchitecture(in_channels=channels, cross_attention_dim=5),
        CONDITIONING,
        (rows, 4, 4, 4),
        1.0,
        MicroConditioning.of(Request("")),
        extra,
    )
    inputs.use(GUIDED)
    inputs.sample[:] = RNG.standard_normal(inputs.sample.shape)
    inputs.timestep.fill(7)
    return inputs


def planned(weights: tuple[float, float], **fields: Any) -> PlannedControl:
    pooled = fields.pop("global_pool", False)
    active = fields.pop("active", {0})
    control = Control(fields.pop("network", "a"), np.zeros((8, 8, 3), np.uint8), **fields)
    architecture = ControlArchitecture(
        kind="controlnet", residuals=2, source="a", sha256="0" * 64, global_pool=pooled
    )
    return PlannedControl(control, architecture, frozenset(active), weights)


def steering(controls: list[PlannedControl], *networks: Network) -> Steering:
    modules: Any = {
        (one.network, int(network.inputs[0].shape[0])): network
        for one, network in zip(controls, networks, strict=True)
    }
    return Steering(controls, [HINT_VALUES] * len(controls), modules)


def test_residuals_are_weighted_and_summed() -> None:
    one, two = Network(4, 1), Network(4, 2)
    controls = [planned((0.5, 2.0)), planned((1.0, 0.25), network="b")]
    inputs, clock = unet_inputs(), StageClock()
    found = steering(controls, one, two).arrays(0, inputs, GUIDED, clock)
    for index, name in enumerate(SHAPES):
        wanted = (
            controls[0].weights[index] * one.given[name]
            + controls[1].weights[index] * two.given[name]
        )
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6)
    assert found["sample"] is inputs.arrays["sample"]
    (read,) = one.read
    np.testing.assert_array_equal(read["sample"], inputs.sample)
    np.testing.assert_array_equal(read[HINT], np.repeat(HINT_VALUES, 4, axis=0))
    assert (read["timestep"] == 7).all()
    stages = clock.timings().stages
    assert [stages[f"control_{name}"].calls for name in "ab"] == [1, 1]


@pytest.mark.parametrize("mode", ["guess", "control"])
def test_the_unconditional_rows_are_left_alone(mode: str) -> None:
    both, conditional = Network(4, 1), Network(2, 2)
    controls = [planned((1.0, 1.0)), planned((1.0, 0.5), network="b", mode=mode)]
    inputs = unet_inputs()
    found = steering(controls, both, conditional).arrays(0, inputs, GUIDED, StageClock())
    for weight, name in zip((1.0, 0.5), SHAPES, strict=True):
        np.testing.assert_array_equal(found[name][:2], both.given[name][:2])
        wanted = both.given[name][2:] + np.float32(weight) * conditional.given[name]
        np.testing.assert_array_equal(found[name][2:], wanted)
    (read,) = conditional.read
    embeds = CONDITIONING.prompt_embeds[[1, 2]]
    np.testing.assert_array_equal(read["encoder_hidden_states"], embeds)
    np.testing.assert_array_equal(read["sample"], inputs.sample[2:])
    alone = RowPlan((1, 2), np.ones((1, 2), np.float32), has_negative=False)
    assert (first_row(controls[1], GUIDED), first_row(controls[1], alone)) == (2, 0)


def test_a_lone_control_of_the_conditional_half_leaves_zeros_before() -> None:
    network = Network(2, 1)
    inputs = unet_inputs()
    for array in inputs.residuals.values():
        array.fill(9)  # what an earlier evaluation left
    found = steering([planned((1.0, 1.0), mode="guess")], network).arrays(
        0, inputs, GUIDED, StageClock()
    )
    for name in SHAPES:
        assert not found[name][:2].any()
        np.testing.assert_array_equal(found[name][2:], network.given[name])


def test_pooled_residuals_count_by_their_means() -> None:
    network = Network(2, 3)
    made = planned((1.0, 0.5), global_pool=True)
    found = steering([made], network).arrays(0, unet_inputs(), GUIDED, StageClock())
    for weight, name in zip(made.weights, SHAPES, strict=True):
        mean = network.given[name].mean(axis=(2, 3), keepdims=True)
        wanted = np.broadcast_to(np.float32(weight) * mean, network.given[name].shape)
        np.testing.assert_allclose(found[name][2:], wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", [PlainUNet, FillingUNet])
def test_an_evaluation_without_active_controls_reads_no_residuals(kind: type) -> None:
    network = Network(4, 1)
    made = steering([planned((1.0, 1.0), active={1, 3})], network)
    inputs = unet_inputs(kind)
    for k, is_steered in enumerate([False, True, False, True, False]):
        found = made.arrays(k, inputs, GUIDED, StageClock())
        if kind is FillingUNet:
            assert (found.keys() >= SHAPES.keys()) == is_steered
        assert any(found[name].any() for name in SHAPES if name in found) == is_steered
        assert [*found][:3] == ["sample", "timestep", "encoder_hidden_states"]
    assert len(network.read) == 2


def test_only_the_latents_of_wider_inputs_are_read() -> None:
    extra = RNG.standard_normal((1, 5, 4, 4)).astype(np.float32)
    network, inputs = Network(4, 1), unet_inputs(extra=extra)
    made = steering([planned((1.0, 1.0), active={0, 1})], network)
    for k in range(2):
        inputs.sample[:] = k + 1
        made.arrays(k, inputs, GUIDED, StageClock())
        assert network.read[k]["sample"].shape == (4, 4, 4, 4)
        assert (network.read[k]["sample"] == k + 1).all()


def test_the_control_that_gave_nan_is_named() -> None:
    one, two = Network(4, 1), Network(4, 2)
    two.given["mid_residual"][3, 0, 0, 0] = np.nan
    made = steering([planned((1.0, 1.0)), planned((1.0, 1.0), network="b")], one, two)
    made.arrays(0, unet_inputs(), GUIDED, StageClock())
    made.require_finite(1)
    with pytest.raises(NonFiniteError, match=r"^control_b: gave NaN or infinity"):
        made.require_finite(0)


def test_a_network_of_other_shapes_is_refused() -> None:
    made = steering([planned((1.0, 1.0))], Network(4, 1, channels=9))
    with pytest.raises(BundleError, match=r"control_a: 'sample' is float32 \[4, 9, 4, 4\]"):
        made.arrays(0, unet_inputs(), GUIDED, StageClock())


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_other_pictures_one_of_each_image_are_shown(mode: str) -> None:
    network = Network(4 if mode == "balanced" else 2, 1)
    made = steering([planned((1.0, 1.0), mode=mode)], network)
    pictures = [RNG.random((2, 3, 32, 32)).astype(np.float32) for _ in range(2)]
    for one in pictures:
        made.show([one])
        made.arrays(0, unet_inputs(), GUIDED, StageClock())
    for read, one in zip(network.read, pictures, strict=True):
        blocks = len(read[HINT]) // 2
        np.testing.assert_array_equal(read[HINT], np.concatenate([one] * blocks))


def test_an_adapter_runs_again_for_pictures_that_are_shown() -> None:
    class Adapter(SimpleNamespace):
        def run(self, inputs: Any) -> Any:
            means = inputs["hint"].mean(axis=1, keepdims=True)
            return {"adapter_feature_0": np.broadcast_to(means, (1, 4, 4, 4)).copy()}

    adapter: Any = Adapter(
        inputs=(TensorSpec("hint", (1, 3 * 64, 4, 4), "float32"),),
        outputs=(TensorSpec("adapter_feature_0", (1, 4, 4, 4), "float32"),),
    )
    architecture = ControlArchitecture(
        kind="t2i_adapter", residuals=1, source="a", sha256="0" * 64, cell=8
    )
    control = Control("a", np.zeros((8, 8, 3), np.uint8))
    one = PlannedControl(control, architecture, frozenset({0}), (2.0,))
    made = Steering([one], [HINT_VALUES], {(one.network, 1): adapter})
    target = np.zeros((4, 4, 4, 4), np.float32)
    inputs: Any = SimpleNamespace(
        features={"adapter_feature_0": target}, steered=lambda **_: {"found": target}
    )
    for seed in range(2):
        pictures = np.random.default_rng(seed).random((2, 3, 32, 32)).astype(np.float32)
        made.show([pictures])
        found = made.arrays(0, inputs, GUIDED, StageClock())["found"]
        squares = 2 * pictures.reshape(2, 3, 4, 8, 4, 8).mean(axis=(1, 3, 5))
        for row in range(4):
            for channel in range(4):
                np.testing.assert_allclose(found[row, channel], squares[row % 2], rtol=1e-5)
