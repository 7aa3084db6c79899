"""Verification before timing: both sides' outputs against eager torch in fp32."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.backends import select_backend
from sdengine.backends.base import TensorSpec
from sdengine.benchmarks.cases import Case
from sdengine.benchmarks.measures import psnr, relative_rms
from sdengine.bundle.reader import open_bundle
from sdengine.errors import DeviceError
from sdengine.networks import Networks

Arrays = dict[str, NDArray[Any]]

# The output of each network that an image depends on.
NETWORK_OUTPUTS = {
    "text_encoder": "normed_hidden_states",
    "unet": "noise_pred",
    "vae_decoder": "images",
}
# Relative RMS beyond which a side does not compute the same, so that a ratio of times would mean
# nothing. A trajectory adds up the errors of its steps.
MAX_ERROR = {
    "fp32": {"text_encoder": 1e-3, "unet": 1e-3, "vae_decoder": 1e-3, "latents": 1e-2},
    "bf16": {"text_encoder": 0.1, "unet": 0.1, "vae_decoder": 0.1, "latents": 0.5},
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
    for step in engine.steps(**asdict(case.request())):
        latents = step.latents
    assert step is not None and step.result is not None
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
        By network, the output that NETWORK_OUTPUTS names.
    """
    bundle = open_bundle(side.bundle)
    backend = select_backend(side.backend, bundle.manifest.target)
    networks = Networks(bundle, backend, backend.resolve(side.precision), case.threads)
    prompts = 2 if case.request().uses_guidance else 1
    images = min(case.batch_size, bundle.manifest.max_batch)
    rows = {"text_encoder": prompts, "unet": prompts * images, "vae_decoder": 1}
    table = bundle.token_table().astype(np.float32)
    outputs: Arrays = {}
    try:
        for name, output in NETWORK_OUTPUTS.items():
            module = networks.get(name, rows[name], case.resolution, case.resolution)
            inputs = _inputs(module.inputs, table)
            if name == "unet":
                states = outputs["text_encoder"][-1] if text_states is None else text_states
                inputs["encoder_hidden_states"] = np.repeat(states, images, axis=0)
            outputs[name] = module.run(inputs)[output].copy()
    finally:
        networks.close()
        gc.collect()
    return outputs


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
        precision: "fp32" or "bf16", which sets what is tolerated.
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


def _inputs(specs: tuple[TensorSpec, ...], table: NDArray[np.float32]) -> Arrays:
    """Make seeded inputs that are the same for every backend: one generator for each tensor."""
    arrays: Arrays = {}
    for spec in specs:
        rng = np.random.default_rng(len(spec.name))
        shape = [int(size) for size in spec.shape]
        if spec.name == "inputs_embeds":
            arrays[spec.name] = table[rng.integers(len(table), size=shape[:2])]
        elif spec.name == "eos_index":
            arrays[spec.name] = np.full(shape, 8, dtype=spec.dtype)
        elif spec.name == "timestep":
            arrays[spec.name] = np.full(shape, _TIMESTEP, dtype=spec.dtype)
        elif "_residual" in spec.name:
            arrays[spec.name] = np.zeros(shape, dtype=spec.dtype)
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return arrays
