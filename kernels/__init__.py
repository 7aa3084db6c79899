"""Kernels of the networks."""
