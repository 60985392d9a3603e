"""What a served model is, as data -> Triton's protobuf -> config.pbtxt. The protobuf is the schema check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from triton_rerank import contract
from triton_rerank.types import Activation
from triton_rerank_export.tensorrt.profiles import ACCELERATOR, accelerator_parameters, profiles

Precision = Literal["fp32", "fp16", "int8", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Engine = Literal["onnxruntime", "tensorrt", "openvino"]
Accelerator = Literal["none", "tensorrt"]
Graph = Literal["padded", "flat"]
Scheduling = Literal["executions", "continuous"]
SpecialTokensInText = Literal["text", "special"]
Warmup = Literal["full", "light", "none"]

_FOR_CPUS: tuple[Precision, ...] = ("int8", "bf16")
_HEADER = "# Written by triton-rerank-export; do not edit, export again.\n"
_FULL_LADDER = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)

Config = dict[str, Any]  # fields of a message of Triton's ``ModelConfig``, by name


def _tensor(name: str, data_type: str, dim: int) -> Config:
    return {"name": name, "data_type": data_type, "dims": [dim]}


_TEXTS = [_tensor(name, "TYPE_STRING", 1) for name in (contract.QUERY, contract.DOCUMENT)]
_OF_A_PAIR = [_tensor(contract.TOKEN_COUNT, "TYPE_INT32", 1), _tensor(contract.TRUNCATED, "TYPE_BOOL", 1)]
_LOGITS = _tensor(contract.LOGITS, "TYPE_FP32", 1)
_WIDTHS = {  # what a flat graph needs of the rows that Triton merges; our encoder makes it itself
    "kind": "BATCH_ITEM_SHAPE_FLATTEN",
    "target_name": [contract.WIDTHS],
    "data_type": "TYPE_INT32",
    "source_input": [contract.INPUT_IDS],
}

DEFAULT_MAX_BATCH_SIZE = 256  # pairs; a client splits longer lists
EXECUTION_TOKENS = 65_536  # padded tokens that are computed at once at the most; our backend's GPU_TOKENS
LIGHT_TOKENS = 1024  # what the CPU engine computes at once, whatever a request holds (engine.CPU_TOKENS)
_INT64_BYTES = 8
# Of a model for GPUs: one thread of an instance takes 14 us of a pair, which another instance overlaps; all cores share
# the other 108 us (docs/gpu.md).
GPU_TOKENIZERS = 2
DEFAULT_QUEUE_DELAY_US = 0  # requests merge while the instance is busy; waiting would only add latency on a CPU
# In front of a bounded queue Triton 2.51 pauses for half a second now and then; without bounds it crashed (LOG.md).
DEFAULT_MAX_QUEUE_SIZE = 128  # requests that wait; the next one is refused at once
DEFAULT_QUEUE_TIMEOUT_US = int(contract.DEFAULT_TIMEOUT_S * 1e6)  # a request that waited so long has no reader left


@dataclass(frozen=True)
class ServedModel:
    """Everything that the three configs of a model are made from; `Settings` tells of those fields that it sets.

    Attributes:
        name: public model name, the ensemble's.
        activation: "identity" or "sigmoid".
        max_length: tokens of the longest pair.
        precision: of the encoder.
        source: where the weights came from.
        token_type_ids: the encoder reads segment ids.
        pad_token_id: id that fills a row up.
        revision: commit of the source, 40 hex digits; empty where it has none.
        licence: SPDX name of the weights' licence; empty where it is not known.
        version: version folder of the tokenizer, the encoder and the ensemble.
        engine: the library that computes the encoder; "onnxruntime" and "openvino" serve model.onnx, "tensorrt"
            model.plan.
        accelerator: "tensorrt" lets ONNX Runtime run the graph through TensorRT.
        graph: "padded" takes rectangles; "flat" takes rows one after the other, and computes nothing for padding: in
            fp32 and int8 by operators for CPUs, in fp16 by operators that only CUDA has.
        native: Triton's own ONNX Runtime backend computes the encoder, padded graphs on rectangles of one width; else
            ours does, on requests of any widths together.
        warmup: each length of the ladder is run before the server is ready, with one pair and with as many as the
            engine computes at once: ``max_batch_size`` if "full", a micro-batch of the CPU engine if "light".
        response_cache: Triton may answer a repeated request from its cache (it needs --cache-config too).
        query_prompt: text put before every query; empty for none.
        label: number and name of the label whose logit is served, where the classifier has several; else empty.
        special_tokens_in_text: special tokens written inside a text are "text", or what they name: "special".
        prompt: of a causal reranker, parameters of the tokenizer step; empty for a model without.
    """

    name: str
    activation: Activation
    max_length: int
    precision: Precision
    source: str
    token_type_ids: bool
    pad_token_id: int
    revision: str = ""
    licence: str = ""
    version: int = 1
    engine: Engine = "onnxruntime"
    accelerator: Accelerator = "none"
    graph: Graph = "padded"
    native: bool = False
    scheduling: Scheduling = "continuous"
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    queue_delay_us: int = DEFAULT_QUEUE_DELAY_US
    max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE
    queue_timeout_us: int = DEFAULT_QUEUE_TIMEOUT_US
    instances: int = 1
    threads: int = 0
    tokenizers: int = 1
    length_ladder: tuple[int, ...] = ()
    micro_batch_tokens: int = 0
    cuda_graph_shapes: str = ""
    warmup: Warmup = "light"
    response_cache: bool = False
    query_prompt: str = ""
    label: str = ""
    special_tokens_in_text: SpecialTokensInText = "text"
    prompt: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer_name(self) -> str:
        """Name of the ensemble's first step."""
        return self.name + contract.TOKENIZER_SUFFIX

    @property
    def encoder_name(self) -> str:
        """Name of the ensemble's second step."""
        return self.name + contract.ENCODER_SUFFIX

    @property
    def ladder(self) -> tuple[int, ...]:
        """Padded lengths, ascending; the last is ``max_length``."""
        return length_ladder(self.max_length, self.length_ladder or _FULL_LADDER)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the encoder's inputs."""
        return encoder_inputs(token_type_ids=self.token_type_ids)

    @property
    def tokenizer_parameters(self) -> dict[str, str]:
        """Settings of the tokenizer step; what has its default is left out."""
        return {
            contract.MAX_LENGTH: str(self.max_length),
            contract.LENGTH_LADDER: ",".join(str(rung) for rung in self.ladder),
            contract.PAD_TOKEN_ID: str(self.pad_token_id),
            **({contract.QUERY_PROMPT: self.query_prompt} if self.query_prompt else {}),
            **({contract.SPECIAL_TOKENS_IN_TEXT: "special"} if self.special_tokens_in_text == "special" else {}),
            **self.prompt,
        }

    @property
    def backend(self) -> str:
        """Triton's backend for the encoder; TensorRT, in either form, is there in native ones only."""
        native = self.native or self.engine == "tensorrt" or self.accelerator == "tensorrt"
        return self.engine if native else contract.ENCODER_BACKEND

    @property
    def packed(self) -> bool:
        """The graph has operators that only CUDA has."""
        return self.graph == "flat" and self.precision == "fp16"

    @property
    def parameters(self) -> dict[str, str]:
        """Settings of the encoder's engine, as its backend calls them."""
        named: dict[str, str] = {contract.ENGINE: self.engine} if self.backend == contract.ENCODER_BACKEND else {}
        if self.scheduling == "continuous" and self.backend == contract.ENCODER_BACKEND:
            named[contract.SCHEDULING] = self.scheduling
        if self.engine == "tensorrt":  # else each profile keeps memory of its own for its largest shape
            named["execution_context_allocation_strategy"] = "ON_PROFILE_CHANGE"
        if self.engine == "openvino":
            named |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
            named |= {"HINT_BF16": "YES"} if self.precision == "bf16" else {}
        if self.threads:
            named[contract.THREADS[self.engine]] = str(self.threads)
        if self.micro_batch_tokens:
            named[contract.MICRO_BATCH_TOKENS] = str(self.micro_batch_tokens)
        if self.cuda_graph_shapes:
            named[contract.CUDA_GRAPH_SHAPES] = self.cuda_graph_shapes
        return named

    @property
    def cuda_options(self) -> dict[str, str]:
        """Options of ONNX Runtime's CUDA provider, wherever it computes the encoder."""
        for_cuda = self.precision == "fp16" and self.engine == "onnxruntime" and self.accelerator == "none"
        return {"enable_skip_layer_norm_strict_mode": "1"} if for_cuda else {}  # sums of fp16 numbers in fp32

    @property
    def graph_file(self) -> str:
        """Name of the file that the encoder's version folder holds."""
        return "model.plan" if self.engine == "tensorrt" else "model.onnx"

    @property
    def warmup_files(self) -> dict[str, bytes]:
        """Content of the encoder's ``warmup`` folder: per padded length, the attention mask of one full row."""
        one = (1).to_bytes(_INT64_BYTES, "little")
        return {} if self.warmup == "none" else {_mask_file(rung): one * rung for rung in self.ladder}

    @property
    def folders(self) -> tuple[str, str, str]:
        """Names of its three folders in a repository; the ensemble's last."""
        return self.tokenizer_name, self.encoder_name, self.name

    def configs(self, kept: Sequence[int] = ()) -> dict[str, Any]:
        """Model name -> ``ModelConfig``; the ensemble last.

        Args:
            kept: all versions that the steps hold ready; the ensemble uses this one only, so that switching to
                another is one reload of the ensemble.
        """
        versions = sorted({*kept, self.version})
        configs = (_tokenizer_config(self, versions), _encoder_config(self, versions), _ensemble_config(self))
        return {config["name"]: json_format.ParseDict(config, pb.ModelConfig()) for config in configs}


