"""Bundles: a checkpoint compiled for one target, as a folder with a checked manifest."""
