"""The encoder step where Triton has no native backend: one engine over ONNX Runtime or OpenVINO.

The folder is a package of its own: `model.py` imports it as ``encoder`` inside Triton, where our distributions are
not.
"""
