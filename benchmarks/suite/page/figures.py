"""Figures of records as people read them: three digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sdengine.benchmarks.suite.suite_records import Ratio, Spread

STAGE_NAMES = {
    "end_to_end": "End to end",
    "unet_step": "U-Net step",
    "text_encoder": "Text encoder",
    "vae_decoder": "VAE decoder",
    "outside": "Outside networks",
}
STAGE_NOTES = {
    "end_to_end": "one picture's share of a request",
    "unet_step": "one evaluation, with all its rows",
    "text_encoder": "both prompts",
    "vae_decoder": "all pictures of a request",
    "outside": "one picture's share of all else",
}
MEMORY_NAMES = {
    "peak_bytes": "Peak memory of the process",
    "cgroup_peak_bytes": "Peak memory of the control group",
    "device_bytes": "GPU memory",
    "allocated_device_bytes": "Allocated GPU memory",
    "pool_bytes": "Own pool",
}
ERROR_NAMES = {
    "text_encoder": "Text encoder",
    "unet": "U-Net",
    "vae_decoder": "VAE decoder",
    "latents": "Latents",
}
# Signs that are easily taken for others.
TIMES, _TO = "\u00d7", "\u2013"
_TIMES = ((1e-3, "µs"), (1.0, "ms"), (1e3, "s"), (6e4, "min"))
_SIZES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
_RATES = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))
# A unit serves up to so many of it: 900 s, not 15 min.
_UP_TO = {"s": 15 * 60 * 1e3}


def span(low: str, high: str) -> str:
    """Return two ends of an interval as one."""
    return low if low == high else f"{low}{_TO}{high}"


def digits(value: float) -> str:
    """Return three digits, and all of those before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    behind = 2 - math.floor(math.log10(abs(value)))
    if behind > 6:
        return f"{value:.2e}"
    return f"{value:.{max(0, behind)}f}"


def trimmed(value: float) -> str:
    """Return three digits without the zeros at the end."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _united(value: float, units: Iterable[tuple[float, str]], most: float) -> tuple[float, str]:
    found = next(iter(units))
    for size, name in units:
        if most >= _UP_TO.get(found[1], size if size > found[0] else 0):
            found = (size, name)
    return value / found[0], found[1]


def milliseconds(value: float, most: float | None = None) -> str:
    """Return a time given in ms, in the unit that suits the largest beside it."""
    shown, unit = _united(value, _TIMES, value if most is None else most)
    return f"{digits(shown)} {unit}"


def size(value: float, most: float | None = None) -> str:
    """Return bytes in decimal units."""
    shown, unit = _united(value, _SIZES, value if most is None else most)
    return f"{digits(shown)} {unit}"


def tick_of_time(value: float) -> str:
    """Return a round time on an axis."""
    shown, unit = _united(value, _TIMES, value)
    return f"{trimmed(shown)} {unit}"


def tick_of_size(value: float) -> str:
    """Return round bytes on an axis."""
    shown, unit = _united(value, _SIZES, value)
    return f"{trimmed(shown)} {unit}"


def percent(value: float) -> str:
    """Return a share of 100."""
    return f"{value:.1f} %"


def rate(value: float, of: str) -> str:
    """Return so many a second of "FLOP" or "B"."""
    return f"{amount(value)}{of}/s"


def amount(value: float) -> str:
    """Return a number in thousands, millions ..., to which a unit may be joined."""
    shown, prefix = _united(value, _RATES, value)
    return f"{trimmed(shown)} {prefix}"


def interval(spread: Spread, most: float | None = None) -> str:
    """Return a spread's ends without the unit; "" where one value has none."""
    if spread["n"] < 2:
        return ""
    ends = [
        _united(end, _TIMES, spread["median"] if most is None else most)[0]
        for end in (spread["p10"], spread["p90"])
    ]
    return span(*map(digits, ends))


def times(ratio: float) -> str:
    """Return a ratio, to which "times" is joined."""
    return (f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}") + TIMES


def ratio_interval(found: Ratio) -> str:
    """Return the ends of a ratio's interval; "" where there are too few values."""
    if found["low"] is None or found["high"] is None:
        return ""
    return span(f"{found['low']:.2f}", f"{found['high']:.2f}")


def decibels(value: float) -> str:
    """Return a PSNR; pictures that are equal have 100."""
    return "equal" if value >= 100 else f"{value:.1f} dB"
