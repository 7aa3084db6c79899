"""The native backend: networks on sdengine's own CPU kernels, with nothing but NumPy beside them."""
