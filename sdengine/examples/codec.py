"""Keep a picture as its latents, a byte a value: half a bit a pixel, and what is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import sdengine


def main(folder: Path) -> None:
    """Write red.png, its latents as red.safetensors, and red-again.png, decoded from that file."""
    with sdengine.load("demo") as engine:
        red = engine.generate("a large red circle on a blue background", seed=7)
        print(*red.save(folder / "red.png"))
        file = engine.encode(folder / "red.png").save(folder / "red.safetensors", overwrite=True)
        print(file, file.stat().st_size, "bytes")

        from PIL import Image

        again = engine.decode(sdengine.Latents.load(file))
        Image.fromarray(again).save(folder / "red-again.png")
        print(folder / "red-again.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