def encoder_inputs(*, token_type_ids: bool) -> tuple[str, ...]:
    """Names of the encoder's inputs, as Hugging Face calls them."""
    return (contract.INPUT_IDS, contract.ATTENTION_MASK) + ((contract.TOKEN_TYPE_IDS,) if token_type_ids else ())


def length_ladder(max_length: int, rungs: Sequence[int] = _FULL_LADDER) -> tuple[int, ...]:
    """Padded lengths for a model: few, so that requests meet on one and merge; the last is ``max_length``."""
    return (*(rung for rung in rungs if rung < max_length), max_length)


def to_text(config: Any) -> str:
    """config.pbtxt of a ``ModelConfig``."""
    return _HEADER + str(text_format.MessageToString(config))


def _tokenizer_config(model: ServedModel, versions: Sequence[int]) -> Config:
    return {
        "name": model.tokenizer_name,
        "backend": "tokenizer",
        "max_batch_size": model.max_batch_size,
        "version_policy": _versions(versions),
        "input": _TEXTS,
        "output": [*(_tensor(name, "TYPE_INT64", -1) for name in model.tensors), *_OF_A_PAIR],
        "dynamic_batching": _batching(model, queue_delay_us=0),
        "instance_group": [{"count": model.tokenizers, "kind": "KIND_CPU"}],
        "parameters": _parameters(model.tokenizer_parameters),
    }


