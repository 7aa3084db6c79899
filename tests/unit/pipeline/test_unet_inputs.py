"""What the U-Net is told beside the latents, by kind of U-Net."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdengine.bundle.architecture import UNetArchitecture
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import BundleError
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.unet_inputs import MicroConditioning, UNetInputs, guidance_embedding
from sdengine.prompt.conditioning import Conditioning
from sdengine.request.request import Request

SHAPE = (4, 4, 8, 6)
BASE = (
    TensorSpec("sample", SHAPE, "float32"),
    TensorSpec("timestep", (4,), "float32"),
    TensorSpec("encoder_hidden_states", (4, 77, 5), "float32"),
)
OUTPUT = (TensorSpec("noise_pred", SHAPE, "float32"),)
RNG = np.random.default_rng(0)
CONDITIONING = Conditioning(
    RNG.standard_normal((3, 77, 5)).astype(np.float32),
    RNG.standard_normal((3, 7)).astype(np.float32),
)
# Two images; row 0 is the negative of both, rows 1 and 2 their prompts.
PLAN = RowPlan((0, 0, 1, 2), np.ones((1, 2), np.float32), has_negative=True)
REQUEST = Request("a", width=48, height=64, batch_size=2, crop=(3, 9), guidance_scale=4.0)


class UNet:
    def __init__(self, inputs: Any, outputs: Any) -> None:
        self.inputs, self.outputs = inputs, outputs


def make(kind: str, *added: TensorSpec, **changes: Any) -> UNetInputs:
    unet: Any = UNet(inputs=(*BASE, *added), outputs=OUTPUT)
    architecture = UNetArchitecture(
        in_channels=4,
        cross_attention_dim=5,
        size_conditioning=kind,  # type: ignore[arg-type]
    )
    request = Request(**{**REQUEST.__dict__, **changes})
    micro = MicroConditioning.of(request)
    inputs = UNetInputs(unet, architecture, CONDITIONING, SHAPE, request.guidance_scale, micro)
    inputs.use(PLAN)
    return inputs


def test_rows_read_their_prompts() -> None:
    inputs = make("none", TensorSpec("mid_residual", (4, 8, 1, 1), "float32"))
    expected = CONDITIONING.prompt_embeds[[0, 0, 1, 2]]
    np.testing.assert_array_equal(inputs.arrays["encoder_hidden_states"], expected)
    assert not inputs.arrays["mid_residual"].any()


def test_buffers_stay_where_they_are() -> None:
    inputs = make("none")
    address = inputs.arrays["encoder_hidden_states"].ctypes.data
    inputs.use(RowPlan((0, 0, 2, 1), PLAN.weights, has_negative=True))
    assert inputs.arrays["encoder_hidden_states"].ctypes.data == address
    expected = CONDITIONING.prompt_embeds[[0, 0, 2, 1]]
    np.testing.assert_array_equal(inputs.arrays["encoder_hidden_states"], expected)


SIZED = (TensorSpec("text_embeds", (4, 7), "float32"), TensorSpec("time_ids", (4, 6), "float32"))


def test_size_conditioning() -> None:
    inputs = make("size", *SIZED, original_size=(100, 200))
    assert CONDITIONING.pooled is not None
    np.testing.assert_array_equal(inputs.arrays["text_embeds"], CONDITIONING.pooled[[0, 0, 1, 2]])
    # Height before width, top before left, as "SDXL" (Podell et al. 2023), section 2.2 gives them.
    np.testing.assert_array_equal(inputs.arrays["time_ids"], [[200, 100, 9, 3, 64, 48]] * 4)


def test_target_size() -> None:
    inputs = make("size", *SIZED, target_size=(10, 20))
    np.testing.assert_array_equal(inputs.arrays["time_ids"], [[64, 48, 9, 3, 20, 10]] * 4)


def test_aesthetic_conditioning() -> None:
    specs = (SIZED[0], TensorSpec("time_ids", (4, 5), "float32"))
    inputs = make("aesthetic", *specs, aesthetic_score=7.0, negative_aesthetic_score=1.5)
    expected = [[64, 48, 9, 3, 1.5]] * 2 + [[64, 48, 9, 3, 7.0]] * 2
    np.testing.assert_array_equal(inputs.arrays["time_ids"], expected)


def test_guidance_embedding_is_an_input() -> None:
    inputs = make("none", TensorSpec("timestep_cond", (4, 6), "float32"))
    expected = np.tile(guidance_embedding(4.0, 6), (4, 1))
    np.testing.assert_array_equal(inputs.arrays["timestep_cond"], expected)


def test_guidance_embedding_by_hand() -> None:
    found = guidance_embedding(2.5, 4)
    angles = [1500.0, 1500.0 / 10000.0]
    np.testing.assert_allclose(found, [*np.sin(angles), *np.cos(angles)], rtol=1e-6)


def test_unknown_input() -> None:
    with pytest.raises(BundleError, match="'depth'"):
        make("none", TensorSpec("depth", (4, 1, 8, 6), "float32"))


def test_pooled_is_missing() -> None:
    unet: Any = UNet(inputs=(*BASE, *SIZED), outputs=OUTPUT)
    architecture = UNetArchitecture(in_channels=4, cross_attention_dim=5, size_conditioning="size")
    conditioning = Conditioning(CONDITIONING.prompt_embeds, None)
    micro = MicroConditioning.of(REQUEST)
    inputs = UNetInputs(unet, architecture, conditioning, SHAPE, 4.0, micro)
    with pytest.raises(BundleError, match="text_embeds"):
        inputs.use(PLAN)
