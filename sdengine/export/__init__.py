"""Export: the torch modules as ONNX graphs, checked against what they were made from."""
