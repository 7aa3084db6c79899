"""Colours of latents: the linear map from a latent cell to about its colour, for previews.

It is fitted for each autoencoder, published or not, by least squares: pictures of random fields of
colour, coarse and fine, pale and strong, are encoded, and their latents compared with the mean
colours of what the decoder makes of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdengine.models.vae import AutoencoderKL

_CELLS = 4  # a side of a picture
_GRIDS = (1, 2, 4)  # fields of colour a side
_PICTURES = 12


@torch.inference_mode()
def fit_latent_rgb(vae: AutoencoderKL) -> tuple[list[list[float]], float] | None:
    """Return a row of red, green and blue in [-1,1] for each channel, then one that is added.

    Args:
        vae: in fp32; its scaling factor makes the latents those that the U-Net sees.

    Returns:
        The rows, and by how much they err, over by how much one colour for all cells would; None
        where the autoencoder gives values that are not finite.
    """
    config = vae.config
    cells, colours = [], []
    for number in range(_PICTURES):
        latents = vae.encode(_picture(number, _CELLS * config.downscale))
        latents = latents[:, : config.latent_channels]
        decoded = F.avg_pool2d(vae.decode(latents).clamp(-1, 1), config.downscale)
        cells.append(latents[0].flatten(1).T * config.scaling_factor)
        colours.append(decoded[0].flatten(1).T)
    known, wanted = torch.cat(cells).double(), torch.cat(colours).double()
    known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.float64)], dim=1)
    if not (torch.isfinite(known).all() and torch.isfinite(wanted).all()):
        return None
    found = torch.linalg.lstsq(known, wanted, driver="gelsd").solution
    missed = (wanted - known @ found).norm() / (wanted - wanted.mean(dim=0)).norm().clamp(min=1e-9)
    rows = [[round(float(value), 6) for value in row] for row in found]
    return rows, round(min(float(missed), 1.0), 4)


def _picture(number: int, side: int) -> Tensor:
    """Return a picture [1,3,side,side] of random fields of colour, every fourth one grey."""
    generator = torch.Generator().manual_seed(number)
    grid = _GRIDS[number % len(_GRIDS)]
    colours = torch.rand(1, 3, grid, grid, generator=generator)
    if number % 2:
        colours = colours.round()  # black, white, and the strongest colours
    if number % 4 == 3:
        colours = colours.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return F.interpolate(colours * 2 - 1, (side, side), mode="nearest")
