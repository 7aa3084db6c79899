"""Training of networks that see more than a prompt: a mask, a depth map, edges.

Every batch is of scenes drawn anew. Conventions are those with which the engine serves such
networks, so that one trained here reads what it will be given.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.inputs.depth import DepthMap, depth_channel
from sdengine.inputs.edges import canny
from sdengine.inputs.mask import latent_weights
from sdengine.training.captions import caption
from sdengine.training.demo_parts import DemoParts
from sdengine.training.diffusion import sample, v_loss
from sdengine.training.latents import object_cells
from sdengine.training.layered import Layered, covering_scene, layered_scene
from sdengine.training.loop import Draw
from sdengine.training.masks import random_mask
from sdengine.training.scenes import Image, Scene, random_scene, render
from sdengine.training.text import with_filler
from sdengine.training.vae import to_images, to_tensor

# Picture sizes with the share of steps that each gets.
SIZE_SHARES = {128: 0.9, 192: 0.06, 256: 0.04}
# Thresholds of the edges that the ControlNet learns: those which people take first.
CANNY = (100, 200)
_SHOWN = 16
# Scenes of the depth U-Net: how many there are at each size, and the share with one object only.
_POOL, _POOL_SEED, _ALONE = {128: 2500, 192: 300, 256: 150}, 7000, 0.1
_APART = 50.0  # added to the weight of the difference between two orders, where it is most seen


@dataclass(frozen=True)
class Example:
    """Hold a drawn scene and what a network is told of it.

    Attributes:
        scene: what there is.
        picture: [H,W,3] uint8.
        told: [H,W]: true where the picture may change, how near it is, or true on edges.
    """

    scene: Scene
    picture: Image
    told: npt.NDArray[Any]


class ConditionedTask(ABC):
    """Train a network that the engine gives more than latents and a prompt.

    Args:
        model: the network; only what needs a gradient is trained.
        parts: of the demo model.
        batch: pictures a step at 128 pixels; larger ones are fewer.
    """

    caption_dropout = 0.1

    def __init__(self, model: nn.Module, parts: DemoParts, batch: int = 16) -> None:
        if batch < 1:
            raise ConfigError.for_field("batch", batch, "at least 1")
        self.model = model
        self.parts = parts
        self.batch = batch

    @abstractmethod
    def example(self, draw: Draw, size: int, *, held_out: bool = False) -> Example:
        """Draw a scene of either side of the split, and what is told of it."""

    @abstractmethod
    def condition(self, examples: Sequence[Example]) -> Tensor:
        """Return what a network reads of examples [B,E,..] fp32."""

    @abstractmethod
    def predict(
        self, model: nn.Module, x: Tensor, timestep: Tensor, context: Tensor, condition: Tensor
    ) -> Tensor:
        """Return v [B,C,h,w] of noised latents x."""

    def shown(self, example: Example) -> Image:
        """Return [H,W,3] of what is told, for people."""
        levels = (example.told.astype(np.float32) * 255).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=2)

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of v on one batch of scenes drawn anew, see `v_loss`."""
        size = draw.python.choices(list(SIZE_SHARES), list(SIZE_SHARES.values()))[0]
        count = max(1, round(self.batch * (128 / size) ** 2))
        examples = [self.example(draw, size) for _ in range(count)]
        x0 = self.parts.encode(to_tensor([e.picture for e in examples]))
        context = self.parts.embed([self._caption(e.scene, draw.python) for e in examples])
        condition = self.condition(examples)
        objects = torch.from_numpy(np.stack([object_cells(e.scene, x0.shape[3]) for e in examples]))
        return v_loss(
            lambda x, timestep: self.predict(self.model, x, timestep, context, condition),
            x0,
            objects,
            draw,
        )

    def sheet(self, model: nn.Module) -> Image:
        """Return held-out scenes, what is told of them, and what becomes of that, in rows."""
        draw = Draw.at(3, 0)
        examples = [self.example(draw, 128, held_out=True) for _ in range(_SHOWN)]
        texts = [caption(e.scene, draw.python) for e in examples]
        made = self.pictures(model, examples, texts)
        rows = []
        for first in range(0, _SHOWN, 8):
            part = slice(first, first + 8)
            rows += [[e.picture for e in examples[part]], [self.shown(e) for e in examples[part]]]
            rows.append(made[part])
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)

    @torch.no_grad()
    def pictures(
        self, model: nn.Module, examples: Sequence[Example], texts: Sequence[str], seed: int = 0
    ) -> list[Image]:
        """Return a picture for each text, of what is told of the examples; see `sample`."""
        context = self.parts.embed([*[""] * len(texts), *texts])
        condition = self.condition(examples).repeat(2, 1, 1, 1)
        side = examples[0].picture.shape[0] // self.parts.vae.config.downscale
        latents = sample(
            lambda x, timestep: self.predict(model, x, timestep, context, condition),
            (len(texts), self.parts.vae.config.latent_channels, side, side),
            steps=20,
            guidance_scale=3.0,
            seed=seed,
        )
        return to_images(self.parts.decode(latents))

    def _caption(self, scene: Scene, rng: random.Random) -> str:
        if rng.random() < self.caption_dropout:
            return ""
        return with_filler(caption(scene, rng), rng)


