"""Choices that do not go together, or are out of bounds, are refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_rerank_export.cli import main
from triton_rerank_export.options import ExportOptions


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--max-batch-size", "0"], "--max-batch-size is 0: it must be from 1 to 65536"),
        (["--queue-delay-us", "-1"], "--queue-delay-us is -1: it must be from 0 to 10000000"),
        (["--max-queue-size", "-5"], "--max-queue-size is -5"),
        (["--queue-timeout-us", "9999999999"], "--queue-timeout-us is 9999999999"),
        (["--keep-versions", "1"], "--keep-versions is 1: it must be from 2 to 100"),
        (["--reduce-range", "--precision", "fp32"], "--reduce-range is for int8 weights; --precision is fp32"),
        (["--engine", "tensorrt"], "TensorRT is built from the fp16 graph, not from int8; add --precision fp16"),
        (["--accelerator", "tensorrt", "--precision", "fp32"], "not from fp32"),
        (
            ["--engine", "openvino", "--precision", "fp16"],
            "--engine openvino is for bf16 and int8; --precision is fp16",
        ),
        (
            ["--engine", "openvino", "--precision", "fp32"],
            "--engine openvino is for bf16 and int8; --precision is fp32",
        ),
        (["--engine", "onnxruntime", "--precision", "bf16"], "--precision bf16 is served by OpenVINO only"),
        (["--scheduling", "continuous", "--native"], "--scheduling continuous is our encoder's"),
        (["--native", "--engine", "openvino"], "--native cannot serve OpenVINO"),
        (["--fp32-residuals"], "--fp32-residuals is for"),
        (
            ["--graph", "flat", "--precision", "bf16"],
            "fp32, int8, fp16 in ONNX Runtime; --precision is bf16, --engine openvino",
        ),
        (["--graph", "flat", "--engine", "openvino"], "--precision is int8, --engine openvino"),
        (["--graph", "flat", "--precision", "fp16", "--engine", "tensorrt"], "fp16, --engine tensorrt, for TensorRT"),
        (
            ["--engine", "tensorrt", "--accelerator", "tensorrt", "--precision", "fp16"],
            "--accelerator is for ONNX Runtime",
        ),
    ],
)
def test_it_is_one_line_and_nothing_is_made(
    tmp_path: Path, arguments: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--model", "minilm-l6-demo", "--model-repository", str(tmp_path / "r")]
    assert main(["export", *target, *arguments]) == 1
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("precision", "warmup"), [("int8", "light"), ("fp32", "light"), ("fp16", "full")])
def test_a_graph_for_gpus_is_warmed_up_in_full(precision: str, warmup: str) -> None:
    assert ExportOptions(precision=precision).effective_warmup == warmup  # type: ignore[arg-type]
    assert ExportOptions(precision=precision, warmup="none").effective_warmup == "none"  # type: ignore[arg-type]


def test_models_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    for name in ("minilm-l6-demo", "ms-marco-minilm-l6-v2", "bge-reranker-v2-m3"):
        assert name in table
