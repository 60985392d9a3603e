"""One model on Triton, over gRPC: `TritonScorer` and `TritonOptions`."""
