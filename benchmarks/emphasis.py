"""Emphasis on the demo model: whether it does what it says.

    python benchmarks/emphasis.py          # the table and the record

A prompt is asked for with a colour's weight low, plain and high, with equal seeds. Measured: the
share of the picture's pixels whose nearest palette colour is that one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import sdengine
from sdengine.benchmarks.accuracy_tables import emphasis as as_markdown
from sdengine.benchmarks.records import RESULTS, stamped, write_record
from sdengine.training.scenes import COLORS

# The colour whose weight changes, and the prompt around it.
PROMPTS = {
    "red": "a ({0}:{1}) circle above a blue square on a white background",
    "green": "a large ({0}:{1}) star on a black background",
    "yellow": "a purple ring left of a ({0}:{1}) heart on a cyan background",
    "blue": "a large ({0}:{1}) diamond on a white background",
}
LOW, PLAIN, HIGH = 0.6, 1.0, 1.4
_PALETTE = np.array(list(COLORS.values()), np.float32)


def color_share(image: np.ndarray, color: str) -> float:
    """Return the share of pixels [H,W,3] that are nearest to a palette colour."""
    distance = np.square(image.reshape(-1, 1, 3).astype(np.float32) - _PALETTE).sum(axis=2)
    return float((distance.argmin(axis=1) == list(COLORS).index(color)).mean())


def measure(engine: sdengine.Engine, count: int) -> dict[str, dict[str, Any]]:
    """Return by colour the mean share at each weight, and how many seeds went the right way."""
    table = {}
    for color, prompt in PROMPTS.items():
        shares = {}
        for weight in (LOW, PLAIN, HIGH):
            text = prompt.format(color, weight)
            images = [engine.generate(text, seed=seed).arrays[0] for seed in range(count)]
            shares[weight] = [color_share(image, color) for image in images]
        rises = [high > low for low, high in zip(shares[LOW], shares[HIGH], strict=True)]
        falls = [high < low for low, high in zip(shares[LOW], shares[HIGH], strict=True)]
        table[color] = {
            "prompt": prompt.format(color, "w"),
            "percent": {str(w): round(100 * float(np.mean(v)), 2) for w, v in shares.items()},
            "seeds_up": sum(rises),
            "seeds_down": sum(falls),
        }
    return table


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="seeds of each prompt and weight")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with sdengine.load("demo") as engine:
        table = measure(engine, options.count)
    record = stamped({"seeds": options.count, "colors": table})
    write_record(record, options.output / "emphasis.json")
    print(as_markdown(record))


if __name__ == "__main__":
    main()