class _ChannelsTask(ConditionedTask):
    """Train a U-Net that reads further channels behind the latents."""

    def predict(
        self, model: nn.Module, x: Tensor, timestep: Tensor, context: Tensor, condition: Tensor
    ) -> Tensor:
        v: Tensor = model(torch.cat([x, condition], dim=1), timestep, context)
        return v


class InpaintingTask(_ChannelsTask):
    """Train a U-Net of nine channels: latents, mask, latents of what the mask leaves.

    Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022),
    section 4.5; masked pixels are 0 in [-1,1], as the published models have them. Enough prompts
    are left out for the rest of a picture to say by itself what is missing.
    """

    caption_dropout = 0.25

    def example(self, draw: Draw, size: int, *, held_out: bool = False) -> Example:
        """Draw a scene and a mask."""
        scene = random_scene(draw.python, held_out=held_out)
        _, mask = random_mask(draw.python, size)
        return Example(scene, render(scene, draw.numpy, size=size), mask)

    def condition(self, examples: Sequence[Example]) -> Tensor:
        """Return [B,5,h,w]."""
        free = np.stack([e.told for e in examples])[:, None]
        left = to_tensor([e.picture for e in examples]) * torch.from_numpy(~free)
        cell = self.parts.vae.config.downscale
        cells = np.stack(
            [latent_weights(e.told.astype(np.float32), cell, soft=False) for e in examples]
        )
        return torch.cat([torch.from_numpy(cells)[:, None], self.parts.encode(left)], dim=1)

    def shown(self, example: Example) -> Image:
        """Return the picture with grey where it may change."""
        return np.where(example.told[..., None], np.uint8(128), example.picture)


@dataclass(frozen=True)
class _Orders:
    """Hold a scene twice: as drawn, and with its objects' nearness exchanged.

    Attributes:
        scene: what there is.
        latents: [2,C,h,w] fp16, scaled.
        condition: [2,1,h,w] fp32.
        objects: [h,w], 1 where an object is.
        covered: [h,w] in [0,1], how much one object covers another, 1 where it does most.
    """

    scene: Scene
    latents: Tensor
    condition: Tensor
    objects: Tensor
    covered: Tensor


