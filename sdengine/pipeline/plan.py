"""Plan of a request: what is worked out before its networks run, and how it is followed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Array
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import Embedding
from sdengine.pipeline.control_plan import PlannedControl
from sdengine.pipeline.device_trajectory import Seen
from sdengine.pipeline.image_prompts import ImagePrompts
from sdengine.pipeline.ip_adapter_plan import PlannedIPAdapter
from sdengine.pipeline.picture_start import MaskedPicture, StartingPicture
from sdengine.pipeline.seamless import vae_size
from sdengine.pipeline.tile_grid import TileGrid
from sdengine.prompt.conditioning import Conditioning
from sdengine.prompt.plan import PromptPlan
from sdengine.request.request import Request
from sdengine.samplers import SamplerProgram


@dataclass(frozen=True)
class Plan:
    """A checked request with everything that the host can work out before any network runs.

    Args:
        request: with its sampler and schedule by name.
        program: the sampler's numbers.
        size: width and height that the networks compute at.
        prompts: the texts and where they hold.
        chunks: the images that are made together, by index; at least one chunk.
        guided: the steps at which guidance scale and rescale apply.
        warnings: what of the request cannot be done, in sentences.
        controls: that steer at some evaluation.
        ip_adapters: that prompt at some evaluation.
        coders: the networks that encode and decode, beside the VAE decoder.
        tiles: of the latents that the U-Net runs on one after the other; None for all at once, as
            they are.
        weights: of the networks.
        wraps: the networks themselves make the edges of a seamless picture meet.
        notes: sentences on what was chosen where the request said nothing.
        second: the plan of the pass that goes on with its result, if there is one.
        steps_before, steps_after: evaluations of passes before it and after it.
    """

    request: Request
    size: tuple[int, int]
    program: SamplerProgram
    prompts: PromptPlan
    chunks: tuple[range, ...]
    guided: range
    warnings: tuple[str, ...]
    controls: tuple[PlannedControl, ...] = ()
    ip_adapters: tuple[PlannedIPAdapter, ...] = ()
    coders: tuple[str, ...] = ()
    tiles: TileGrid | None = None
    weights: WeightSet = PRISTINE
    wraps: bool = False
    notes: tuple[str, ...] = ()
    second: Plan | None = None
    steps_before: int = 0
    steps_after: int = 0

    @property
    def unet_size(self) -> tuple[int, int]:
        """Width and height in pixels that the U-Net and the controls compute at."""
        return self.size if self.tiles is None else self.tiles.pixels

    @property
    def vae_size(self) -> tuple[int, int]:
        """Width and height in pixels that the VAE computes at."""
        if self.tiles is None or self.wraps:
            return self.size
        return vae_size(self.size, self.request.seamless, self.tiles.cell)

    @property
    def unet_wraps(self) -> str:
        """The axes along which the edges of the U-Net's and the controls' own maps meet."""
        return self.request.seamless if self.wraps and self.tiles is None else "none"

    @property
    def is_shifted(self) -> bool:
        """Whether what the U-Net and the controls read is shifted from evaluation to evaluation."""
        return self.request.seamless != "none" and self.unet_wraps == "none"

    @property
    def control_networks(self) -> tuple[str, ...]:
        """The networks of its controls, each once."""
        return tuple(dict.fromkeys(planned.network for planned in self.controls))

    @property
    def more_networks(self) -> tuple[str, ...]:
        """Those that it runs beside the ones that every request runs.

        The U-Net is one of them where it is laid out a second time, with what reads pictures.
        """
        encoder = (IMAGE_ENCODER,) if any(p.reads_pictures for p in self.ip_adapters) else ()
        again = ("unet",) if self.ip_adapters else ()
        return (*self.control_networks, *self.coders, *encoder, *again)

    @property
    def passes(self) -> tuple[Plan, ...]:
        """This plan, and those that go on from it."""
        return (self, *(() if self.second is None else self.second.passes))

    @property
    def used(self) -> tuple[tuple[Embedding, ...], ...]:
        """The embeddings that the prompts of each image name, in any pass."""
        images = zip(*(one.prompts.used for one in self.passes), strict=True)
        return tuple(tuple(dict.fromkeys(chain(*passes))) for passes in images)


@dataclass(frozen=True)
class Prepared:
    """What the trajectories of a request have in common.

    Args:
        conditioning: what its prompts became.
        picture: that they start from, if any.
        masked: what an inpainting model reads of it.
        depth: [1,1,h,w] fp32 that a depth model reads.
        hints: [1,C,H,W] fp32 that each of the plan's controls reads.
        features: what T2I-Adapters among them gave, by tile and their number; filled on first use.
        image_prompts: what the U-Net reads of IP-Adapters' pictures, if there are any.
        given: latents [B,C,h,w] fp32 that each chunk starts from, where a first pass made them.
        regions: [regions,h,w] fp32 maps of its regions; None without any.
        contexts: [N,77*chunks,D] fp32 of what keys and of what values are made, where hypernetworks
            change that of the texts; else None.
    """

    conditioning: Conditioning
    picture: StartingPicture | None
    masked: MaskedPicture | None
    depth: Array | None
    hints: tuple[Array, ...] = ()
    features: dict[int, dict[int, Mapping[str, Array]]] = field(default_factory=dict)
    image_prompts: ImagePrompts | None = None
    given: tuple[Array, ...] = ()
    regions: Array | None = None
    contexts: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Watch:
    """How a request is followed while it runs.

    Args:
        cancel: setting it ends the request within one step.
        preview_every: give every n-th step a preview; 0 for none.
        preview: how, one of `decoding.PREVIEWS`.
        seen: what somebody looks at of every step: its latents; that it is done, for which a device
            that runs the steps itself is not made to wait; or nothing.

    Raises:
        ConfigError: preview_every is no integer from 0.
    """

    cancel: threading.Event | None = None
    preview_every: int = 0
    preview: str = "vae"
    seen: Seen = "latents"

    def __post_init__(self) -> None:
        if type(self.preview_every) is not int or self.preview_every < 0:
            raise ConfigError.for_field("preview_every", self.preview_every, "an integer from 0")
