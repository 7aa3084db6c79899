"""Checkpoints: read and written as diffusers folders, with every file checked."""

from sdengine.checkpoints.folder import DEMO_CHECKPOINT, demo_tokenizer_dir
from sdengine.checkpoints.reader import Checkpoint, load_checkpoint
from sdengine.checkpoints.writer import save_checkpoint

__all__ = [
    "DEMO_CHECKPOINT",
    "Checkpoint",
    "demo_tokenizer_dir",
    "load_checkpoint",
    "save_checkpoint",
]
