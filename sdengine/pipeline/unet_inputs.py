"""The U-Net's input buffers: made once a trajectory, filled again where a step differs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.bundle.manifest import UNetArchitecture
from sdengine.bundle.tensors import numpy_dtype, require_tensors
from sdengine.errors import BundleError
from sdengine.pipeline.guidance import RowPlan
from sdengine.prompt.conditioning import Conditioning
from sdengine.request.request import Request


class UNetInputs:
    """Hold the buffers that one loaded U-Net reads during one trajectory.

    Args:
        unet: loaded for as many rows as the plans have.
        architecture: of the bundle's U-Net.
        conditioning: what prompts became.
        request: gives guidance scale, sizes and scores that some U-Nets are told.
        latents_shape: [rows,C,h,w].

    Raises:
        BundleError: the U-Net wants an input that nothing here can give.
    """

    def __init__(
        self,
        unet: Module,
        architecture: UNetArchitecture,
        conditioning: Conditioning,
        request: Request,
        latents_shape: tuple[int, int, int, int],
    ) -> None:
        rows = latents_shape[0]
        _, length, width = conditioning.prompt_embeds.shape
        require_tensors("unet", unet.inputs, {"sample": latents_shape}, "float32")
        require_tensors("unet", unet.outputs, {"noise_pred": latents_shape}, "float32")
        wanted = {"timestep": (rows,), "encoder_hidden_states": (rows, length, width)}
        require_tensors("unet", unet.inputs, wanted)
        self._architecture = architecture
        self._conditioning = conditioning
        self._request = request
        self._plan: RowPlan | None = None
        # Inputs that nothing fills, such as ControlNet residuals, stay zero.
        self.arrays: dict[str, NDArray[Any]] = {
            spec.name: np.zeros([int(s) for s in spec.shape], dtype=numpy_dtype(spec.dtype))
            for spec in unet.inputs
        }
        for spec in unet.inputs:
            if spec.name not in _FILLED and "_residual" not in spec.name:
                raise BundleError(f"unet: input {spec.name!r} is unknown to this release.")
        if "timestep_cond" in self.arrays:
            dim = self.arrays["timestep_cond"].shape[1]
            self.arrays["timestep_cond"][:] = guidance_embedding(request.guidance_scale, dim)

    @property
    def sample(self) -> NDArray[np.float32]:
        """The scaled latents [rows,C,h,w]."""
        return self.arrays["sample"]

    @property
    def timestep(self) -> NDArray[Any]:
        """The timestep of every row [rows]."""
        return self.arrays["timestep"]

    def use(self, plan: RowPlan) -> None:
        """Let the rows read the prompts that a plan names."""
        if plan is self._plan:
            return
        self._plan = plan
        rows = list(plan.rows)
        self.arrays["encoder_hidden_states"][:] = self._conditioning.prompt_embeds[rows]
        if "text_embeds" in self.arrays:
            pooled = self._conditioning.pooled
            if pooled is None:
                raise BundleError("unet: it reads text_embeds, but no text encoder is pooled.")
            self.arrays["text_embeds"][:] = pooled[rows]
        if "time_ids" in self.arrays:
            self._fill_time_ids(plan)

    def _fill_time_ids(self, plan: RowPlan) -> None:
        request, time_ids = self._request, self.arrays["time_ids"]
        width, height = request.original_size or (request.width, request.height)
        left, top = request.crop
        known = [height, width, top, left]
        if self._architecture.size_conditioning == "aesthetic":
            time_ids[:] = [*known, request.aesthetic_score]
            if plan.has_negative:
                time_ids[: plan.num_images, -1] = request.negative_aesthetic_score
        else:
            width, height = request.target_size or (request.width, request.height)
            time_ids[:] = [*known, height, width]


_FILLED = {
    "sample",
    "timestep",
    "encoder_hidden_states",
    "text_embeds",
    "time_ids",
    "timestep_cond",
}


def guidance_embedding(guidance_scale: float, dim: int) -> NDArray[np.float32]:
    """Return the sinusoidal embedding [dim] of a guidance scale.

    Source: "Latent Consistency Models" (Luo et al. 2023), section 4.2: w = scale - 1, in the form
    of the timestep embedding of "Attention Is All You Need" (Vaswani et al. 2017), section 3.5,
    sines first.
    """
    half = dim // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    angles = 1000.0 * (guidance_scale - 1.0) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
