"""Cross-encoder checkpoint -> ONNX -> parity gate -> Triton model repository."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it as it is imported; else it calls its maker
