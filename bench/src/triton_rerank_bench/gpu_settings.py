"""Ways to serve one exported model on a GPU, as changes of its configs.

What only our backend knows stands in the encoder's ``parameters``, which NVIDIA's passes over:
``micro_batch_tokens`` and ``cuda_graph_shapes``. What both know stands in the accelerator called "cuda", whose keys are
the CUDA provider's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from triton_rerank.contract import LENGTH_LADDER
from triton_rerank_bench.gpu_device import Kind
from triton_rerank_bench.variants import Configs, clear_queue_bounds

GRAPH_SHAPES = "cuda_graph_shapes"
MICRO_BATCH_TOKENS = "micro_batch_tokens"
_PROVIDER_OPTIONS = {"use_ep_level_unified_stream": "1"}  # one stream, as CUDA graphs have it, with and without them
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # at most half as many again as asked for


@dataclass(frozen=True)
class Setting:
    """How a model is served.

    Attributes:
        kind: where the encoder computes.
        queue_bounds: requests are refused as the export says; False lets them wait, and Triton prefetch.
        micro_batch_tokens: padded tokens that the encoder computes at once.
        graph_tokens: shapes of up to so many padded tokens are CUDA graphs; 0 for none.
        encoders: instances of the encoder, each with its own copy of the weights.
        tokenizers: instances of the tokenizer.
        max_batch_size: most pairs in a request and in an execution.
    """

    kind: Kind
    queue_bounds: bool = True
    micro_batch_tokens: int = 65_536
    graph_tokens: int = 0
    encoders: int = 1
    tokenizers: int = 1
    max_batch_size: int = 256

    def __str__(self) -> str:
        parts = [f"{self.encoders} encoder(s), {self.tokenizers} tokenizer(s), batches to {self.max_batch_size}"]
        if self.kind == "cuda":
            parts.append(f"{self.micro_batch_tokens:,} tokens at once")
            parts.append(f"CUDA graphs to {self.graph_tokens:,} tokens" if self.graph_tokens else "no CUDA graphs")
        return ", ".join([*parts, "bounded queues" if self.queue_bounds else "unbounded queues"])

    def change(self, configs: Configs) -> None:
        """Bring a model's configs to this setting."""
        for config in configs:
            _set_batch_size(config, self.max_batch_size)
        if not self.queue_bounds:
            clear_queue_bounds(configs)
        _set_instances(configs.tokenizer, self.tokenizers, pb.ModelInstanceGroup.KIND_CPU)
        on_gpu = self.kind == "cuda"
        kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
        _set_instances(configs.encoder, self.encoders, kind)
        if on_gpu:
            self._change_encoder(configs)

    def _change_encoder(self, configs: Configs) -> None:
        parameters = configs.encoder.parameters
        parameters[MICRO_BATCH_TOKENS].string_value = str(self.micro_batch_tokens)
        if self.graph_tokens:
            ladder = [int(rung) for rung in configs.tokenizer.parameters[LENGTH_LADDER].string_value.split(",")]
            shapes = graph_shapes(ladder, self.graph_tokens, self.max_batch_size)
            parameters[GRAPH_SHAPES].string_value = ",".join(f"{rows}x{width}" for rows, width in shapes)
        accelerators = pb.ModelOptimizationPolicy.ExecutionAccelerators
        cuda = accelerators.Accelerator(name="cuda", parameters=_PROVIDER_OPTIONS)
        configs.encoder.optimization.execution_accelerators.CopyFrom(accelerators(gpu_execution_accelerator=[cuda]))


# docs/LOG.md has what bounded queues cost; for the others a GPU must tell. Guesses until one has: none was measured.
_ON_GPU: tuple[dict[str, Any], ...] = (
    {"queue_bounds": False},
    {"micro_batch_tokens": 16_384},
    {"graph_tokens": 8_192},
    {"encoders": 2},
    {"tokenizers": 2},
    {"max_batch_size": 1_024},
    {"encoders": 4, "tokenizers": 4},
)
_ON_CPU: tuple[dict[str, Any], ...] = ({"queue_bounds": False},)  # the same logic, nothing that needs a GPU


def changes(kind: Kind) -> tuple[dict[str, Any], ...]:
    """What is tried on a device, one after the other, on top of the best so far."""
    return _ON_GPU if kind == "cuda" else _ON_CPU


def graph_shapes(ladder: Sequence[int], max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
    """Rows and width of each CUDA graph.

    Args:
        ladder: padded lengths.
        max_tokens: of a shape, padding included.
        max_rows: pairs of an execution.
    """
    return [(rows, width) for width in ladder for rows in _ROWS if rows * width <= max_tokens and rows <= max_rows]


def _set_batch_size(config: Any, size: int) -> None:
    before, config.max_batch_size = config.max_batch_size, size
    for warmup in config.model_warmup:  # a full batch stays one, and none may be larger
        warmup.batch_size = size if warmup.batch_size == before else min(size, warmup.batch_size)


def _set_instances(config: Any, count: int, kind: int) -> None:
    if not config.instance_group:
        config.instance_group.add()
    for group in config.instance_group:
        group.count, group.kind = count, kind
