"""Results of requests: the steps on the way, and the images with what they were made from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdengine.images.metadata import CHUNK, PARAMETERS, describe_image
from sdengine.images.png import check_output, encode_png, write_images
from sdengine.images.provenance import Provenance
from sdengine.images.timings import Timings
from sdengine.images.web_ui_text import parameters_text
from sdengine.inputs.embeddings import Embedding
from sdengine.request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the trajectory, as `Engine.stream` yields it and `progress` gets it.

    Args:
        index: 0 to total - 1, over all chunks of the batch.
        total: number of steps that the request takes.
        timestep: the training timestep that the U-Net saw.
        sigma: noise level before the step, relative to the image.
        latents: [B,C,H/8,W/8] fp32 after the step; read-only, overwritten by the next step. None
            where `progress` is told of a step that a GPU ran by itself, which would have to wait to
            give them; the last step of each run of images has them.
        preview: [B,h,w,3] uint8 of what the clean images look like so far; None on steps
            that were not asked for one.
        result: set on the last step only.
    """

    index: int
    total: int
    timestep: float
    sigma: float
    latents: NDArray[np.float32] | None
    preview: NDArray[np.uint8] | None = None
    result: Result | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """The images of a request, with everything needed to make them again.

    Args:
        arrays: one [H,W,3] uint8 array an image, RGB.
        request: what was asked, with every default filled in; `Engine.run` takes it again.
        timings: where the time went.
        provenance: what made the images.
        warnings: sentences on what the request asked for and did not get, none where all was done.
        embeddings: for each image those that its prompts name.
        notes: sentences on what was chosen for the request, or how that differs from what it says.
    """

    arrays: tuple[NDArray[np.uint8], ...]
    request: Request
    timings: Timings
    provenance: Provenance
    warnings: tuple[str, ...] = ()
    embeddings: tuple[tuple[Embedding, ...], ...] = ()
    notes: tuple[str, ...] = ()
    _images: list[Image] = field(default_factory=list, repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return self.request.seeds

    @property
    def images(self) -> list[Image]:
        """The images as PIL images, made on first use."""
        if not self._images:
            # At once: other threads shall not see some of them.
            self._images[:] = [_image(array) for array in self.arrays]
        return self._images

    @property
    def stacked(self) -> NDArray[np.uint8]:
        """All images as one [B,H,W,3] uint8 array; frameworks take it by DLPack."""
        return np.stack(self.arrays)

    def parameters(self, index: int = 0) -> str:
        """Describe image `index` in the text form that image tools read from PNG files."""
        return parameters_text(self._request_of(index), self.provenance)

    def png(self, index: int = 0) -> bytes:
        """Return image `index` as the content of a PNG file, with what it was made from in it."""
        texts = {
            PARAMETERS: self.parameters(index),
            CHUNK: describe_image(self._request_of(index), self.provenance),
        }
        # Images that nobody asked for are not kept: they are larger than the arrays.
        image = self._images[index] if self._images else _image(self.arrays[index])
        return encode_png(image, texts)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the images as PNG files; either all of them appear or none.

        Args:
            path: `out.png`; a batch becomes `out-1.png`, `out-2.png`, ... Where one of these is
                there already, all get the numbers behind the highest in use: `out-3.png`, ...
            overwrite: replace files that are there instead.

        Returns:
            The files written, in the order of the images.

        Raises:
            ConfigError: the name does not end in .png.
            OutputError: the folder is missing or not writable, or the disk is full.
        """
        check_output(path)
        contents = [self.png(index) for index in range(len(self.arrays))]
        return write_images(path, contents, overwrite=overwrite)

    def _request_of(self, index: int) -> Request:
        """Return the request that makes an image alone, with the embeddings that it names."""
        request = self.request.only(index)
        if request.embeddings is None or not self.embeddings:
            return request
        return replace(request, embeddings=self.embeddings[index])


def _image(array: NDArray[np.uint8]) -> Image:
    from PIL import Image

    return Image.fromarray(array)
