"""Different prompts and seeds in one call, with weights and a prompt that changes half-way."""

from __future__ import annotations

import sys
from pathlib import Path

import sdengine

PROMPTS = [
    "a (large:1.2) red circle on a blue background",
    "a [red:green:0.4] square on a white background",
    "a cyan ring above a black cross, yellow background",
]


def main(folder: Path) -> None:
    """Write one picture a prompt."""
    with sdengine.load("demo") as engine:
        result = engine.generate(PROMPTS, "blurry", seed=[11, 22, 33], sampler="Euler a")
    for path, prompt in zip(result.save(folder / "many.png"), PROMPTS, strict=True):
        print(path, prompt)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
