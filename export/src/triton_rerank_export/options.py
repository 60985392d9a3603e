"""What a user may choose about an export, and which choices go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from triton_rerank_export.checkpoint.causal import PROMPTS
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.settings import Settings, check_bounds
from triton_rerank_export.repository.store import DEFAULT_KEEP_VERSIONS
from triton_rerank_export.repository.triton_config import (
    Accelerator,
    Engine,
    Graph,
    Precision,
    SpecialTokensInText,
    Warmup,
)

_IN_OPENVINO: tuple[Precision, ...] = ("bf16", "int8")
_FLAT: tuple[Precision, ...] = ("fp32", "int8", "fp16")
LEAST_VERSIONS = 2  # a server serves the one before until it has loaded the new one
MOST_VERSIONS = 100


@dataclass(frozen=True)
class ExportOptions(Settings):
    """Choices of one export, and the `Settings` that it is served with.

    Defaults are the same on every machine; ``make export`` chooses what its processor computes fastest.
    """

    precision: Annotated[Precision, "bf16 or int8 for CPUs, fp16 for GPUs, fp32 for both"] = "int8"
    engine: Annotated[
        Engine | None,
        "default: openvino for bf16, else onnxruntime; openvino makes int8 static, which is faster with VNNI",
    ] = None
    accelerator: Annotated[Accelerator, "tensorrt: ONNX Runtime runs the graph through it"] = "none"
    graph: Annotated[
        Graph | None,
        "flat: nothing is computed for padding; not in bf16 or for OpenVINO; default: as there is, or padded, with "
        "--native flat where that can be",
    ] = None
    fp32_residuals: Annotated[
        bool, "of fp16: fp32 from layer to layer, with casts; default: where the gate refuses fp16"
    ] = False
    native: Annotated[bool, "serve by Triton's own ONNX Runtime backend, not ours (docs/export.md)"] = False
    name: Annotated[str | None, "public name; default: the known name, or the last part of the id or folder"] = None
    label: Annotated[str | None, "number or name of the label whose logit is the score, where there are several"] = None
    max_length: Annotated[int | None, "tokens of the longest pair; default: the model's, 1024 at most"] = None
    special_tokens_in_text: Annotated[
        SpecialTokensInText,
        "what [SEP] and the like are inside a query or document; text: no document forges the border between the two; "
        "special: as Hugging Face",
    ] = "text"
    accept_licence: Annotated[str | None, "name of it, of weights that may not be used for everything"] = None
    allow_pickle: Annotated[bool, "take pytorch_model.bin; it can run its maker's code"] = False
    prompt: Annotated[
        str | None, f"that a causal reranker was trained with ({', '.join(PROMPTS)}); default: by its name or class"
    ] = None
    reduce_range: Annotated[bool, "7-bit int8 weights, for CPUs without VNNI"] = False
    timing_cache: Annotated[Path | None, "of TensorRT; default %(default)s"] = None
    warmup: Annotated[Warmup | None, "default: full for fp16, light for the others"] = None
    response_cache: Annotated[bool, "let Triton cache encoder responses"] = False
    replace: Annotated[bool, "in place of all versions that are there, with default settings"] = False
    keep_versions: Annotated[int, "versions that stay, the new one and the one before included"] = DEFAULT_KEEP_VERSIONS

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ExportError: a number out of its bounds, or choices that do not go together.
        """
        super().__post_init__()
        check_bounds("keep_versions", self.keep_versions, LEAST_VERSIONS, MOST_VERSIONS)
        if self.reduce_range and self.precision != "int8":
            raise ExportError(f"--reduce-range is for int8 weights; --precision is {self.precision}")
        engine = self.effective_engine
        tensorrt = engine == "tensorrt" or self.accelerator == "tensorrt"
        if engine != "onnxruntime" and self.accelerator != "none":
            raise ExportError(f"--accelerator is for ONNX Runtime; --engine {engine} needs none")
        if engine == "openvino" and self.precision not in _IN_OPENVINO:
            raise ExportError(f"--engine openvino is for {' and '.join(_IN_OPENVINO)}; --precision is {self.precision}")
        if self.precision == "bf16" and engine != "openvino":
            raise ExportError(f"--precision bf16 is served by OpenVINO only; --engine is {engine}")
        if self.scheduling == "continuous" and (self.native or tensorrt):
            raise ExportError(
                "--scheduling continuous is our encoder's, and TensorRT and --native are served by others"
            )
        if self.native and engine == "openvino":
            raise ExportError(
                "--native cannot serve OpenVINO: Triton's own backend of it takes executions of exactly max_batch_size "
                "pairs; leave --native out"
            )
        if self.graph == "flat" and not self.may_be_flat:
            raise ExportError(
                f"--graph flat is for {', '.join(_FLAT)} in ONNX Runtime; --precision is {self.precision}, --engine "
                + f"{engine}{', for TensorRT' if tensorrt else ''}; leave --graph out"
            )
        if self.fp32_residuals and self.precision != "fp16":
            raise ExportError(f"--fp32-residuals is for fp16; --precision is {self.precision}")
        if tensorrt and self.precision != "fp16":
            raise ExportError(f"TensorRT is built from the fp16 graph, not from {self.precision}; add --precision fp16")

    @property
    def effective_engine(self) -> Engine:
        """The engine that is asked for, or the precision's own."""
        return self.engine or ("openvino" if self.precision == "bf16" else "onnxruntime")

    @property
    def may_be_flat(self) -> bool:
        """ONNX Runtime itself has attention over rows in this precision."""
        return self.precision in _FLAT and self.effective_engine == "onnxruntime" and self.accelerator == "none"

    @property
    def static(self) -> bool:
        """int8 with scales that are measured before; OpenVINO has no kernels for ONNX Runtime's dynamic form."""
        return self.precision == "int8" and self.effective_engine == "openvino"

    @property
    def fused(self) -> bool:
        """A padded graph goes to ONNX Runtime on a GPU. A CPU is faster without fusion, TensorRT does not know it."""
        return self.precision == "fp16" and self.effective_engine == "onnxruntime" and self.accelerator == "none"

    @property
    def effective_warmup(self) -> Warmup:
        """Graphs for GPUs are warmed up in full; on a CPU nothing is compiled for a shape, so a little is enough."""
        return self.warmup or ("full" if self.precision == "fp16" else "light")
