"""Compilers: what makes a target's files from an exported network."""

from sdengine.compilers.registry import COMPILERS, get_compiler

__all__ = ["COMPILERS", "get_compiler"]
