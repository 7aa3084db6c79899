"""What a request gives: images, their seeds, where the time went; and saving them."""

from __future__ import annotations

import io
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdengine.images.png import _write_all, check_output, output_paths
from sdengine.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Timings:
    """Milliseconds by stage of one request, and how often each network ran.

    `load_ms` is reading and compiling networks that this engine had not loaded for these sizes;
    it is zero from the second request on. `other_ms` is everything outside the networks.
    """

    load_ms: float
    text_encoder_ms: float
    unet_ms: float
    vae_decoder_ms: float
    other_ms: float
    total_ms: float
    text_encoder_calls: int
    unet_calls: int
    vae_decoder_calls: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the figures by name, milliseconds rounded to 1 us."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the trajectory, as `Engine.steps` yields it.

    Args:
        index: 0 to total - 1, over all chunks of the batch.
        total: number of steps that the request takes.
        timestep: the training timestep that the U-Net saw.
        sigma: noise level before the step, relative to the image.
        latents: [B,C,H/8,W/8] fp32 after the step; read-only, overwritten by the next step.
        preview: [B,h,w,3] uint8 of what the clean images look like so far, small; None on steps
            that were not asked for one.
        result: set on the last step only.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    latents: NDArray[np.float32]
    preview: NDArray[np.uint8] | None = None
    result: Result | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """The images of a request, with everything needed to make them again.

    Args:
        arrays: one [H,W,3] uint8 array an image, RGB.
        seeds: one an image.
        request: what was asked, with every default filled in.
        timings: where the time went.
        model, model_hash: name and SHA-256 of the checkpoint.
        bundle_hash: SHA-256 of the bundle's manifest.
        backend, precision, threads: what ran the networks; threads None is the runtime's choice.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    seeds: tuple[int, ...]
    request: Request
    timings: Timings
    model: str
    model_hash: str
    backend: str
    precision: str
    bundle_hash: str = ""
    threads: int | None = None
    _images: list[Image] = field(default_factory=list, repr=False)

    @property
    def images(self) -> list[Image]:
        """The images as PIL images, made on first use."""
        if not self._images:
            from PIL import Image

            self._images.extend(Image.fromarray(array) for array in self.arrays)
        return self._images

    @property
    def stacked(self) -> NDArray[np.uint8]:
        """All images as one [B,H,W,3] uint8 array; frameworks take it by DLPack."""
        return np.stack(self.arrays)

    def parameters(self, index: int = 0) -> str:
        """Describe image `index` in the text form that image tools read from PNG files."""
        from sdengine.images.web_ui_text import parameters_text

        return parameters_text(self.request.only(index), self.model, self.model_hash)

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the images as PNG files; either all of them appear or none.

        Args:
            path: `out.png`; a batch becomes `out-1.png`, `out-2.png`, ... Files that are there
                already are replaced.

        Returns:
            The files written, in the order of the images.

        Raises:
            ConfigError: the name does not end in .png.
            OutputError: the folder is missing or not writable, or the disk is full.
        """
        targets = output_paths(path, len(self.arrays))
        check_output(path)
        contents = [self._png(index) for index in range(len(self.arrays))]
        _write_all(targets, contents)
        return targets

    def _png(self, index: int) -> bytes:
        from PIL.PngImagePlugin import PngInfo

        from sdengine.images.metadata import CHUNK, PARAMETERS, describe_image

        info = PngInfo()
        for key, text in (
            (PARAMETERS, self.parameters(index)),
            (CHUNK, describe_image(self, index)),
        ):
            if text.isascii():  # as plain text, because some readers know nothing else
                info.add_text(key, text)
            else:
                info.add_itxt(key, text)
        buffer = io.BytesIO()
        self.images[index].save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()
