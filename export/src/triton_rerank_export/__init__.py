"""Cross-encoder checkpoint -> ONNX -> parity gate -> Triton model repository."""