class DepthTask(_ChannelsTask):
    """Train a U-Net of five channels: latents, and how near things are in [-1,1].

    What an object's outline is, a few steps teach; which object lies before the other needs their
    names and the map together. So most scenes have one that covers another, every one is shown in
    both orders with the same noise and prompt, and counts where they meet and while there is much
    noise, which is when the order is decided. A pool of scenes is encoded once, each at first use.
    """

    caption_dropout = 0.05
    early = 3.0

    def __init__(self, model: nn.Module, parts: DemoParts, batch: int = 16) -> None:
        super().__init__(model, parts, batch)
        self._known: dict[tuple[int, int], _Orders] = {}

    def example(self, draw: Draw, size: int, *, held_out: bool = False) -> Example:
        """Draw a scene, mostly one of two objects that cover each other, and its depth map."""
        return _with_depth(_depth_scene(draw, held_out), draw, size)

    def condition(self, examples: Sequence[Example]) -> Tensor:
        """Return [B,1,h,w]."""
        side = examples[0].told.shape[0] // self.parts.vae.config.downscale
        maps = [depth_channel(DepthMap(e.told, ""), side, side, invert=False) for e in examples]
        return torch.from_numpy(np.concatenate(maps))

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of v on one batch of scenes of the pool, each in both orders."""
        size = draw.python.choices(list(SIZE_SHARES), list(SIZE_SHARES.values()))[0]
        count = max(1, round(self.batch / 2 * (128 / size) ** 2))
        shown = [self._orders(draw.python.randrange(_POOL[size]), size) for _ in range(count)]
        texts = [self._caption(one.scene, draw.python) for one in shown]
        # Without a prompt nothing says which of the two colours the nearer object has.
        apart = [
            one.covered * (_APART if text else 0.0) for one, text in zip(shown, texts, strict=True)
        ]
        context = self.parts.embed(texts).repeat_interleave(2, dim=0)
        condition = torch.cat([one.condition for one in shown])
        return v_loss(
            lambda x, timestep: self.predict(self.model, x, timestep, context, condition),
            torch.cat([one.latents for one in shown]).float(),
            torch.stack([one.objects for one in shown]).repeat_interleave(2, dim=0),
            draw,
            early=self.early,
            alike=2,
            apart=torch.stack(apart).repeat_interleave(2, dim=0),
        )

    def _orders(self, index: int, size: int) -> _Orders:
        """Return a scene of the pool, encoded."""
        if (size, index) not in self._known:
            draw = Draw.at(_POOL_SEED + size, index)
            layered = _depth_scene(draw, held_out=False)
            examples = [_with_depth(one, draw, size) for one in (layered, layered.reversed)]
            latents = self.parts.encode(to_tensor([e.picture for e in examples]))
            side = latents.shape[3]
            cells = layered.covered(size).reshape(side, size // side, side, size // side)
            covered = cells.mean(axis=(1, 3), dtype=np.float32)
            self._known[size, index] = _Orders(
                layered.scene,
                latents.half(),
                self.condition(examples),
                torch.from_numpy(object_cells(layered.scene, side)),
                torch.from_numpy(covered / max(covered.max(), 1e-6)),
            )
        return self._known[size, index]


def _depth_scene(draw: Draw, held_out: bool) -> Layered:
    if draw.python.random() < _ALONE:
        return layered_scene(draw.python, num_objects=1, held_out=held_out)
    return covering_scene(draw.python, held_out=held_out)


def _with_depth(layered: Layered, draw: Draw, size: int) -> Example:
    return Example(layered.scene, layered.render(draw.numpy, size), layered.depth(size))


class EdgesTask(ConditionedTask):
    """Train a ControlNet on edges; the U-Net that it steers stays as it is.

    Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al. 2023),
    section 3.3: half of the prompts are left out, so that edges alone come to say what there is.
    """

    caption_dropout = 0.5

    def example(self, draw: Draw, size: int, *, held_out: bool = False) -> Example:
        """Draw a scene with objects anywhere, and its edges."""
        layered = layered_scene(draw.python, held_out=held_out)
        picture = layered.render(draw.numpy, size)
        return Example(layered.scene, picture, canny(picture, *CANNY) > 0)

    def condition(self, examples: Sequence[Example]) -> Tensor:
        """Return [B,3,H,W] in [0,1]."""
        told = np.stack([e.told for e in examples]).astype(np.float32)
        return torch.from_numpy(np.repeat(told[:, None], 3, axis=1))

    def predict(
        self, model: nn.Module, x: Tensor, timestep: Tensor, context: Tensor, condition: Tensor
    ) -> Tensor:
        """Return the U-Net's v, with the ControlNet's residuals added."""
        down, mid = model(x, timestep, context, condition)
        v: Tensor = self.parts.unet(x, timestep, context, down_residuals=down, mid_residual=mid)
        return v
