"""U-Net inputs: buffers made once a trajectory, filled again where a step differs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.backends.device_protocols import inputs_zero_unless_given
from sdengine.bundle.architecture import UNetArchitecture
from sdengine.bundle.contexts import CONTEXTS, TEXT
from sdengine.bundle.controls import is_feature, is_residual
from sdengine.bundle.tensors import numpy_dtype, require_tensors
from sdengine.errors import BundleError
from sdengine.pipeline.image_prompts import ImagePrompts
from sdengine.pipeline.row_plan import RowPlan
from sdengine.prompt.conditioning import Conditioning
from sdengine.request.request import Request


@dataclass(frozen=True)
class MicroConditioning:
    """The sizes and scores that SDXL's U-Nets are told beside the prompt.

    Args:
        original_size, target_size: (width, height) in pixels.
        crop: (left, top) in pixels.
        aesthetic_score, negative_aesthetic_score: of the prompt's rows and of the negative's.

    Source: "SDXL" (Podell et al. 2023), section 2.2.
    """

    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]
    aesthetic_score: float
    negative_aesthetic_score: float

    @classmethod
    def of(cls, request: Request, tile: tuple[int, int] | None = None) -> MicroConditioning:
        """Read a request; where it names no sizes they are the image's, or those of a tile of it.

        A U-Net that sees tiles is so told what it was trained with, a picture of their size.
        """
        own = tile or (request.width, request.height)
        return cls(
            request.original_size or own,
            request.crop,
            request.target_size or own,
            request.aesthetic_score,
            request.negative_aesthetic_score,
        )


class UNetInputs:
    """Hold the buffers that one loaded U-Net reads during one trajectory.

    Args:
        unet: loaded for the rows of the plans that `use` takes.
        architecture: of the bundle's U-Net.
        conditioning: what prompts became.
        latents_shape: [rows,C,h,w].
        extra: [1,E,h,w] fp32 that every row reads behind its latents, or one of each image
            [B,E,h,w]; None for nothing.
        guidance_scale: what distilled U-Nets are told.
        micro: what SDXL's U-Nets are told.
        image_prompts: what it reads of pictures beside the prompt, if anything.
        contexts: what it makes keys and values of in place of the text, fp32 like prompt_embeds.

    Raises:
        BundleError: the U-Net wants an input that nothing here can give.
    """

    def __init__(
        self,
        unet: Module,
        architecture: UNetArchitecture,
        conditioning: Conditioning,
        latents_shape: tuple[int, int, int, int],
        guidance_scale: float,
        micro: MicroConditioning,
        extra: NDArray[np.float32] | None = None,
        image_prompts: ImagePrompts | None = None,
        contexts: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> None:
        rows, channels, *sides = latents_shape
        read = (rows, channels + (0 if extra is None else extra.shape[1]), *sides)
        _, length, width = conditioning.prompt_embeds.shape
        self._contexts = {} if contexts is None else dict(zip(CONTEXTS, contexts, strict=True))
        layout = _Layout.of(unet)
        layout.require(read, latents_shape, tuple(self._contexts) or (TEXT,), (length, width))
        self.unet = unet
        self.latents_shape = latents_shape
        self._architecture = architecture
        self._conditioning = conditioning
        self._micro = micro
        self._image_prompts = image_prompts
        self._plan: RowPlan | None = None
        # Residuals of controls stay zero until `steered` is called.
        self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.own.items()}
        if TEXT not in self.arrays:  # controls read the text as it is, whatever the U-Net reads
            self.arrays[TEXT] = np.zeros((rows, length, width), np.float32)
        self._lacking = layout.lacking
        self._with_residuals: dict[str, NDArray[Any]] | None = None
        self._dirty: set[str] = set()  # buffers of controls that are not zero
        self.has_extra = extra is not None
        if extra is not None:
            self.read_beside(extra)
        if "timestep_cond" in self.arrays:
            dim = self.arrays["timestep_cond"].shape[1]
            self.arrays["timestep_cond"][:] = guidance_embedding(guidance_scale, dim)

    @property
    def sample(self) -> NDArray[np.float32]:
        """The scaled latents [rows,C,h,w], without what is read beside them."""
        sample: NDArray[np.float32] = self.arrays["sample"]
        return sample[:, : self.latents_shape[1]]

    def read_beside(self, extra: NDArray[np.float32]) -> None:
        """Have every row read other channels behind its latents, as many as were given at first."""
        target = self.arrays["sample"][:, self.latents_shape[1] :]
        target[:] = np.tile(extra, (self.latents_shape[0] // len(extra), 1, 1, 1))

    @property
    def timestep(self) -> NDArray[Any]:
        """The timestep of every row [rows]."""
        return self.arrays["timestep"]

    @property
    def residuals(self) -> dict[str, NDArray[np.float32]]:
        """Buffers of what ControlNets add, by name in their order, for a caller to fill."""
        return {name: x for name, x in self._all().items() if is_residual(name)}

    @property
    def features(self) -> dict[str, NDArray[np.float32]]:
        """The same of what T2I-Adapters add."""
        return {name: x for name, x in self._all().items() if is_feature(name)}

    def steered(self, *, residuals: bool, features: bool) -> Mapping[str, NDArray[Any]]:
        """Return what the U-Net reads.

        Args:
            residuals, features: whether these buffers are filled; else they count as zero.
        """
        for names, filled in ((self.residuals, residuals), (self.features, features)):
            if filled:
                self._dirty.update(names)
                continue
            for name in self._dirty.intersection(names):
                self._all()[name].fill(0)
            self._dirty.difference_update(names)
        return self._all() if residuals or features else self.arrays

    @property
    def reads_pictures(self) -> bool:
        """Whether what it reads beside the prompt differs from step to step."""
        return self._image_prompts is not None

    def predict(self, k: int, plan: RowPlan, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Run the U-Net at evaluation k; return its prediction of each row.

        Args:
            k: the evaluation.
            plan: of its rows.
            arrays: what it reads, but for pictures.
        """
        if self._image_prompts is not None:
            arrays = {**arrays, **self._image_prompts.arrays(k, plan)}
        return self.unet.run(arrays)["noise_pred"]

    def _all(self) -> dict[str, NDArray[Any]]:
        if self._with_residuals is None:
            lacking = {name: np.zeros(shape, kind) for name, (shape, kind) in self._lacking.items()}
            found = {**self.arrays, **lacking}
            self._with_residuals = {spec.name: found[spec.name] for spec in self.unet.inputs}
        return self._with_residuals

    def use(self, plan: RowPlan) -> None:
        """Let the rows read the prompts that a plan names."""
        if plan is self._plan:
            return
        self._plan = plan
        rows = list(plan.rows)
        self.arrays[TEXT][:] = self._conditioning.prompt_embeds[rows]
        for name, context in self._contexts.items():
            self.arrays[name][:] = context[rows]
        if "text_embeds" in self.arrays:
            pooled = self._conditioning.pooled
            if pooled is None:
                raise BundleError("unet: it reads text_embeds, but no text encoder is pooled.")
            self.arrays["text_embeds"][:] = pooled[rows]
        if "time_ids" in self.arrays:
            self._fill_time_ids(plan)

    def _fill_time_ids(self, plan: RowPlan) -> None:
        micro, time_ids = self._micro, self.arrays["time_ids"]
        width, height = micro.original_size
        left, top = micro.crop
        known = [height, width, top, left]
        if self._architecture.size_conditioning == "aesthetic":
            time_ids[:] = [*known, micro.aesthetic_score]
            if plan.has_negative:
                time_ids[: plan.num_images, -1] = micro.negative_aesthetic_score
        else:
            width, height = micro.target_size
            time_ids[:] = [*known, height, width]


