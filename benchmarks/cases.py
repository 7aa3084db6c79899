"""The cases: which model, at which size, asked for what, computed where and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.backends.native.backend import PRECISIONS
from sdengine.errors import ConfigError
from sdengine.request.request import Request

NATIVE_SIDES = {"demo": 128, "sd15": 512, "sd21": 768, "sdxl": 1024, "tiny": 64}
# What is compared with eager torch on each device, the default first.
TARGETS = {"cpu": ("native",), "cuda": ("tensorrt-rtx", "tensorrt", "triton")}
# Those that compute in what their engines were built in.
ENGINE_TARGETS = ("tensorrt-rtx", "tensorrt")
BASELINES = {"cpu": "torch", "cuda": "torch-cuda"}
_PRECISIONS = {"cpu": PRECISIONS, "cuda": ("auto", "fp32", "bf16", "fp16")}
_BASELINE_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "fp32", "bf16")}
# On a GPU one bundle holds all sizes that are measured, as it would be deployed.
GPU_SIDES = {
    "demo": (128, 192, 256),
    "sd15": (512, 768, 1024),
    "sd21": (512, 768, 1024),
    "sdxl": (512, 768, 1024),
    "tiny": (64,),
}
_PROMPT = "a benchmark of a picture"


@dataclass(frozen=True)
class Case:
    """Describe one comparison; constructing it refuses what cannot be measured.

    Args:
        arch: a key of NATIVE_SIDES; all but "demo" have seeded synthetic weights.
        resolution: side of the square image in pixels.
        steps, guidance_scale, batch_size: of each request; guidance doubles the U-Net's rows.
        runs: counted requests of each side, after the warm-up.
        precision, baseline_precision: what each side computes in.
        device: of both sides, "cpu" or "cuda".
        target: one of the device's TARGETS.
        threads: of both sides, or None for each runtime's own choice.
    """

    arch: str = "demo"
    resolution: int = 128
    steps: int = 4
    guidance_scale: float = 3.0
    batch_size: int = 1
    runs: int = 5
    precision: str = "auto"
    baseline_precision: str = "fp32"
    threads: int | None = None
    device: str = "cpu"
    target: str = "native"

    def __post_init__(self) -> None:
        """Check everything now: building comes first and may take minutes."""
        native_side(self.arch)
        if self.device not in TARGETS:
            raise ConfigError.for_field("device", self.device, ", ".join(TARGETS))
        if self.target not in TARGETS[self.device]:
            accepted = f"{', '.join(TARGETS[self.device])} on device {self.device}"
            raise ConfigError.for_field("target", self.target, accepted)
        if not 1 <= self.runs <= 1000:
            raise ConfigError.for_field("runs", self.runs, "an integer from 1 to 1000")
        for field, precisions in (
            ("precision", _PRECISIONS[self.device]),
            ("baseline_precision", _BASELINE_PRECISIONS[self.device]),
        ):
            if getattr(self, field) not in precisions:
                raise ConfigError.for_field(field, getattr(self, field), ", ".join(precisions))
        if self.threads is not None and not 1 <= self.threads <= 4096:
            raise ConfigError.for_field("threads", self.threads, "an integer from 1 to 4096")
        self.request()

    @property
    def baseline(self) -> str:
        """The backend that runs eager torch."""
        return BASELINES[self.device]

    @property
    def bundle_target(self) -> str:
        """What our side's bundle is built for."""
        return "torch" if self.target == "triton" else self.target

    @property
    def built_sides(self) -> tuple[int, ...]:
        """Sides in pixels that the bundles hold."""
        measured = GPU_SIDES[self.arch] if self.device == "cuda" else ()
        return tuple(sorted({*measured, self.resolution}))

    def request(self) -> Request:
        """Return what both sides are asked for."""
        return Request(
            prompt=_PROMPT,
            width=self.resolution,
            height=self.resolution,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            sampler="dpmpp_2m",
            schedule="karras",
            seed=0,
            batch_size=self.batch_size,
        )


def native_side(arch: str) -> int:
    """Return the side in pixels that an architecture was made for."""
    if arch not in NATIVE_SIDES:
        raise ConfigError.for_field("arch", arch, ", ".join(NATIVE_SIDES))
    return NATIVE_SIDES[arch]


def gpu_cases(*archs: str) -> tuple[tuple[str, int], ...]:
    """Return architecture and side of everything that is measured on a GPU, smallest first.

    Args:
        archs: keys of GPU_SIDES; none is all but "tiny".
    """
    chosen = archs or tuple(arch for arch in GPU_SIDES if arch != "tiny")
    for arch in chosen:
        native_side(arch)
    return tuple((arch, side) for arch in chosen for side in GPU_SIDES[arch])
