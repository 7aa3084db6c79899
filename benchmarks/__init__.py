"""Benchmarks: cases, a harness that verifies before it times, records of results."""