def _encoder_config(model: ServedModel, versions: Sequence[int]) -> Config:
    ours = model.backend == contract.ENCODER_BACKEND
    flat = model.graph == "flat"
    # Ragged: Triton merges requests whatever their widths; native backends want a graph of flat tensors for that.
    inputs = [_tensor(name, "TYPE_INT64", -1) | {"allow_ragged_batch": ours or flat} for name in model.tensors]
    return {
        "name": model.encoder_name,
        "backend": model.backend,
        "default_model_filename": model.graph_file,
        "max_batch_size": model.max_batch_size,
        "version_policy": _versions(versions),
        "input": inputs,
        "batch_input": [_WIDTHS] if flat and not ours else [],
        "output": [_LOGITS],
        "dynamic_batching": _batching(model, queue_delay_us=model.queue_delay_us),
        "instance_group": [{"count": model.instances, **_device(model)}],
        "optimization": _optimization(model),
        # Only the encoder is cached: Triton's key leaves out request parameters, and ``max_length`` is one.
        "response_cache": {"enable": True} if model.response_cache else None,
        "parameters": _parameters(model.parameters),
        "model_warmup": _warmups(model),
    }


def _ensemble_config(model: ServedModel) -> Config:
    pair = (contract.TOKEN_COUNT, contract.TRUNCATED)
    stated = {
        contract.ACTIVATION: model.activation,
        contract.MAX_LENGTH: model.max_length,
        contract.PRECISION: model.precision,
        contract.SOURCE: f"{model.source}@{model.revision}" if model.revision else model.source,
    }
    steps = [
        _step(model, model.tokenizer_name, (contract.QUERY, contract.DOCUMENT), (*model.tensors, *pair)),
        _step(model, model.encoder_name, model.tensors, (contract.LOGITS,)),
    ]
    return {
        "name": model.name,
        "platform": "ensemble",
        "max_batch_size": model.max_batch_size,
        "version_policy": _versions([model.version]),
        "input": _TEXTS,
        "output": [_LOGITS, *_OF_A_PAIR],
        "ensemble_scheduling": {"step": steps},
        "parameters": _parameters(stated),
    }


