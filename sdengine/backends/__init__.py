"""Backends: what runs a bundle's networks."""

from sdengine.backends.registry import BACKENDS, get_backend, select_backend

__all__ = ["BACKENDS", "get_backend", "select_backend"]
