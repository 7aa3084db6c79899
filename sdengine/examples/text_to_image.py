"""Make a batch of pictures from one prompt and save them."""

from __future__ import annotations

import sys
from pathlib import Path

import sdengine


def main(folder: Path) -> None:
    """Write circle-1.png to circle-4.png."""
    with sdengine.load("demo") as engine:
        result = engine.generate("a large red circle on a blue background", seed=7, batch_size=4)
    for path, seed in zip(result.save(folder / "circle.png"), result.seeds, strict=True):
        print(path, "seed", seed)
    print(f"{result.timings.total_ms:.0f} ms, {result.timings.unet_calls} U-Net calls")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