def _warmups(model: ServedModel) -> list[Config]:
    """For each padded length one with one pair, and one with as many as are ever computed at once."""
    if model.warmup == "none":
        return []
    ours, light = model.backend == contract.ENCODER_BACKEND, model.warmup == "light"
    tokens = EXECUTION_TOKENS if ours else model.max_batch_size * model.max_length
    found = []
    for rung in model.ladder:
        most = max(1, (LIGHT_TOKENS if light else tokens) // rung)
        of_all: Config = {"data_type": "TYPE_INT64", "dims": [rung]}
        inputs = {name: of_all | {"zero_data": True} for name in model.tensors}
        # zeros would be padding, which the engine cuts off
        inputs[contract.ATTENTION_MASK] = of_all | {"input_data_file": _mask_file(rung)}
        for size in sorted({1, min(model.max_batch_size, most)}):
            found.append({"name": f"{size}x{rung}", "batch_size": size, "inputs": inputs})
    return found


def _mask_file(rung: int) -> str:
    return f"attention_mask-{rung}"


def _device(model: ServedModel) -> Config:
    """A GPU where there is one, else the CPU; int8, bf16 and flat fp32 are for CPUs, TensorRT, flat fp16 for GPUs."""
    if model.engine == "tensorrt":  # without the list only the first profile is used
        n_profiles = len(profiles(model.ladder, model.max_batch_size))
        return {"kind": "KIND_GPU", "profile": [str(index) for index in range(n_profiles)]}
    if model.accelerator == "tensorrt" or model.packed:
        return {"kind": "KIND_GPU"}
    return {"kind": "KIND_CPU" if model.graph == "flat" or model.precision in _FOR_CPUS else "KIND_AUTO"}


def _optimization(model: ServedModel) -> Config | None:
    if model.cuda_options:
        chosen = {"name": "cuda", "parameters": model.cuda_options}
    elif model.accelerator == "tensorrt":
        options = accelerator_parameters(inputs=model.tensors, ladder=model.ladder, max_batch_size=model.max_batch_size)
        chosen = {"name": ACCELERATOR, "parameters": options}
    else:
        return None
    return {"execution_accelerators": {"gpu_execution_accelerator": [chosen]}}


def _batching(model: ServedModel, *, queue_delay_us: int) -> Config:
    """Requests that come while the instance is busy merge; what waits too long, or is one too many, is refused."""
    batching: Config = {"max_queue_delay_microseconds": queue_delay_us}
    if model.queue_timeout_us or model.max_queue_size:  # any bound, a request's own too, costs the prefetching
        batching["default_queue_policy"] = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": model.queue_timeout_us,
            "allow_timeout_override": True,
            "max_queue_size": model.max_queue_size,
        }
    return batching


def _versions(versions: Sequence[int]) -> Config:
    return {"specific": {"versions": versions}}


def _step(model: ServedModel, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Config:
    """A tensor has one name everywhere, so both maps are the identity."""
    input_map, output_map = (dict(zip(tensors, tensors, strict=True)) for tensors in (inputs, outputs))
    return {"model_name": name, "model_version": model.version, "input_map": input_map, "output_map": output_map}


def _parameters(values: Mapping[str, object]) -> Config:
    return {key: {"string_value": str(value)} for key, value in values.items()}
