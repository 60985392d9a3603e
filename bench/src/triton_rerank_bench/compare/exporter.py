"""Makes the files that peers load, with the peers' own functions, in their own environment; a script, as worker.py is.

    exporter.py onnx     CHECKPOINT FOLDER INSTRUCTIONS   → onnx/model.onnx, onnx/model_O3.onnx, onnx/model_qint8.onnx
    exporter.py openvino CHECKPOINT FOLDER PAIRS          → openvino/openvino_model.xml, …_qint8_quantized.xml

INSTRUCTIONS is sentence-transformers' name of an instruction set: arm64, avx2, avx512 or avx512_vnni. PAIRS is a folder
of JSON lines ``{"pair": [query, document]}`` that static quantisation takes the ranges of activations from.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

CALIBRATION_PAIRS = 200


def main() -> int:
    """Make the files of one kind."""
    kind, checkpoint, folder, detail = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # all is local
    {"onnx": _onnx, "openvino": _openvino}[kind](checkpoint, folder, detail)
    for path in Path(checkpoint).iterdir():  # as all peers read them, not as export wrote them
        if path.suffix in {".json", ".txt"}:
            shutil.copyfile(path, Path(folder, path.name))
    return 0


def _onnx(checkpoint: str, folder: str, instructions: str) -> None:
    from sentence_transformers import (
        CrossEncoder,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    CrossEncoder(checkpoint, device="cpu", backend="onnx", model_kwargs={"export": True}).save_pretrained(folder)
    model = CrossEncoder(folder, device="cpu", backend="onnx", model_kwargs={"file_name": "onnx/model.onnx"})
    export_optimized_onnx_model(model, "O3", folder)
    export_dynamic_quantized_onnx_model(model, instructions, folder, file_suffix="qint8")


def _openvino(checkpoint: str, folder: str, pairs: str) -> None:
    from optimum.intel import OVQuantizationConfig
    from sentence_transformers import CrossEncoder, export_static_quantized_openvino_model

    CrossEncoder(checkpoint, device="cpu", backend="openvino", model_kwargs={"export": True}).save_pretrained(folder)
    export_static_quantized_openvino_model(
        CrossEncoder(folder, device="cpu", backend="openvino"),
        OVQuantizationConfig(num_samples=CALIBRATION_PAIRS),
        folder,
        dataset_name=pairs,
        dataset_config_name="default",
        dataset_split="train",
        column_name="pair",
    )


if __name__ == "__main__":
    sys.exit(main())
