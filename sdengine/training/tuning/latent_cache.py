"""Latent cache: what the autoencoder makes of each picture, encoded once and kept on disk.

Mean and deviation are kept, so that every step draws its own latents. A file is named by all that
its content follows from: the picture, its place in a bucket, whether it is mirrored, and the
autoencoder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sdengine.errors import CheckpointError
from sdengine.models.vae import AutoencoderKL
from sdengine.storage.whole_file import whole_file
from sdengine.training.tuning.buckets import Placed


class LatentCache:
    """Encode pictures, or read what was made of them before.

    Args:
        folder: of the files.
        vae: in fp32, because fp16 overflows in published ones.
        vae_sha256: of its weights.
    """

    def __init__(self, folder: Path, vae: AutoencoderKL, vae_sha256: str) -> None:
        self.folder, self.vae, self._vae_sha256 = folder, vae, vae_sha256
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, sha256: str, size: tuple[int, int], mirrored: bool) -> str:
        """Return what the latents of a picture are called."""
        content = f"{sha256} {size[0]}x{size[1]} {mirrored} {self._vae_sha256}"
        return hashlib.sha256(content.encode()).hexdigest()[:40]

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    @torch.no_grad()
    def add(self, key: str, placed: Placed, *, mirrored: bool) -> None:
        """Encode a picture, and its mirror image by itself: the encoder is not symmetric."""
        pixels = placed.pixels[:, ::-1] if mirrored else placed.pixels
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        device = next(self.vae.parameters()).device
        moments = self.vae.encode(x.to(device).float() / 127.5 - 1)
        mean, log_variance = moments.float().cpu().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        if not (torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
            raise CheckpointError("the autoencoder gave NaN or infinity; its weights are damaged.")
        parts = {"mean": mean[0].contiguous(), "deviation": deviation[0].contiguous()}
        with whole_file(self._path(key)) as file:
            file.write(save(parts))

    def read(self, key: str) -> tuple[Tensor, Tensor]:
        """Return mean and deviation [C,h,w] fp32, unscaled.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self._path(key)
        try:
            parts = load_file(path)
            return parts["mean"], parts["deviation"]
        except Exception as error:
            raise CheckpointError(f"{path} is damaged: {error}. Delete it.") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
