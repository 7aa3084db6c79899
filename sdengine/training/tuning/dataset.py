"""Dataset: batches of latents and captions, each a function of its number alone."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdengine.errors import ConfigError
from sdengine.inputs.picture import Pixels
from sdengine.request.preprocessors import preprocess
from sdengine.training.loop import Draw
from sdengine.training.tuning.buckets import Placed, Size, bucket_sizes, nearest_size, place
from sdengine.training.tuning.latent_cache import LatentCache
from sdengine.training.tuning.pictures import Example, read_pixels

# A caption that says nothing, which zeros stand for where the model has it so.
NOTHING = ""
_MOST_CACHED_HINTS = 256


@dataclass(frozen=True)
class Arrangement:
    """Say how pictures become batches.

    Args:
        resolution: side of the square whose area pictures get.
        step: what sides are multiples of.
        batch: pictures of a batch, at most.
        repeats: times that an epoch shows each picture.
        buckets: let pictures keep about their shape; else all become squares.
        mirror: show half of the pictures mirrored.
        dropout: share of captions that are left out.
        templates: captions, with {name} and {caption}; none for the captions themselves.
        name: what {name} stands for.
        preprocessor: makes the hint of a picture that has none; "" for no hints.
    """

    resolution: int
    step: int
    batch: int = 1
    repeats: int = 1
    buckets: bool = True
    mirror: bool = False
    dropout: float = 0.0
    templates: tuple[str, ...] = ()
    name: str = ""
    preprocessor: str = ""


@dataclass(frozen=True)
class Item:
    """A picture of the data, as it is shown.

    Args:
        number: its place in the data.
        keys: of its latents, and of its mirror image's.
    """

    number: int
    example: Example
    size: Size
    original: Size
    crop: tuple[int, int]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads.

    Args:
        latents: [B,C,h,w] fp32, unscaled, drawn from what the autoencoder gave.
        captions: B texts.
        sizes: [B,6] fp32: original height and width, crop from above and left, height and width.
        hints: [B,3,H,W] fp32 in [0,1], or None.
    """

    latents: Tensor
    captions: list[str]
    sizes: Tensor
    hints: Tensor | None = None


class Dataset:
    """Hold the pictures of a folder as items, arranged in buckets.

    Args:
        examples: the pictures.
        cache: receives their latents.
        arrangement: how they become batches.
        report: called with (done, count) while pictures are encoded.

    Raises:
        ConfigError: a picture or hint is damaged, or of another size than its picture's.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        cache: LatentCache,
        arrangement: Arrangement,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.arrangement, self.cache = arrangement, cache
        side = arrangement.resolution
        self._sizes = [(side, side)]
        if arrangement.buckets:
            self._sizes = bucket_sizes(side, arrangement.step)
        self.items = []
        for done, example in enumerate(examples):
            if report is not None:
                report(done, len(examples))
            self.items.append(self._item(done, example))
        self._by_size: dict[Size, list[int]] = {}
        for number, item in enumerate(self.items):
            self._by_size.setdefault(item.size, []).extend([number] * arrangement.repeats)
        self._hint = functools.lru_cache(maxsize=_MOST_CACHED_HINTS)(self._read_hint)

    def _item(self, number: int, example: Example) -> Item:
        pixels, sha256 = read_pixels("data", example.path)
        if example.hint is not None:
            _check_hint(example, read_pixels("hints", example.hint)[0], pixels)
        size = nearest_size(self._sizes, pixels.shape[1], pixels.shape[0])
        placed: Placed | None = None
        keys = []
        for mirrored in (False, True)[: 1 + self.arrangement.mirror]:
            key = self.cache.key(sha256, size, mirrored)
            if key not in self.cache:
                placed = placed or place(pixels, size)
                self.cache.add(key, placed, mirrored=mirrored)
            keys.append(key)
        placed = placed or place(pixels, size)
        return Item(number, example, size, placed.original, placed.crop, tuple(keys))

    @property
    def captions(self) -> set[str]:
        """All texts that a batch may have."""
        return {NOTHING, *(t for item in self.items for t in self._texts(item))}

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every picture is shown `repeats` times."""
        size = self.arrangement.batch
        return sum(-(-len(members) // size) for members in self._by_size.values())

    def batch(self, number: int, draw: Draw) -> Batch:
        """Return the batch of a number, of a size that all its pictures have.

        Args:
            number: counted through epochs; each epoch has an order of its own.
            draw: of the batch; mirrors, leaves out and draws latents.
        """
        epoch, place_in_epoch = divmod(number, self.batches_per_epoch)
        items = [self.items[i] for i in self._epoch(epoch)[place_in_epoch]]
        mirrored = [draw.python.random() < 0.5 and len(item.keys) > 1 for item in items]
        latents = []
        for item, is_mirrored in zip(items, mirrored, strict=True):
            mean, deviation = self.cache.read(item.keys[is_mirrored])
            latents.append(mean + deviation * torch.randn(mean.shape, generator=draw.torch))
        hints = [self._hint_for(i, m) for i, m in zip(items, mirrored, strict=True)]
        return Batch(
            torch.stack(latents),
            [self._caption(item, draw) for item in items],
            torch.tensor([[*i.original[::-1], *i.crop, *i.size[::-1]] for i in items]).float(),
            torch.stack(hints) if self.has_hints else None,
        )

    @property
    def has_hints(self) -> bool:
        """Whether batches have hints."""
        return bool(self.arrangement.preprocessor or self.items[0].example.hint)

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng, size = random.Random(f"epoch {epoch}"), self.arrangement.batch
        batches = []
        for members in self._by_size.values():
            order = list(members)
            rng.shuffle(order)
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(batches)
        return batches

    def _texts(self, item: Item) -> list[str]:
        caption = item.example.caption or ""
        templates = self.arrangement.templates or ("{caption}",)
        return [one.format(name=self.arrangement.name, caption=caption) for one in templates]

    def _caption(self, item: Item, draw: Draw) -> str:
        text = draw.python.choice(self._texts(item))
        return NOTHING if draw.python.random() < self.arrangement.dropout else text

    def hint_picture(self, number: int) -> Pixels:
        """Return the hint [H,W,3] uint8 of an item."""
        return (self._hint(number).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _hint_for(self, item: Item, mirrored: bool) -> Tensor:
        if not self.has_hints:
            return torch.empty(0)
        hint = self._hint(item.number)
        return hint.flip(2) if mirrored else hint

    def _read_hint(self, number: int) -> Tensor:
        """Return [3,H,W] in [0,1]."""
        item = self.items[number]
        if item.example.hint is not None:
            pixels, _ = read_pixels("hints", item.example.hint)
            pixels = place(pixels, item.size).pixels
        else:
            pixels = place(read_pixels("data", item.example.path)[0], item.size).pixels
            pixels = np.asarray(preprocess(pixels, self.arrangement.preprocessor))
        if pixels.dtype != np.uint8:
            raise ConfigError.for_field(
                "preprocessor", self.arrangement.preprocessor, "one whose hint is a picture"
            )
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def _check_hint(example: Example, hint: Pixels, pixels: Pixels) -> None:
    if hint.shape != pixels.shape:
        assert example.hint is not None
        found, wanted = (f"{p.shape[1]}x{p.shape[0]}" for p in (hint, pixels))
        raise ConfigError(
            f"hints: {example.hint.name!r} is {found}; its picture {example.path.name!r} is "
            f"{wanted}."
        )
