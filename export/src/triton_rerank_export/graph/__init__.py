"""Checkpoint -> ONNX graph, and that graph in another precision."""
