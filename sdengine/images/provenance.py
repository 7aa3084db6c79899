"""Which vector instructions the processor has: results of networks differ between them."""

from __future__ import annotations

import functools
import platform

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
_MAX_LINE_CHARACTERS = 1 << 16


@functools.cache
def cpu_info() -> tuple[str, tuple[str, ...]]:
    """Return the processor's model, as far as it is known, and which of FEATURES it has."""
    model, found = platform.processor() or platform.machine(), set[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE_CHARACTERS):
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    model = value.strip()
                elif key.strip() in ("flags", "Features"):
                    found.update(value.split())
                    break  # of the first core: the others have the same
    except OSError:
        pass  # not Linux
    return model, tuple(name for name in FEATURES if name in found)


@functools.cache
def processor() -> str:
    """Describe the processor in a line, as in "x86_64 avx2 avx512f"."""
    return " ".join([platform.machine(), *cpu_info()[1]])
