"""Arithmetic: what one step of a setting's U-Net computes and moves, and its share of the peak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdengine.benchmarks.suite.setting import Setting
from sdengine.machine import usable_processors

if TYPE_CHECKING:
    from sdengine.models.unet import UNetConfig

# What a precision multiplies where the machine has it, best first. Without products of bf16 the
# native target multiplies 16-bit integers for it, and others fp32.
_MULTIPLIED = {
    "fp32": ("fp32",),
    "f32": ("fp32",),
    "bf16": ("bf16", "int16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "f16": ("fp16", "fp32"),
    "int8": ("int8",),
    "q8_0": ("int8",),
}


def network_arithmetic(setting: Setting) -> dict[str, float]:
    """Return `unet_step_flops` and `unet_step_bytes` of one evaluation of all of a request's rows.

    Multiplications and additions are those of the plain algorithms; bytes are those of maps and
    weights at 16 bits, each operation on its own.
    """
    from sdengine.benchmarks.roofline import list_kernels

    kernels = list_kernels(unet_config(setting), setting.resolution, fused=True, rows=setting.rows)
    return {
        "unet_step_flops": float(sum(kernel.flops for kernel in kernels)),
        "unet_step_bytes": float(sum(kernel.read + kernel.written for kernel in kernels)),
    }


def share_of_peak(
    step: Mapping[str, Any] | None, label: str, best: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a side's GFLOP/s in a step, those a core, and the share of what the machine reaches.

    Args:
        step: spread of a step's milliseconds; None where the side does not tell.
        label: the side's, its name and precision.
        best: of the roofline and `network_arithmetic`.
    """
    if step is None:
        return {"unet_gflops": None, "unet_gflops_per_core": None, "percent_of_peak": None}
    reached = best["unet_step_flops"] / (step["median"] / 1e3)
    peaks = best.get("flops_per_second", {})
    name, _, precision = label.rpartition(" ")
    kinds = [kind for kind in _MULTIPLIED.get(precision, ()) if kind != "int16" or name == "native"]
    # Without instructions of its own a kind is converted to fp32, and slower than that.
    own = [kind for kind in kinds if peaks.get(kind, 0) > peaks.get("fp32", 0)]
    dtype = next((kind for kind in (*own, *kinds[-1:]) if peaks.get(kind)), None)
    share = None
    if dtype is not None:
        share = {"dtype": dtype, "percent": round(100 * reached / peaks[dtype], 1)}
    cores = best.get("threads") or usable_processors().threads
    return {
        "unet_gflops": round(reached / 1e9, 2),
        "unet_gflops_per_core": round(reached / 1e9 / cores, 2),
        "percent_of_peak": share,
    }


def unet_config(setting: Setting) -> UNetConfig:
    """Return the configuration of a setting's U-Net."""
    from sdengine.benchmarks.tiny import TINY_SD15
    from sdengine.checkpoints import load_checkpoint
    from sdengine.models.configs import ARCHITECTURES

    if setting.arch == "tiny":
        return TINY_SD15.unet
    if setting.checkpoint is None and setting.arch in ARCHITECTURES:
        return ARCHITECTURES[setting.arch].unet
    return load_checkpoint(setting.checkpoint or "demo").unet_config
