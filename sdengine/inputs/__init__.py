"""Inputs: pictures that requests start from."""
