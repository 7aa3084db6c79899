"""Tuning: training of what changes a model, from a folder of pictures."""
