"""Who the peers are: plain data. Each with its default setting first, then those its best is looked for among."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Kendall's tau to torch fp32 that a peer must reach to be given a ratio. Good fp32 kernels differ in the last bits,
# which swaps pairs that are all but equal. bf16 keeps 8 bits of each value: 0.997 is usual. Of int8, good recipes reach
# 0.91 to 0.98 over all documents, and a model that lost a layer at most 0.90 (docs/LOG.md).
LEAST_TAU = {"fp32": 0.995, "fp16": 0.99, "bf16": 0.98, "int8": 0.90}

SENTENCE_TRANSFORMERS, ONNX, INFINITY = "sentence-transformers", "onnx", "infinity"  # environments
HERE = ""  # the environment of this process, and the checkpoint itself

# Which of the peer's model folders; see artefacts.
PLAIN, ONNX_FILES, OPENVINO_FILES, INFINITY_FILES = "checkpoint", "onnx", "openvino", "infinity"

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to use a peer, as the report says it: arguments that replace the peer's own at loading, options of calls.

    Settings that differ in ``load`` need a worker each.
    """

    text: str
    load: Arguments = field(default_factory=dict)
    options: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """One library with one kind of file.

    Attributes:
        precision: that its order is held to; one of `LEAST_TAU`.
        library: one of the worker's loaders.
        load: arguments of the loader; ``folder``, ``max_length`` and ``n_threads`` are added.
        settings: the default first.
        judged: its order must reach `LEAST_TAU`; else it is held against ours elsewhere.
    """

    name: str
    precision: str
    environment: str
    library: str
    files: str
    load: Arguments
    settings: tuple[Setting, ...]
    judged: bool = True

    @property
    def least_tau(self) -> float:
        """Kendall's tau to torch fp32 that its order must reach to get a ratio."""
        return LEAST_TAU[self.precision] if self.judged else -1.0


def _batches(*sizes: int, load: Arguments | None = None, text: str = "batch {}") -> tuple[Setting, ...]:
    return tuple(Setting(text.format(size), load or {}, {"batch_size": size}) for size in sizes)


_CROSS_ENCODER = _batches(32, 8, 16, 4)  # predict's default is 32; it sorts by length itself
_FASTEMBED = _batches(64, 16, 8, 4)
_FLASHRANK = tuple(
    Setting(text, options={"documents_a_call": size})
    for text, size in (("one call", None), ("16 documents a call", 16), ("8 documents a call", 8))
)


def _server_batches(engine: str, dtype: str) -> tuple[Setting, ...]:
    flags = ["--engine", engine, "--dtype", dtype, "--no-model-warmup"]
    return tuple(
        Setting(f"--batch-size {size}", {"flags": [*flags, "--batch-size", str(size)]}) for size in (32, 8, 16)
    )


def _cross_encoder(name: str, precision: str, environment: str, files: str, load: Arguments, *more: Setting) -> Peer:
    settings = (*_CROSS_ENCODER, *more)
    return Peer(f"sentence-transformers {name}", precision, environment, SENTENCE_TRANSFORMERS, files, load, settings)


def _torch(name: str, precision: str, dtype: str) -> Peer:
    return _cross_encoder(name, precision, SENTENCE_TRANSFORMERS, PLAIN, {"backend": "torch", "dtype": dtype})


def _onnx(name: str, precision: str, file_name: str, *more: Setting) -> Peer:
    return _cross_encoder(name, precision, ONNX, ONNX_FILES, {"backend": "onnx", "file_name": file_name}, *more)


def _openvino(name: str, precision: str, file_name: str, ov_config: Arguments) -> Peer:
    load = {"backend": "openvino", "file_name": file_name, "ov_config": ov_config}
    return _cross_encoder(name, precision, SENTENCE_TRANSFORMERS, OPENVINO_FILES, load)


_O3 = _batches(32, 8, 16, load={"file_name": "onnx/model_O3.onnx"}, text="O3 file, batch {}")
_IR, _IR_INT8 = "openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"

PEERS: tuple[Peer, ...] = (
    _torch("torch fp32", "fp32", "float32"),
    _torch("torch bf16", "bf16", "bfloat16"),
    _onnx("ONNX fp32", "fp32", "onnx/model.onnx", *_O3),
    _onnx("ONNX int8", "int8", "onnx/model_qint8.onnx"),
    _openvino("OpenVINO fp32", "fp32", _IR, {"INFERENCE_PRECISION_HINT": "f32"}),
    _openvino("OpenVINO", "bf16", _IR, {}),  # what its users get: bf16 where the processor has it
    _openvino("OpenVINO int8", "int8", _IR_INT8, {}),
    Peer("Infinity torch", "fp32", INFINITY, "infinity", PLAIN, {}, _server_batches("torch", "float32")),
    Peer("Infinity torch bf16", "bf16", INFINITY, "infinity", PLAIN, {}, _server_batches("torch", "bfloat16")),
    Peer("Infinity optimum", "fp32", INFINITY, "infinity", INFINITY_FILES, {}, _server_batches("optimum", "auto")),
    Peer("fastembed", "fp32", ONNX, "fastembed", ONNX_FILES, {"file_name": "onnx/model.onnx"}, _FASTEMBED),
    Peer("fastembed int8", "int8", ONNX, "fastembed", ONNX_FILES, {"file_name": "onnx/model_qint8.onnx"}, _FASTEMBED),
    Peer("FlashRank", "fp32", ONNX, "flashrank", ONNX_FILES, {"file_name": "onnx/model.onnx"}, _FLASHRANK),
    Peer("FlashRank int8", "int8", ONNX, "flashrank", ONNX_FILES, {"file_name": "onnx/model_qint8.onnx"}, _FLASHRANK),
)


# The peer that is installed with us: what `speed` compares, and whose order is everybody's reference.
INSTALLED = replace(PEERS[0], environment=HERE)


def on_device(device: str, attention: str, batch_sizes: Sequence[int]) -> Peer:
    """sentence-transformers in bf16 on a device, in the environment of this process; best with logits in one piece.

    With random weights both sides swap documents that are all but equal, so its order is not held to a fixed bound.
    """
    best = tuple(
        Setting(f"batch {size}, one piece", options={"batch_size": size, "one_piece": True}) for size in batch_sizes
    )
    load = {"backend": "torch", "dtype": "bfloat16", "device": device, "attention": attention}
    settings = (*_batches(32), *best)
    return Peer("sentence-transformers bf16", "bf16", HERE, SENTENCE_TRANSFORMERS, PLAIN, load, settings, judged=False)


def without_padding(device: str, tokens: Sequence[int]) -> Peer:
    """PyTorch on a device in bf16, in batches of so many tokens, with nothing computed for padding."""
    settings = tuple(Setting(f"{count:,} tokens a batch", options={"tokens": count}) for count in tokens)
    load = {"dtype": "bfloat16", "device": device}
    return Peer("torch without padding bf16", "bf16", HERE, "without padding", PLAIN, load, settings, judged=False)
