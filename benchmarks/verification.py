"""Verification before timing: both sides' outputs against eager torch in fp32."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.backends import select_backend
from sdengine.backends.base import SessionOptions
from sdengine.benchmarks.cases import Case
from sdengine.benchmarks.measures import psnr, relative_rms
from sdengine.bundle.architecture import TextEncoderArchitecture
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import CHOSEN_STATES, LAYER, TensorSpec
from sdengine.errors import DeviceError
from sdengine.pipeline.loaded_networks import Networks
from sdengine.prompt.conditioning import layer_number

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
_TIMESTEP = 500.0


@dataclass(frozen=True)
class Side:
    """One way to compute a case: a bundle, what runs it, in which precision."""

    bundle: str
    backend: str
    precision: str

    def load(self, case: Case) -> sdengine.Engine:
        """Return an engine; the caller closes it."""
        return sdengine.load(self.bundle, self.backend, self.precision, case.threads)


def request_outputs(engine: sdengine.Engine, case: Case) -> Arrays:
    """Serve the case's request and return its last `latents` and its `images`."""
    step = None
    for step in engine.stream(case.request()):
        latents = step.latents
    assert step is not None and step.result is not None and latents is not None
    return {"latents": latents.copy(), "images": np.stack(step.result.arrays)}


def network_outputs(
    side: Side, case: Case, text_states: NDArray[np.float32] | None = None
) -> Arrays:
    """Run each network once on seeded inputs, then free it.

    Args:
        side: what computes.
        case: gives batch and size.
        text_states: [B,77,D] that the U-Net shall read, so that it is judged by its own error
            alone; None for those that this side's text encoder gives.

    Returns:
        What an image depends on: `text_encoder`, the states of all text encoders joined
        [B,77,D]; `unet` and `vae_decoder`, their outputs.
    """
    bundle = open_bundle(side.bundle)
    backend = select_backend(side.backend, bundle.manifest.target)
    session = backend.open(bundle, SessionOptions(precision=side.precision, threads=case.threads))
    networks = Networks(bundle, session)
    prompts = 2 if case.request().uses_guidance else 1
    images = min(case.batch_size, bundle.manifest.max_batch)
    side_px = case.resolution
    outputs: Arrays = {}
    try:
        encoders = bundle.manifest.architecture.text_encoders
        states = [_encode(bundle, networks, encoder, prompts, side_px) for encoder in encoders]
        outputs["text_encoder"] = np.concatenate(states, axis=2)
        unet = networks.get("unet", prompts * images, side_px, side_px)
        inputs = _inputs(unet.inputs)
        read = outputs["text_encoder"] if text_states is None else text_states
        inputs["encoder_hidden_states"] = np.repeat(read, images, axis=0)
        outputs["unet"] = unet.run(inputs)["noise_pred"].copy()
        vae = networks.get("vae_decoder", 1, side_px, side_px)
        outputs["vae_decoder"] = vae.run(_inputs(vae.inputs))["images"].copy()
    finally:
        networks.close()
        gc.collect()
    return outputs


def _encode(
    bundle: Bundle, networks: Networks, encoder: TextEncoderArchitecture, prompts: int, side_px: int
) -> NDArray[np.float32]:
    """Return the hidden state [B,77,D] of seeded tokens that conditions the U-Net."""
    module = networks.get(encoder.network, prompts, side_px, side_px)
    inputs = _inputs(module.inputs)
    table = bundle.token_table(encoder).astype(np.float32)
    rng = np.random.default_rng(0)
    inputs["inputs_embeds"] = table[
        rng.integers(len(table), size=inputs["inputs_embeds"].shape[:2])
    ]
    if LAYER in inputs:
        inputs[LAYER][:] = layer_number(encoder, encoder.hidden_state)
        return np.array(module.run(inputs)[CHOSEN_STATES], dtype=np.float32)
    prefix = "normed_" if encoder.hidden_state.kind == "normed" else ""
    states = module.run(inputs)[f"{prefix}hidden_states"]
    return np.array(states[encoder.hidden_state.index], dtype=np.float32)


def errors_of(actual: Mapping[str, NDArray[Any]], expected: Arrays) -> dict[str, float]:
    """Return the relative RMS error of each output; `image_psnr_db` for images."""
    errors = {
        name: relative_rms(actual[name], expected[name]) for name in actual if name != "images"
    }
    if "images" in actual:
        errors["image_psnr_db"] = psnr(actual["images"], expected["images"])
    return errors


def require_equal(label: str, precision: str, errors: Mapping[str, float]) -> None:
    """Refuse to go on to timing when a side's outputs are not those of the reference.

    Args:
        label: what the message calls the side.
        precision: a key of MAX_ERROR, which sets what is tolerated.
        errors: from `errors_of`.

    Raises:
        DeviceError: an output's error is beyond MAX_ERROR, or is not a number.
    """
    for name, limit in MAX_ERROR[precision].items():
        if name in errors and not errors[name] <= limit:
            raise DeviceError(
                f"{label}: {name} differs from eager torch in fp32 by {errors[name]:.3g} relative "
                f"RMS; at most {limit:g} is accepted in {precision}, so nothing was timed. Build "
                "both bundles again with --rebuild."
            )


def _inputs(specs: tuple[TensorSpec, ...]) -> Arrays:
    """Make seeded inputs that are the same for every backend: one generator for each tensor."""
    arrays: Arrays = {}
    for spec in specs:
        rng = np.random.default_rng(len(spec.name))
        shape = [int(size) for size in spec.shape]
        if spec.name == "eos_index":
            arrays[spec.name] = np.full(shape, 8, dtype=spec.dtype)
        elif spec.name == "timestep":
            arrays[spec.name] = np.full(shape, _TIMESTEP, dtype=spec.dtype)
        elif "_residual" in spec.name:
            arrays[spec.name] = np.zeros(shape, dtype=spec.dtype)
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return arrays
