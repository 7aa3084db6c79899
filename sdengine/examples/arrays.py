"""Hand the pixels on without a copy: NumPy arrays, PIL images, DLPack for other frameworks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import sdengine


def main(folder: Path) -> None:
    """Write the two pictures of a batch side by side."""
    with sdengine.load("demo") as engine:
        result = engine.generate("a white star on a red background", seed=1, batch_size=2)
    print("arrays:", [array.shape for array in result.arrays], result.arrays[0].dtype)
    print("images:", result.images[0].size, result.images[0].mode)
    batch = np.from_dlpack(result.stacked)  # torch.from_dlpack(result.stacked) likewise
    print("DLPack:", batch.shape, "same memory:", np.shares_memory(batch, result.stacked))

    from PIL import Image

    Image.fromarray(np.concatenate(list(batch), axis=1)).save(folder / "side-by-side.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
