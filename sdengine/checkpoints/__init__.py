"""Checkpoints: diffusers folders and single files, read and written with everything checked."""

from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.converter import convert
from sdengine.checkpoints.folder import DEMO_CHECKPOINT, DEMO_EDGES, demo_tokenizer_dir
from sdengine.checkpoints.reader import load_checkpoint
from sdengine.checkpoints.writer import save_checkpoint, save_network

__all__ = [
    "DEMO_CHECKPOINT",
    "DEMO_EDGES",
    "Checkpoint",
    "convert",
    "demo_tokenizer_dir",
    "load_checkpoint",
    "save_checkpoint",
    "save_network",
]
