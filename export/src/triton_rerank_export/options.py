"""What a user may choose about an export, and which choices go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.settings import Settings, check_bounds
from triton_rerank_export.repository.store import DEFAULT_KEEP_VERSIONS
from triton_rerank_export.repository.triton_config import (
    Accelerator,
    Engine,
    Graph,
    Precision,
    SpecialTokensInText,
)
from triton_rerank_export.repository.warmup import Warmup

_IN_OPENVINO: tuple[Precision, ...] = ("bf16", "int8")
_FLAT: tuple[Precision, ...] = ("fp32", "int8", "fp16")
LEAST_VERSIONS = 2  # a server serves the one before until it has loaded the new one
MOST_VERSIONS = 100


@dataclass(frozen=True)
class ExportOptions(Settings):
    """Choices of one export, and the `Settings` that it is served with; every default is what ``make export`` does.

    Attributes:
        precision: of the encoder: bf16 and int8 for CPUs, fp16 for GPUs, fp32 for both.
        engine: the library that computes the encoder; None means OpenVINO for bf16, else ONNX Runtime. int8 is dynamic
            in ONNX Runtime and static in OpenVINO.
        accelerator: "tensorrt" runs ONNX Runtime's graph through TensorRT.
        graph: "flat" takes rows one after the other and computes nothing for padding; fp32 and dynamic int8 for CPUs,
            fp16 for GPUs.
            None means as in the version that is there, or "padded".
        native: let Triton's own ONNX Runtime backend serve the graph, instead of ours.
        name: public name; None means the catalogue's, or the last part of the id or folder.
        label: number or name of the label whose logit is served, of a classifier with several.
        max_length: tokens of the longest pair; None means the model's own, 1024 at most.
        special_tokens_in_text: special tokens written inside a text are "text", so that no document forges the border
            between query and document, or what they name, as Hugging Face's tokenizers do by default: "special".
        warmup: None means "full" for graphs made for GPUs, else "light".
        response_cache: let Triton answer a repeated request from its cache.
        replace: begin again at version 1, and with default settings, instead of adding a version.
        keep_versions: versions that stay in the repository, the new one and the one before included.
        reduce_range: int8 weights have 7 bits, for NVIDIA's native backend on CPUs without VNNI.
        accept_licence: licence that is accepted, of weights that may not be used for everything.
        allow_pickle: read pytorch_model.bin where there are no safetensors.
        prompt: name of the prompt that a causal reranker was trained with; None: what its name or its class says.
        timing_cache: file in which TensorRT keeps what it measured, for the next build; None means none is kept.
    """

    precision: Precision = "int8"
    engine: Engine | None = None
    accelerator: Accelerator = "none"
    graph: Graph | None = None
    native: bool = False
    name: str | None = None
    label: str | None = None
    max_length: int | None = None
    special_tokens_in_text: SpecialTokensInText = "text"
    warmup: Warmup | None = None
    response_cache: bool = False
    replace: bool = False
    keep_versions: int = DEFAULT_KEEP_VERSIONS
    reduce_range: bool = False
    accept_licence: str | None = None
    allow_pickle: bool = False
    prompt: str | None = None
    timing_cache: Path | None = None

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
        if self.graph == "flat" and (self.precision not in _FLAT or engine != "onnxruntime" or tensorrt):
            raise ExportError(
                f"--graph flat is for {', '.join(_FLAT)} in ONNX Runtime; --precision is {self.precision}, --engine "
                + (f"{engine}, for TensorRT" if tensorrt else engine)
            )
        if tensorrt and self.precision != "fp16":
            raise ExportError(f"TensorRT is built from the fp16 graph, not from {self.precision}; add --precision fp16")

    @property
    def effective_engine(self) -> Engine:
        """The engine that is asked for, or the precision's own."""
        return self.engine or ("openvino" if self.precision == "bf16" else "onnxruntime")

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
