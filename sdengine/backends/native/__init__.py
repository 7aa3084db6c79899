"""The native backend: networks on the CPU kernels of this project."""
