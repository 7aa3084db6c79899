"""Requests: what a caller asks for."""
