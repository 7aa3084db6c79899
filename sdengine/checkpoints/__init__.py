"""Checkpoints: read from folders and single files, written as folders, every file checked."""

from sdengine.checkpoints.folder import DEMO_CHECKPOINT, demo_tokenizer_dir
from sdengine.checkpoints.reader import Checkpoint, load_checkpoint
from sdengine.checkpoints.single_file import SingleFileCheckpoint
from sdengine.checkpoints.writer import save_checkpoint

AnyCheckpoint = Checkpoint | SingleFileCheckpoint

__all__ = [
    "DEMO_CHECKPOINT",
    "AnyCheckpoint",
    "Checkpoint",
    "SingleFileCheckpoint",
    "demo_tokenizer_dir",
    "load_checkpoint",
    "save_checkpoint",
]
