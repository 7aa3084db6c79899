"""Verification before timing: outputs of networks on seeded inputs, and their errors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.measures import psnr, relative_rms
from sdengine.benchmarks.suite.setting import Setting
from sdengine.bundle.architecture import TextEncoderArchitecture
from sdengine.bundle.tensors import CHOSEN_STATES, LAYER, TensorSpec, resolve_shapes
from sdengine.prompt.conditioning import layer_number

if TYPE_CHECKING:
    from sdengine.backends.base import Module
    from sdengine.engine import Engine

Arrays = dict[str, NDArray[Any]]

# Relative RMS beyond which a side does not compute the same, so that a ratio of times would mean
# nothing. A trajectory adds up the errors of its steps.
MAX_ERROR = {
    "fp32": {"text_encoder": 1e-3, "unet": 1e-3, "vae_decoder": 1e-3, "latents": 1e-2},
    # With 11 bits, as fp16 has; on a GPU torch multiplies fp32 in TF32, which has no more.
    "fp16": {"text_encoder": 0.05, "unet": 0.05, "vae_decoder": 0.05, "latents": 0.3},
    "tf32": {"text_encoder": 0.05, "unet": 0.05, "vae_decoder": 0.05, "latents": 0.3},
    "bf16": {"text_encoder": 0.1, "unet": 0.1, "vae_decoder": 0.1, "latents": 0.5},
    "int8": {"text_encoder": 0.1, "unet": 0.1, "vae_decoder": 0.1, "latents": 0.5},
}
TIMESTEP = 500.0
TOKENS = 77  # of a chunk of every text encoder


def network_outputs(
    engine: Engine, setting: Setting, text_states: NDArray[np.float32] | None = None
) -> Arrays:
    """Run each network once on seeded inputs.

    Args:
        engine: whose session computes.
        setting: gives rows and size.
        text_states: [B,77,D] that the U-Net shall read, so that it is judged by its own error
            alone; None for those that this engine's text encoder gives.

    Returns:
        What an image depends on: `text_encoder`, the states of all text encoders joined
        [B,77,D]; `unet` and `vae_decoder`, their outputs.
    """
    bundle = engine.bundle
    prompts = 2 if setting.guidance_scale > 1 else 1
    images = min(setting.batch_size, bundle.manifest.max_batch)
    outputs: Arrays = {}
    encoders = bundle.manifest.architecture.text_encoders
    states = [_encode(engine, encoder, prompts, setting.resolution) for encoder in encoders]
    outputs["text_encoder"] = np.concatenate(states, axis=2)
    read = outputs["text_encoder"] if text_states is None else text_states
    with _loaded(engine, "unet", prompts * images, setting.resolution) as unet:
        inputs = seeded_inputs(unet.inputs)
        inputs["encoder_hidden_states"] = np.repeat(read, images, axis=0)
        outputs["unet"] = unet.run(inputs)["noise_pred"].copy()
    with _loaded(engine, "vae_decoder", 1, setting.resolution) as vae:
        outputs["vae_decoder"] = vae.run(seeded_inputs(vae.inputs))["images"].copy()
    return outputs


def _loaded(engine: Engine, network: str, rows: int, side: int) -> contextlib.closing[Module]:
    """Load a network for square pictures, beside those that the engine keeps."""
    sizes = {"batch": rows, "height": side, "width": side, "sequence": TOKENS}
    shapes = resolve_shapes(network, engine.bundle.network(network).inputs, sizes)
    return contextlib.closing(engine.session.load(network, shapes))


def _encode(
    engine: Engine, encoder: TextEncoderArchitecture, prompts: int, side: int
) -> NDArray[np.float32]:
    """Return the hidden state [B,77,D] of seeded tokens that conditions the U-Net."""
    with _loaded(engine, encoder.network, prompts, side) as module:
        inputs = seeded_inputs(module.inputs)
        table = engine.bundle.token_table(encoder).astype(np.float32)
        inputs["inputs_embeds"] = table[seeded_tokens(len(table), prompts)]
        if LAYER in inputs:
            inputs[LAYER][:] = layer_number(encoder, encoder.hidden_state)
            return np.array(module.run(inputs)[CHOSEN_STATES], dtype=np.float32)
        prefix = "normed_" if encoder.hidden_state.kind == "normed" else ""
        states = module.run(inputs)[f"{prefix}hidden_states"]
        return np.array(states[encoder.hidden_state.index], dtype=np.float32)


def seeded_tokens(vocabulary: int, prompts: int) -> NDArray[np.int64]:
    """Return the token ids [B,77] that text encoders are compared on."""
    return np.random.default_rng(0).integers(vocabulary, size=(prompts, TOKENS))


def errors_of(actual: Mapping[str, NDArray[Any]], expected: Arrays) -> dict[str, float]:
    """Return the relative RMS error of each output; `image_psnr_db` for images."""
    errors = {
        name: relative_rms(actual[name], expected[name]) for name in actual if name != "images"
    }
    if "images" in actual:
        errors["image_psnr_db"] = psnr(actual["images"], expected["images"])
    return errors


def seeded_inputs(specs: tuple[TensorSpec, ...]) -> Arrays:
    """Return inputs that are the same for every side: one generator for each tensor."""
    arrays: Arrays = {}
    for spec in specs:
        rng = np.random.default_rng(len(spec.name))
        shape = [int(size) for size in spec.shape]
        if spec.name == "eos_index":
            arrays[spec.name] = np.full(shape, 8, dtype=spec.dtype)
        elif spec.name == "timestep":
            arrays[spec.name] = np.full(shape, TIMESTEP, dtype=spec.dtype)
        elif "_residual" in spec.name:
            arrays[spec.name] = np.zeros(shape, dtype=spec.dtype)
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return arrays
