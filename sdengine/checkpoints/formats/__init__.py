"""Tensor file formats: safetensors, and pickled archives read without executing code."""
