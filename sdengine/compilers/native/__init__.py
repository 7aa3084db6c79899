"""Compile ONNX graphs for the native target: a graph of its own steps, and a file of weights."""
