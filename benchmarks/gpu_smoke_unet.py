"""U-Net alone on a GPU: weights drawn there, timed eagerly and by our kernels, the worst named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.backends.torch.graphs import GraphedFunction
from sdengine.backends.torch.triton_model import prepare
from sdengine.backends.torch.triton_ops import TritonOps
from sdengine.models.unet import UNet2DConditionModel, UNetConfig

_ROWS = 2  # of classifier-free guidance
_TOKENS = 77
_WORST = 20
_RUNS = 20
Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


def make_unet(config: UNetConfig, device: str, dtype: torch.dtype = torch.float16) -> nn.Module:
    """Return a U-Net whose weights are drawn on the device, channels last.

    They keep the size of what passes through: as in a trained network, no value nears fp16's ends.
    """
    with torch.device("meta"):
        model = UNet2DConditionModel(config).to(dtype)
    if device == "meta":
        return model
    model = model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                if parameter.ndim > 1:
                    fan_in = parameter[0].numel()
                    parameter.normal_(0, fan_in**-0.5, generator=generator)
                else:
                    is_norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and name == "weight"
                    parameter.fill_(1.0 if is_norm else 0.0)
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.requires_grad_(False).eval()


def inputs_of(config: UNetConfig, side: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return sample, timestep, text and what SDXL reads besides, for two rows.

    Args:
        config: of the U-Net.
        side: of the picture, in pixels.
        device, dtype: of the tensors; timesteps and sizes are fp32.
    """
    generator = torch.Generator(device).manual_seed(1)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    sample = made(_ROWS, config.in_channels, side // 8, side // 8)
    timestep = torch.full((_ROWS,), 500.0, device=device)
    inputs = [sample.contiguous(memory_format=torch.channels_last), timestep]
    inputs.append(made(_ROWS, _TOKENS, config.cross_attention_dim))
    if config.addition_embed_type is not None:
        width = 6 * (config.addition_time_embed_dim or 0)
        inputs.append(made(_ROWS, (config.projection_class_embeddings_input_dim or 0) - width))
        inputs.append(torch.full((_ROWS, 6), float(side), device=device))
    return inputs


def measure(
    add: Callable[..., None],
    config: UNetConfig,
    side: int,
    device: str = "cuda",
    cuda: Any = torch.cuda,
    dtype: torch.dtype = torch.float16,
    runs: int = _RUNS,
) -> None:
    """Compare and time torch eagerly, torch in a graph, and our kernels in a graph.

    Args:
        add: takes what is found, by name, as soon as it is.
        config, side: of the U-Net and the picture.
        device: where it computes.
        cuda: torch's interface to streams, graphs and events.
        dtype: what it computes in.
        runs: that are timed of each.
    """
    times = functools.partial(_times, cuda, runs)
    with torch.inference_mode():
        model, inputs = make_unet(config, device, dtype), inputs_of(config, side, device, dtype)
        expected = model(*inputs).float()
        add(deviation=float(expected.std()), finite=bool(expected.isfinite().all()))
        add(side="torch eager", ms=times(lambda: model(*inputs)))
        graphed = GraphedFunction(model, device, cuda)
        add(side="torch in a graph", ms=times(lambda: graphed(*inputs)))
        graphed.close()
        ops = TritonOps()
        prepare(model, ops)
        triton = GraphedFunction(model, device, cuda)
        found = _single(triton(*inputs)).float()
        error = float((found - expected).square().mean().sqrt() / expected.std())
        kept = sorted({f"{c.op}: {c.reason}" for c in ops.report() if not c.replaced})
        add(side="triton", ms=times(lambda: triton(*inputs)), error=error, kept=kept)
        if cuda is torch.cuda:
            add(peak_bytes=torch.cuda.max_memory_allocated())
            add(worst=worst_kernels(lambda: triton(*inputs)))
        triton.close()


def worst_kernels(function: Callable[[], object], runs: int = 3) -> list[dict[str, Any]]:
    """Return the kernels that take most of a call, by torch's profiler, worst first."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(runs):
            function()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    whole = sum(event.self_device_time_total for event in events) or 1
    return [
        {
            "kernel": event.key[:120],
            "calls": event.count // runs,
            "us": round(event.self_device_time_total / runs, 1),
            "percent": round(100 * event.self_device_time_total / whole, 1),
        }
        for event in events[:_WORST]
    ]


def _times(cuda: Any, runs: int, function: Callable[[], object]) -> dict[str, float]:
    """Return median, least and number of the milliseconds of a call, each between two events."""
    for _ in range(min(runs, 3)):
        function()
    pairs = []
    for _ in range(runs):
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    cuda.synchronize()
    samples = sorted(start.elapsed_time(end) for start, end in pairs)
    return {"median": samples[len(samples) // 2], "least": samples[0], "n": len(samples)}


def _single(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]
