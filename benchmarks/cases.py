"""Cases: the architectures, and the sizes at which they are measured."""

from __future__ import annotations

from sdengine.errors import ConfigError

NATIVE_SIDES = {"demo": 128, "sd15": 512, "sd21": 768, "sdxl": 1024, "tiny": 64}
# What is compared with eager torch on each device, the default first.
TARGETS = {"cpu": ("native",), "cuda": ("tensorrt-rtx", "tensorrt", "triton")}
# Those that compute in what their engines were built in.
ENGINE_TARGETS = ("tensorrt-rtx", "tensorrt")
# On a GPU one bundle holds all sizes that are measured, as it would be deployed.
GPU_SIDES = {
    "demo": (128, 192, 256),
    "sd15": (512, 768, 1024),
    "sd21": (512, 768, 1024),
    "sdxl": (512, 768, 1024),
    "tiny": (64,),
}


def native_side(arch: str) -> int:
    """Return the side in pixels that an architecture was made for."""
    if arch not in NATIVE_SIDES:
        raise ConfigError.for_field("arch", arch, ", ".join(NATIVE_SIDES))
    return NATIVE_SIDES[arch]


def bundle_target(target: str) -> str:
    """Return what a bundle is built for that one of TARGETS runs."""
    return "torch" if target == "triton" else target
