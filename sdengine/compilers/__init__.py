"""Compilers: what makes a target's files from an exported network."""
