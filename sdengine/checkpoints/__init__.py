"""Checkpoints: read and written as diffusers folders, with every file checked."""
