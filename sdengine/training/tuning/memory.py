"""Memory that a training takes, found without any weights: in networks that have only shapes.

What autograd keeps is counted as it keeps it, so that frozen layers count for what their gradients
need and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.checkpoints.part_source import PartSource
from sdengine.errors import ConfigError
from sdengine.models.attention import Transformer2DModel
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.layers import ResnetBlock2D
from sdengine.models.ops import TorchOps, set_ops
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import VAEConfig
from sdengine.training.tuning.control import hint_widths
from sdengine.training.tuning.hypernetwork import Hypernetworks
from sdengine.training.tuning.lora import Lora
from sdengine.training.tuning.options import (
    OPTIONS,
    EmbeddingOptions,
    HypernetworkOptions,
    LoraOptions,
    TuningOptions,
    WholeOptions,
)
from sdengine.training.tuning.whole import trainable

_FP32 = 4
_ADAM, _ADAM_8_BIT = 8, 2  # bytes of the optimiser's state for each trained number
_TOKENS = 77


@dataclass(frozen=True)
class TrainingMemory:
    """What a training takes, in bytes, beside what the device's libraries take for themselves.

    Args:
        trained: numbers that are trained.
        weights: of all networks, those that are trained in fp32.
        gradients: in fp32.
        optimiser, optimiser_8_bit: AdamW's state.
        average: the moving average of what is trained, where there is one.
        activations: that are kept for the gradients of one batch.
        recomputed: the same with --gradient-checkpointing.
    """

    kind: str
    width: int
    height: int
    batch: int
    trained: int
    weights: int
    gradients: int
    optimiser: int
    optimiser_8_bit: int
    average: int
    activations: int
    recomputed: int

    def total(self, *, recompute: bool = False, eight_bit: bool = False) -> int:
        """Return the sum in one of the ways to train."""
        activations = self.recomputed if recompute else self.activations
        optimiser = self.optimiser_8_bit if eight_bit else self.optimiser
        return self.weights + self.gradients + optimiser + self.average + activations


def estimate_training(source: PartSource, options: TuningOptions) -> TrainingMemory:
    """Return what a training takes.

    Args:
        source: the networks, of a checkpoint or a published architecture.
        options: of the kind; batch, resolution, precision and all that says what is trained count.

    Raises:
        ConfigError: the resolution does not fit the model.
    """
    vae = source.config("vae")
    unet = source.skeleton("unet")
    assert isinstance(vae, VAEConfig) and isinstance(unet, UNet2DConditionModel)
    encoders = {
        part: source.skeleton(part)
        for part in source.parts
        if isinstance(source.config(part), TextEncoderConfig)
    }
    cell = vae.downscale << (len(unet.config.block_out_channels) - 1)
    side = options.resolution or unet.config.sample_size * vae.downscale
    if side % cell:
        raise ConfigError.for_field("resolution", side, f"a multiple of {cell} for this model")
    dtype = TORCH_DTYPES[options.precision]
    size = torch.empty((), dtype=dtype).element_size()
    frozen: dict[str, nn.Module] = {"unet": unet, **encoders}
    all_parameters = {name: _count(network) for name, network in frozen.items()}
    vectors = 0
    for network in frozen.values():
        network.to(dtype).requires_grad_(False)
        set_ops(network, _FUSED)
    trained, needs_text = _trained(unet, encoders, options)
    if isinstance(options, EmbeddingOptions):
        configs = (source.config(part) for part in encoders)
        widths = [c.hidden_size for c in configs if isinstance(c, TextEncoderConfig)]
        vectors = options.vectors * sum(widths)
    if trained is not None:
        trained.to(dtype)
        set_ops(trained, _FUSED)
    count = _count(trained, trained_only=True) if trained is not None else vectors
    held = {**all_parameters, "vae": _count(source.skeleton("vae"))}
    own = [name for name in frozen if isinstance(options, WholeOptions)
           and (name == "unet" or options.text_encoder)]  # fmt: skip
    # Layers held in fp32 and computed in less are copied, and the copies kept.
    weights = sum(held[n] * (_FP32 if n in (*own, "vae") else size) for n in held)
    weights += 0 if own else count * _FP32
    weights += count * size if (own or options.precision != "fp32") and size < _FP32 else 0
    kept = _kept(unet, trained, options, side // vae.downscale, side, dtype, needs_text)
    return TrainingMemory(
        kind=next(name for name, one in OPTIONS.items() if type(options) is one),
        width=side,
        height=side,
        batch=options.batch,
        trained=count,
        weights=weights,
        gradients=count * _FP32,
        optimiser=count * _ADAM,
        optimiser_8_bit=count * _ADAM_8_BIT,
        average=count * _FP32 if options.ema_decay else 0,
        activations=kept[0],
        recomputed=kept[1],
    )


def _trained(
    unet: UNet2DConditionModel, encoders: Mapping[str, nn.Module], options: TuningOptions
) -> tuple[nn.Module | None, bool]:
    """Return what is trained on skeletons, and whether texts need gradients."""
    if isinstance(options, EmbeddingOptions):
        return None, True
    if isinstance(options, LoraOptions):
        networks: dict[str, nn.Module] = {"unet": unet}
        networks |= encoders if options.text_encoder else {}
        lora = Lora(
            networks,
            rank=options.rank,
            alpha=1.0,
            targets=options.targets,
            conv_rank=options.conv_rank,
        )
        return lora, options.text_encoder
    if isinstance(options, HypernetworkOptions):
        made = Hypernetworks(
            unet,
            structure=options.structure,
            activation=options.activation,
            layer_norm=options.layer_norm,
            activate_output=options.activate_output,
            dropout=options.hidden_dropout,
            widths=options.widths,
        )
        return made, False
    if isinstance(options, WholeOptions):
        own: dict[str, nn.Module] = {"unet": unet}
        own |= encoders if options.text_encoder else {}
        return trainable(own), options.text_encoder
    widths = hint_widths(8)
    with torch.device("meta"):
        config = ControlNetConfig(unet.config, conditioning_embedding_out_channels=widths)
        return ControlNetModel(config), False


def _kept(
    unet: UNet2DConditionModel,
    trained: nn.Module | None,
    options: TuningOptions,
    cells: int,
    side: int,
    dtype: torch.dtype,
    needs_text: bool,
) -> tuple[int, int]:
    """Return the bytes that autograd keeps of a batch: as it is, and with blocks recomputed."""
    config = unet.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(options.batch, *shape, dtype=dtype, device="meta")

    context = empty(_TOKENS, config.cross_attention_dim).requires_grad_(needs_text)
    timestep = torch.empty(options.batch, device="meta")
    added: dict[str, Any] = {}
    if config.addition_embed_type is not None:
        sizes = 6 * (config.addition_time_embed_dim or 0)
        pooled = (config.projection_class_embeddings_input_dim or 0) - sizes
        added = {"text_embeds": empty(pooled), "time_ids": empty(6)}
    kept = _Kept([unet, *([] if trained is None else [trained])])
    with kept.counting():
        sample = empty(config.in_channels, cells, cells)
        residuals: dict[str, Any] = {}
        if isinstance(trained, ControlNetModel):
            down, mid = trained(sample, timestep, context, empty(3, side, side), **added)
            residuals = {"down_residuals": down, "mid_residual": mid}
        unet(sample, timestep, context, **added, **residuals)
    return kept.plain, kept.recomputed


class _Kept:
    """Count the storages that autograd keeps, by the block that they are kept in."""

    def __init__(self, networks: list[nn.Module]) -> None:
        self._networks = networks
        self._weights = {
            p.untyped_storage()._cdata for network in networks for p in network.parameters()
        }
        self._outside: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._blocks: list[dict[int, Tensor]] = []
        self._is_inside = False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is kept within the block."""
        handles: list[Any] = []
        for network in self._networks:
            for block in network.modules():
                if isinstance(block, (ResnetBlock2D, Transformer2DModel)):
                    handles.append(block.register_forward_pre_hook(self._enter))
                    handles.append(block.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def plain(self) -> int:
        """Bytes kept where nothing is recomputed."""
        found = dict(self._outside)
        for block in self._blocks:
            found |= block
        return _bytes(found)

    @property
    def recomputed(self) -> int:
        """Bytes kept of blocks' inputs, and of the largest block while it is computed again."""
        largest = max((_bytes(block) for block in self._blocks), default=0)
        return _bytes({**self._outside, **self._inputs}) + largest

    def _pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._weights and not isinstance(tensor, nn.Parameter):
            # The tensor is held, so that no other storage gets its number.
            (self._blocks[-1] if self._is_inside else self._outside)[key] = tensor
        return tensor

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._blocks.append({})
        self._is_inside = True
        for tensor in inputs:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self._inputs[tensor.untyped_storage()._cdata] = tensor

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._is_inside = False


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: its inputs, its result, a number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return an empty result."""
        batch, heads, length, size = q.shape
        # Laid out so that the heads of a token can be joined without a copy.
        out = torch.empty(batch, length, heads, size, dtype=q.dtype, device=q.device)
        out = out.transpose(1, 2)
        rows = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Never called: only shapes are computed."""
        raise NotImplementedError


class _FusedOps(TorchOps):
    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal_mask: Tensor | None = None
    ) -> Tensor:
        out: Tensor = _Fused.apply(q, k, v)  # type: ignore[no-untyped-call]
        return out


_FUSED = _FusedOps()


def _bytes(tensors: Mapping[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


def _count(module: nn.Module, *, trained_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)
