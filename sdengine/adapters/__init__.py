"""Adapters of the LoRA family: files of small changes to a bundle's weights, and their merging."""
