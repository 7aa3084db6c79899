"""Image prompts: what a request's IP-Adapters make of pictures, for every cross-attention.

Keys and values are worked out once a request, on the host; the scale is in the values, because what
an attention gives is linear in them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.bundle.image_prompts import IMAGE_ENCODER, prompt_inputs
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import require_tensors
from sdengine.errors import NonFiniteError
from sdengine.inputs.clip_pictures import clip_pixels, patches
from sdengine.inputs.image_embeds import ImageEmbeds
from sdengine.inputs.image_projections import Projection
from sdengine.inputs.ip_adapters import IPAdapterFile
from sdengine.inputs.picture import Picture
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.ip_adapter_plan import (
    Layers,
    PlannedIPAdapter,
    plan_ip_adapters,
    unet_layers,
)
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.row_plan import RowPlan
from sdengine.prompt.plan import PromptPlan
from sdengine.request.ip_adapters import IPAdapter
from sdengine.request.request import Request

Array = NDArray[np.float32]
_STAGE = "ip_adapter"
_MOST_KEPT = 4


class PictureReader:
    """What plans the IP-Adapters of requests for one bundle, and works out what they make.

    Args:
        bundle: an open bundle.
        networks: of it.
    """

    def __init__(self, bundle: Bundle, networks: Networks) -> None:
        self._bundle = bundle
        self._networks = networks
        self._layers: Layers = {}
        self._kept = _Kept()

    def plan(
        self, request: Request, count: int, prompts: PromptPlan
    ) -> tuple[list[PlannedIPAdapter], list[str]]:
        """Return the IP-Adapters that prompt something, and what to say of the others.

        Args:
            request: any.
            count: evaluations that run.
            prompts: of the request.

        Raises:
            ConfigError: an adapter is for other models, or the bundle has not what it needs.
        """
        if not request.ip_adapters:
            return [], []
        if not self._layers:
            self._layers = unet_layers(self._bundle)
        is_guided = any(one is not None for step in prompts.steps for one, _ in step)
        manifest = self._bundle.manifest
        return plan_ip_adapters(request, self._layers, manifest, count, is_guided=is_guided)

    def read(self, planned: Sequence[PlannedIPAdapter], clock: StageClock) -> ImagePrompts | None:
        """Return what IP-Adapters make of their pictures; None without any.

        Args:
            planned: the IP-Adapters.
            clock: where time is counted.

        Raises:
            AdapterError: a file was overwritten after it was checked.
            NonFiniteError: keys or values are NaN or infinite.
        """
        if not planned:
            return None
        encode = _Encoder(self._bundle, self._networks, clock)
        prompts = [self._kept.of(one, encode) for one in planned]
        return ImagePrompts(planned, prompts, tuple(self._layers))

    def forget(self) -> None:
        """Have everything worked out again."""
        self._kept = _Kept()


class _Kept:
    """Keys and values that were worked out last, which only a scale may be new to."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], _Prompt] = OrderedDict()

    def of(self, planned: PlannedIPAdapter, encode: _Encoder) -> _Prompt:
        """Return what an adapter makes of its pictures, made if need be."""
        adapter = planned.adapter
        pictures = tuple(one.sha256 for one in (*adapter.image, adapter.embeds) if one is not None)
        key = (adapter.file.sha256, pictures, planned.is_guided)
        if key not in self._known:
            self._known[key] = _made(planned, encode)
            while len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


@dataclass(frozen=True)
class _Prompt:
    """Keys and values [2 or 1, tokens, channels] of each layer; the unconditional ones first."""

    layers: tuple[tuple[Array, Array], ...]


