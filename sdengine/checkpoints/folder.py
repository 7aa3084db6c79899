"""Checkpoints in the package: where they lie."""

from __future__ import annotations

from pathlib import Path

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
# What is trained on top of it: changes of its U-Net, a ControlNet, a tiny decoder.
DEMO_VARIANTS = Path(__file__).parent / "demo_variants"
DEMO_EDGES = DEMO_VARIANTS / "edges"
DEMO_TINY = DEMO_VARIANTS / "tiny"
# Checkpoints of the demo model with another U-Net: the tensors of a file, else its own.
DEMO_UNETS = {
    "demo-inpainting": DEMO_VARIANTS / "inpainting.safetensors",
    "demo-depth": DEMO_VARIANTS / "depth.safetensors",
}


def demo_tokenizer_dir() -> Path:
    """Return the folder with CLIP's vocabulary, which every family's checkpoints share."""
    return DEMO_CHECKPOINT / "tokenizer"
