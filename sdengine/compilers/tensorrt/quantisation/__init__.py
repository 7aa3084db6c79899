"""Quantisation: U-Nets of engines in eight bits, by a calibration on the CPU."""