@dataclass
class ImagePrompts:
    """What the U-Net reads of pictures during the trajectories of one request.

    Args:
        planned: the IP-Adapters.
        prompts: what each of them makes of its pictures.
        layers: of the U-Net, by transformer block.
    """

    planned: Sequence[PlannedIPAdapter]
    prompts: Sequence[_Prompt]
    layers: Sequence[str]
    _arrays: dict[tuple[int, int, int], dict[str, Array]] = field(default_factory=dict)

    def arrays(self, k: int, plan: RowPlan) -> Mapping[str, Array]:
        """Return the inputs of evaluation k by name, [rows, tokens, channels] fp32."""
        unconditional = plan.num_images if plan.has_negative else 0
        found: dict[str, Array] = {}
        for number, planned in enumerate(self.planned):
            if k in planned.active:
                key = (number, unconditional, len(plan.rows))
                if key not in self._arrays:
                    self._arrays[key] = self._rows(*key)
                found |= self._arrays[key]
        return found

    def _rows(self, number: int, unconditional: int, rows: int) -> dict[str, Array]:
        planned, prompt = self.planned[number], self.prompts[number]
        found = {}
        for layer, pair in zip(self.layers, prompt.layers, strict=True):
            factor = planned.factors.get(layer)
            if factor is None:
                continue
            for name, values, scale in zip(
                prompt_inputs(number, layer), pair, (1.0, factor), strict=True
            ):
                chosen = [0] * unconditional + [len(values) - 1] * (rows - unconditional)
                found[name] = values[chosen] * np.float32(scale)
        return found


class _Encoder:
    """The image encoder during one request, which runs once for each picture."""

    def __init__(self, bundle: Bundle, networks: Networks, clock: StageClock) -> None:
        self.clock = clock
        self._architecture = bundle.manifest.architecture.image_encoder
        self._networks = networks
        self._known: dict[str, Mapping[str, Array]] = {}

    def __call__(self, picture: Picture | None) -> Mapping[str, Array]:
        """Return the "states" and the "vector" of a picture, or of none: a square of zeros."""
        assert self._architecture is not None  # the plan was checked
        name = "" if picture is None else picture.sha256
        if name not in self._known:
            size, patch = self._architecture.image_size, self._architecture.patch_size
            pixels = np.zeros((3, size, size), np.float32)
            if picture is not None:
                pixels = clip_pixels(picture, size)
            module = self._networks.get(IMAGE_ENCODER, 1, size, size, clock=self.clock)
            given = patches(pixels, patch)
            self._require(module, given.shape)
            found = self.clock.timed(IMAGE_ENCODER, module).run({"patches": given})
            states = np.array(found["states"], np.float32)
            vector = np.array(found["embeds"][:, 0], np.float32)
            if not (np.isfinite(states).all() and np.isfinite(vector).all()):
                raise NonFiniteError.at(IMAGE_ENCODER)
            self._known[name] = {"states": states, "vector": vector}
        return self._known[name]

    def _require(self, module: Module, patches_shape: tuple[int, ...]) -> None:
        """Refuse a network that is not what the manifest describes."""
        own = self._architecture
        assert own is not None
        wanted = {
            "states": (1, own.num_states, own.hidden_size),
            "embeds": (1, own.num_states, own.projection_dim),
        }
        require_tensors(IMAGE_ENCODER, module.inputs, {"patches": patches_shape}, "float32")
        require_tensors(IMAGE_ENCODER, module.outputs, wanted, "float32")


def _made(planned: PlannedIPAdapter, encode: _Encoder) -> _Prompt:
    adapter = planned.adapter
    file: IPAdapterFile = adapter.file
    file.require_unchanged()
    projection = file.projection
    positive, negative = _embeds(adapter, projection, encode)
    embeds = [positive]
    if planned.is_guided:
        if negative is None:
            negative = _of_nothing(projection, positive, encode)
        embeds.insert(0, negative)
    with encode.clock.stage(_STAGE):
        # Pictures are seen at once: their tokens follow each other.
        rows = [projection(one).reshape(-1, projection.out_width) for one in embeds]
        tokens = np.stack(rows)
        layers = tuple(file.keys_and_values(i, tokens) for i in range(len(file.channels)))
    for index, pair in enumerate(layers):
        if not all(np.isfinite(one).all() for one in pair):
            raise NonFiniteError.at(f"{_STAGE} {file.name}", f"layer {index + 1} is not finite")
    return _Prompt(layers)


def _embeds(
    adapter: IPAdapter, projection: Projection, encode: _Encoder
) -> tuple[Array, Array | None]:
    if isinstance(adapter.embeds, ImageEmbeds):
        return adapter.embeds.rows("ip_adapter.embeds", projection)
    return np.concatenate([encode(one)[projection.reads] for one in adapter.image]), None


def _of_nothing(projection: Projection, positive: Array, encode: _Encoder) -> Array:
    """Return what the unconditional rows read: zeros, or the states of a picture of zeros."""
    if projection.reads != "states":
        return np.zeros_like(positive)
    return np.repeat(encode(None)["states"], len(positive), axis=0)
