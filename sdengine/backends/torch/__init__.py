"""The triton backend: torch modules with sdengine's Triton kernels, replayed as CUDA graphs."""
