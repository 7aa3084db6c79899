"""Provenance of images: the software, processor and model that made them."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

# Vector instructions; results of networks differ between them.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
_MAX_LINE_CHARACTERS = 1 << 16
_MAX_BANDS = 16  # networks and sizes of one request that may be in bands

Bands = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Provenance:
    """What ran a request, as far as it is known: texts may be empty.

    Args:
        backend, precision: what the networks were run by and computed in.
        threads: CPU threads; None is the runtime's choice, or not known.
        version: of sdengine.
        processor: as `processor` describes it.
        model, model_hash: name and SHA-256 of the checkpoint; of the hash perhaps the first digits.
        bundle_hash: SHA-256 of the bundle's manifest.
        usual_clip_skip: what the web UI calls the layer that the checkpoint reads.
        vae_bands: what of the VAE was computed in bands, which rounds differently: network, width
            and height, and the most that its maps took in bytes; known of a result.
    """

    backend: str = ""
    precision: str = ""
    threads: int | None = None
    version: str = ""
    processor: str = ""
    model: str = ""
    model_hash: str = ""
    bundle_hash: str = ""
    usual_clip_skip: int = 1
    vae_bands: Bands = ()

    def differences(self, now: Provenance) -> list[str]:
        """Say in sentences why `now` may not give again what this gave; the unknown is no reason.

        Args:
            now: fully known.
        """
        lines = []
        # Where the bundle is known, a model that is not its own was the request's, which says so.
        if self.bundle_hash:
            if self.bundle_hash != now.bundle_hash:
                lines.append("the image was made with another bundle, so the picture will differ.")
        elif self.model_hash and not now.model_hash.startswith(self.model_hash):
            lines.append("the image was made with another model, so the picture will differ.")
        for what, then, found in (
            ("backend", self.backend, now.backend),
            ("precision", self.precision, now.precision),
            ("sdengine", self.version, now.version),
            ("processor", self.processor, now.processor),
        ):
            if then and then != found:
                lines.append(f"the image was made with {what} {then}, not {found}.")
        return lines

    def band_differences(self, now: Provenance) -> list[str]:
        """Say in a sentence where a result's VAE was computed otherwise than this one's.

        Args:
            now: of the result.
        """
        if not self.bundle_hash or self.vae_bands == now.vae_bands:
            return []
        then_used, now_used = (
            ", ".join(f"{network} at {width}x{height} in bands of {limit} bytes"
                      for network, width, height, limit in one.vae_bands)
            or "the VAE's maps whole"
            for one in (self, now)
        )  # fmt: skip
        return [f"the image was made with {then_used}, not {now_used}, which rounds differently."]


def read_bands(value: object) -> Bands | None:
    """Return bands as `Provenance` has them, from there or from JSON; None if they are none."""
    if not isinstance(value, (list, tuple)) or len(value) > _MAX_BANDS:
        return None
    is_known = all(
        isinstance(row, (list, tuple))
        and len(row) == 4
        and row[0] in ("vae_decoder", "vae_encoder")
        and all(type(number) is int and 0 < number < 1 << 48 for number in row[1:])
        for row in value
    )
    return tuple((row[0], row[1], row[2], row[3]) for row in value) if is_known else None


@functools.cache
def cpu_info() -> tuple[str, tuple[str, ...]]:
    """Return the processor's model, as far as it is known, and which of FEATURES it has.

    On x86 its family and model number are in it: rented machines call several generations alike.
    """
    model, found = platform.processor() or platform.machine(), set[str]()
    numbers: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE_CHARACTERS):
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    model = value.strip()
                elif key.strip() in ("cpu family", "model"):
                    numbers[key.strip().removeprefix("cpu ")] = value.strip()
                elif key.strip() in ("flags", "Features"):
                    found.update(value.split())
                    break  # of the first core: the others have the same
    except OSError:
        pass  # not Linux
    if numbers:
        model += f" ({', '.join(f'{name} {number}' for name, number in numbers.items())})"
    return model, tuple(name for name in FEATURES if name in found)


@functools.cache
def processor() -> str:
    """Describe the processor in a line, as in "x86_64 avx2 avx512f"."""
    return " ".join([platform.machine(), *cpu_info()[1]])
