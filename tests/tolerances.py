"""How far a result may be from its reference: the only place with tolerances of numeric tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# (operation, data type) -> (largest error, root mean square error), both relative to the root mean
# square of the reference. A row may grow only together with a reason for it.
TOLERANCES: dict[tuple[str, str], tuple[float, float]] = {
    # Several times the rounding of one operation; libm's and torch's sin and cos differ.
    ("randn", "float32"): (1e-5, 1e-6),
    ("guided_step", "float32"): (5e-7, 1e-7),
    ("scale_duplicate", "float32"): (5e-7, 1e-7),
    # Trajectories of a few steps on latents up to 15, whose rounding adds up.
    ("regions", "float32"): (1e-5, 1e-6),
    # All of it is diffusers' fp32 tables and samples: DDIM on a float64 table agrees to 3e-14.
    ("sampler_trajectory", "float64"): (1e-4, 3e-5),
    # Sums of up to a few thousand products in another order.
    ("attention", "float32"): (2e-5, 2e-6),
    ("group_norm_silu", "float32"): (1e-5, 1e-6),
    ("layer_norm", "float32"): (1e-5, 1e-6),
    ("geglu", "float32"): (2e-6, 2e-7),
    # A result is rounded to 11 or 8 bits, and the largest is several times the mean one; attention
    # rounds its weights too.
    ("attention", "float16"): (1e-2, 1e-3),
    ("attention", "bfloat16"): (6e-2, 8e-3),
    ("group_norm_silu", "float16"): (5e-3, 5e-4),
    ("group_norm_silu", "bfloat16"): (4e-2, 4e-3),
    ("layer_norm", "float16"): (5e-3, 5e-4),
    ("layer_norm", "bfloat16"): (4e-2, 4e-3),
    ("geglu", "float16"): (1e-2, 5e-4),
    ("geglu", "bfloat16"): (6e-2, 4e-3),
    # The native runtime's operations against fp64. Winograd's transforms magnify rounding in fp32;
    # in bf16 a result is rounded to 8 bits.
    ("native linear", "float32"): (1e-5, 2e-6),
    ("native conv", "float32"): (3e-5, 5e-6),
    ("native norm", "float32"): (1e-5, 1e-6),
    ("native attention", "float32"): (2e-5, 2e-6),
    # Exponentials are right to 1e-7 of their largest value.
    ("native activation", "float32"): (2e-6, 3e-7),
    ("native activation", "bfloat16"): (4e-2, 4e-3),
    ("native linear", "bfloat16"): (4e-2, 4e-3),
    ("native conv", "bfloat16"): (4e-2, 4e-3),
    ("native norm", "bfloat16"): (4e-2, 4e-3),
    ("native attention", "bfloat16"): (6e-2, 8e-3),
    # The same on values with loud channels, pixels or means; a loud channel leaves the others of
    # its row few of 8 bits.
    ("native hard values", "float32"): (1e-4, 5e-6),
    ("native hard values", "int8"): (0.19, 5e-2),
    # Differences of adapters in fp32 against fp64: products of a rank's few terms.
    ("adapter", "float32"): (5e-6, 1e-6),
    # Weights with such differences added, and a U-Net of them, against PEFT and diffusers.
    ("weight with a LoRA", "float32"): (2e-6, 2e-7),
    ("layer with an adapter", "float32"): (1e-5, 1e-6),
    ("unet with a LoRA", "float32"): (1e-5, 2e-6),
    # Whole networks on the native runtime, against torch in fp32.
    ("native network", "float32"): (1e-4, 5e-6),
    # A VAE whose norms add up in other parts: in bf16 a value next to the middle of two numbers may
    # become the other one, and what follows differs by as much as any rounding there.
    ("native bands", "float32"): (1e-4, 5e-6),
    ("native bands", "bfloat16"): (6e-2, 5e-3),
    # Adam's steps on sums in another order: where a gradient is nearly zero, its sign decides.
    ("accumulated training", "float32"): (1e-4, 5e-5),
    # The mean of a batch's squared errors, by networks in another order of sums.
    ("training loss", "float32"): (1e-5, 1e-5),
    # A deviation of 400 draws is known to 3.5 %; the largest of 256 such errors is 4 times that.
    ("deviation of latents", "float32"): (0.3, 0.06),
    # 127 levels to each side of both factors.
    ("native network", "int8"): (0.19, 2e-2),
    ("native linear", "int8"): (8e-2, 1.5e-2),
    # Whole networks against diffusers and transformers on equal weights: mostly equal to the bit.
    ("text_encoder", "float32"): (1e-5, 1e-6),
    ("hypernetwork", "float32"): (1e-5, 1e-6),
    ("unet", "float32"): (1e-5, 2e-6),
    ("controlnet", "float32"): (1e-5, 2e-6),
    ("vae", "float32"): (1e-5, 2e-6),
    ("vae", "float64"): (1e-12, 2e-13),
    # Whole networks in another runtime, against torch in fp32.
    ("exported network", "float32"): (2e-5, 3e-6),
    ("network of fp32 weights", "float32"): (2e-5, 3e-6),
    # The same operators on the same numbers; the fp16 ones run in fp32 with other fusions.
    ("graph of fixed shapes", "float32"): (2e-5, 3e-6),
    ("graph of fixed shapes", "float16"): (2e-2, 3e-3),
    # Operators made of several; standard ones round at other places than what they replace.
    ("fused graph", "float32"): (2e-5, 3e-6),
    ("fused graph", "float16"): (2e-2, 3e-3),
    # A weight keeps 11 or 8 bits; seeded weights magnify that more than trained ones.
    ("network of fp16 weights", "float32"): (2e-2, 3e-3),
    ("network of bf16 weights", "float32"): (0.15, 2e-2),
    ("unet", "bfloat16"): (0.15, 3e-2),
    # The same numbers of eight bits in onnxruntime, which divides by the scale in fp16, so that a
    # value between two numbers may become the other one.
    ("quantised layer", "fp8"): (0.1, 2e-2),
    ("quantised layer", "int8"): (4e-2, 4e-3),
    # U-Nets whose layers read values and weights in eight bits, against themselves in fp32: three
    # bits of mantissa are 3.7e-2 a layer; seeded weights magnify errors more than trained ones.
    ("quantised network", "fp8"): (2.0, 0.12),
    ("quantised network", "int8"): (2.0, 0.12),
    # Whole networks with the Triton kernels, against torch in fp64.
    ("triton network", "float32"): (1e-4, 5e-6),
    ("triton network", "float16"): (2e-2, 3e-3),
    ("triton network", "bfloat16"): (0.15, 3e-2),
}

# Of whole pictures of 8 bits by a U-Net in eight bits, against one in fp32: the least PSNR in dB.
LEAST_PSNR: dict[tuple[str, str], float] = {
    ("demo", "fp8"): 34.0,
    ("demo", "int8"): 34.0,
}


def assert_close(op: str, dtype: str, actual: Any, expected: Any) -> None:
    """Compare a result with its reference, within the row of TOLERANCES.

    Args:
        op, dtype: the row.
        actual, expected: arrays or tensors of one shape.

    Raises:
        AssertionError: shapes differ, a value is not finite, or an error is too large.
        KeyError: there is no such row.
    """
    max_allowed, rms_allowed = TOLERANCES[op, dtype]
    got, wanted = _float64(actual), _float64(expected)
    assert got.shape == wanted.shape, f"{op} {dtype}: shape {got.shape}, expected {wanted.shape}"
    assert np.isfinite(got).all(), f"{op} {dtype}: {np.sum(~np.isfinite(got))} values not finite"
    assert np.isfinite(wanted).all(), f"{op} {dtype}: the reference is not finite"
    if got.size == 0:
        return
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    error = np.abs(got - wanted) / scale
    worst, rms = float(error.max()), float(np.sqrt(np.mean(error**2)))
    assert worst <= max_allowed, (
        f"{op} {dtype}: largest relative error {worst:.3g}, allowed {max_allowed:.3g}, at "
        f"{tuple(map(int, np.unravel_index(error.argmax(), error.shape)))}"
    )
    assert rms <= rms_allowed, f"{op} {dtype}: RMS relative error {rms:.3g} > {rms_allowed:.3g}"


def _float64(values: Any) -> NDArray[np.float64]:
    if hasattr(values, "detach"):  # a tensor; bfloat16 has no NumPy counterpart
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