_FILLED = {
    "sample",
    "timestep",
    TEXT,
    *CONTEXTS,
    "text_embeds",
    "time_ids",
    "timestep_cond",
}
_Buffer: TypeAlias = "tuple[tuple[int, ...], np.dtype[Any]]"


class _Layout:
    """What a loaded U-Net reads, worked out once for all its trajectories.

    Args:
        unet: loaded.

    Raises:
        BundleError: it wants an input that nothing here can give.
    """

    _made: ClassVar[WeakKeyDictionary[Module, _Layout]] = WeakKeyDictionary()

    def __init__(self, unet: Module) -> None:
        # Residuals of controls stay zero until `UNetInputs.steered` is called.
        self.own: dict[str, _Buffer] = {}
        self.lacking: dict[str, _Buffer] = {}
        self._inputs, self._outputs = unet.inputs, unet.outputs
        self._required: set[Hashable] = set()
        left_out = inputs_zero_unless_given(unet)
        for spec in unet.inputs:
            if spec.name not in _FILLED and not (is_residual(spec.name) or is_feature(spec.name)):
                raise BundleError(f"unet: input {spec.name!r} is unknown to this release.")
            buffers = self.lacking if spec.name in left_out - _FILLED else self.own
            shape = tuple(int(size) for size in spec.shape)
            buffers[spec.name] = (shape, numpy_dtype(spec.dtype))

    @classmethod
    def of(cls, unet: Module) -> _Layout:
        """Return a U-Net's."""
        found = cls._made.get(unet)
        if found is None:
            found = cls._made[unet] = cls(unet)
        return found

    def require(
        self,
        read: tuple[int, ...],
        latents_shape: tuple[int, ...],
        texts: tuple[str, ...],
        text_shape: tuple[int, int],
    ) -> None:
        """Refuse the U-Net unless it reads and predicts latents of some shapes, and texts."""
        key = (read, latents_shape, texts, text_shape)
        if key in self._required:
            return
        rows = (latents_shape[0],)
        require_tensors("unet", self._inputs, {"sample": read}, "float32")
        require_tensors("unet", self._outputs, {"noise_pred": latents_shape}, "float32")
        others = {"timestep": rows, **dict.fromkeys(texts, rows + text_shape)}
        require_tensors("unet", self._inputs, others)
        self._required.add(key)


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
