"""The tensorrt and tensorrt-rtx backends: engines on NVIDIA GPUs."""
