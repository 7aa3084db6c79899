"""The code that runs on the GPU, written in Triton; only `sdengine.kernels` imports it, when used.

Parameters of every kernel stand in the order inputs, 32-bit integers, outputs, compile-time
constants: what an ahead-of-time plugin can pass. Triton reads TRITON_INTERPRET at their import.
"""
