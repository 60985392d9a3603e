"""The two roads to TensorRT: a plan that is built here, or by ONNX Runtime where it is served."""
