"""Backends on torch: eagerly on CPU or GPU, or with Triton kernels replayed as CUDA graphs."""
