"""What can be set about a served model without another export, and which values of it are worth a try. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from triton_rerank import TritonOptions
from triton_rerank.contract import CUDA_GRAPH_SHAPES, LENGTH_LADDER, MICRO_BATCH_TOKENS, SCHEDULING, THREADS
from triton_rerank.repository import encoder_engine
from triton_rerank.triton.channel import Split
from triton_rerank_bench.tune.variants import Configs, clear_queue_bounds

BOUNDED, UNBOUNDED = "as exported", "none"
CONTINUOUS = "continuous"
_PROVIDER_OPTIONS = {"use_ep_level_unified_stream": "1"}  # of CUDA
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # at most half as many again as asked for
_MOST_PAIRS = 4096  # a request or an execution larger than that is tried by nobody
_MOST_CORES_APART = 4  # instances or thread counts that are tried
_GPU_INSTANCES = (2, 3, 4)
_DELAYS_US = (500, 2000, 5000)
_SUB_REQUESTS = (4, 1, 8, 2)


@dataclass(frozen=True)
class Setting:
    """One way to serve and to call a model.

    Attributes:
        repository: label of the model repository, and thus the precision.
        instances: of the encoder.
        threads: that each instance computes an operator with; 0 means one a core.
        max_batch_size: most pairs in a request and in an execution.
        queue_delay_us: microseconds that the encoder's queue waits for more requests.
        queue_bounds: how many requests may wait, and how long: `BOUNDED` or `UNBOUNDED`.
        length_ladder: padded lengths in tokens, ascending.
        tokenizers: instances of the tokenizer.
        micro_batch_tokens: padded tokens that the encoder computes at once; 0 means the engine's own choice.
        scheduling: of our encoder: "continuous", or the "executions" that Triton makes.
        graph_tokens: shapes of up to so many padded tokens are CUDA graphs; 0 means none.
        split: when the client splits a list, as `TritonOptions` has it.
        sub_requests: of one call, under way at a time; None means the client's own choice.
    """

    repository: str
    instances: int
    threads: int
    max_batch_size: int
    queue_delay_us: int
    queue_bounds: str
    length_ladder: tuple[int, ...]
    tokenizers: int = 1
    micro_batch_tokens: int = 0
    graph_tokens: int = 0
    scheduling: str = "executions"
    split: Split = "auto"
    sub_requests: int | None = None

    @property
    def client_options(self) -> TritonOptions:
        """What the client is made with."""
        return TritonOptions(split=self.split, concurrency=self.sub_requests)

    @property
    def served(self) -> Setting:
        """The part that the server knows: settings that share it can share a server."""
        return replace(self, split="auto", sub_requests=None)

    @property
    def graph_shapes(self) -> str:
        """The encoder's parameter of that name."""
        shapes = graph_shapes(self.length_ladder, self.graph_tokens, self.max_batch_size)
        return ",".join(f"{rows}x{width}" for rows, width in shapes)

    def change(self, configs: Configs) -> None:
        """Bring configs of the same repository to this setting; what is not a knob stays as it is."""
        for name in self.changes_from(exported_setting(self.repository, configs)):
            if name in _STORED:
                _STORED[name][1](configs, self)

    def changes_from(self, other: Setting) -> dict[str, tuple[object, object]]:
        """Name of the knob -> the other's value and this one's, for those that differ."""
        pairs = {field.name: (getattr(other, field.name), getattr(self, field.name)) for field in fields(self)}
        return {name: values for name, values in pairs.items() if values[0] != values[1]}


@dataclass(frozen=True)
class Ground:
    """What bounds the values of the knobs: the exported setting, cores that the server may use, pairs of one call.

    With fixed shapes those beyond the exported ones cannot be served (TensorRT).
    """

    exported: Setting
    cores: int
    on_gpu: bool
    fixed_shapes: bool
    most_pairs: int


def exported_setting(label: str, configs: Configs) -> Setting:
    """The setting that the configs of one model have, in the repository of this label."""
    return Setting(repository=label, **{name: read(configs) for name, (read, _) in _STORED.items()})


def ground(label: str, configs: Configs, *, cores: int, has_gpu: bool, most_pairs: int) -> Ground:
    """What bounds the knobs of a repository; with a GPU here, Triton takes it where the config leaves that open."""
    group = configs.encoder.instance_group[0] if configs.encoder.instance_group else None
    kind = group.Kind.Name(group.kind) if group else "KIND_AUTO"
    accelerators = configs.encoder.optimization.execution_accelerators.gpu_execution_accelerator
    fixed = configs.encoder.backend == "tensorrt" or any(each.name == "tensorrt" for each in accelerators)
    on_a_gpu = kind == "KIND_GPU" or (kind == "KIND_AUTO" and has_gpu)
    return Ground(exported_setting(label, configs), cores, on_a_gpu, fixed, most_pairs)


def candidates(knob: str, setting: Setting, on: Ground) -> list[Setting]:
    """The setting with other values of one of the `KNOBS`, the most promising first.

    Instances on a CPU share the cores: with all threads each, they would wait for each other.
    """
    found = []
    for value in dict.fromkeys(KNOBS[knob](setting, on)):
        candidate = replace(setting, **{knob: value})
        if knob == "instances" and not on.on_gpu:
            of_one = 0 if on.exported.instances == 1 and on.exported.threads == 0 else on.cores
            candidate = replace(candidate, threads=of_one if value == 1 else on.cores // value)
        found += [candidate] if candidate != setting else []
    return found


def _instances(setting: Setting, on: Ground) -> Iterable[int]:
    if on.on_gpu:
        return (*_GPU_INSTANCES, 1)
    counts = [2**power for power in range(on.cores.bit_length()) if 2**power <= on.cores][: _MOST_CORES_APART + 1]
    return (*counts[1:], 1)


def _threads_to_try(setting: Setting, on: Ground) -> Iterable[int]:
    if on.on_gpu:
        return ()
    share = max(1, on.cores // setting.instances)
    effective = setting.threads or on.cores
    return [count for count in (share // 2, share - 1, 2 * share) if 0 < count <= on.cores and count != effective]


def _batch_sizes(setting: Setting, on: Ground) -> Iterable[int]:
    exported = on.exported.max_batch_size
    larger = () if on.fixed_shapes else (2 * exported,)
    sizes = (exported // 4, *larger, exported // 2, exported // 8, exported)
    return [size for size in sizes if 1 <= size <= _MOST_PAIRS]


def _ladders(setting: Setting, on: Ground) -> Iterable[tuple[int, ...]]:
    """Fewer rungs let more requests merge, more rungs pad less; the longest one stays."""
    exported = on.exported.length_ladder
    fewer = exported[::-1][::2][::-1]
    middles = [(low + high) // 2 for low, high in itertools.pairwise(exported) if high - low > 1]
    more = tuple(sorted({*exported, *middles}))
    return (fewer, exported[-1:], exported) if on.fixed_shapes else (fewer, more, exported[-1:], exported)


def _splits(setting: Setting, on: Ground) -> Iterable[Split]:
    """The other way; "auto" is one of the two, by whether the queues are bounded."""
    other: Split = "padding" if setting.queue_bounds == BOUNDED else "limits"
    return () if on.most_pairs == 1 else (other if setting.split == "auto" else "auto",)


def _sub_requests(setting: Setting, on: Ground) -> Iterable[int | None]:
    """Only where a call is more than one request."""
    for_padding = setting.split == "padding" or (setting.split == "auto" and setting.queue_bounds == UNBOUNDED)
    is_one = on.most_pairs <= setting.max_batch_size and not (for_padding and on.most_pairs > 1)
    return () if is_one else (*_SUB_REQUESTS, None)


def _unless_continuous(setting: Setting, *values: object) -> Iterable[object]:
    """Under continuous scheduling nothing waits in Triton's queue: a delay costs time, and no bound makes it pause."""
    return () if setting.scheduling == CONTINUOUS else values


def _on_gpu_only(on: Ground, *values: int) -> Iterable[int]:
    return values if on.on_gpu and not on.fixed_shapes else ()


def graph_shapes(ladder: Sequence[int], max_tokens: int, max_rows: int) -> list[tuple[int, int]]:
    """Rows and width of each CUDA graph, of at most so many tokens, padding included, and so many rows."""
    return [(rows, width) for width in ladder for rows in _ROWS if rows * width <= max_tokens and rows <= max_rows]


# Name -> values to try, in the order in which they are tried: those that changed most in docs/LOG.md first; the last
# three on a GPU only. Where the export chose continuous scheduling, Triton's own executions hold more rows, but wait.
KNOBS: dict[str, Callable[[Setting, Ground], Iterable[Any]]] = {
    "instances": _instances,
    "scheduling": lambda _, on: ("executions", CONTINUOUS) if on.exported.scheduling == CONTINUOUS else (),
    "queue_bounds": lambda setting, on: _unless_continuous(setting, UNBOUNDED, on.exported.queue_bounds),
    "split": _splits,
    "max_batch_size": _batch_sizes,
    "threads": _threads_to_try,
    "sub_requests": _sub_requests,
    "queue_delay_us": lambda setting, on: _unless_continuous(setting, *_DELAYS_US, on.exported.queue_delay_us),
    "length_ladder": _ladders,
    "micro_batch_tokens": lambda _, on: _on_gpu_only(on, 16_384, on.exported.micro_batch_tokens),
    "graph_tokens": lambda _, on: _on_gpu_only(on, 8_192, on.exported.graph_tokens),
    "tokenizers": lambda _, on: (2, 4, 1) if on.on_gpu else (),
}


def on_gpu(configs: Configs) -> None:
    """Have ONNX Runtime compute on a GPU, with one stream, as CUDA graphs have it, with and without them.

    What the export told the provider stays: a flat fp16 graph is another one without its options.
    """
    for group in configs.encoder.instance_group:
        group.kind = group.KIND_GPU
    accelerators = pb.ModelOptimizationPolicy.ExecutionAccelerators
    served = configs.encoder.optimization.execution_accelerators
    options = {name: value for each in served.gpu_execution_accelerator for name, value in each.parameters.items()}
    cuda = accelerators.Accelerator(name="cuda", parameters={**options, **_PROVIDER_OPTIONS})
    served.CopyFrom(accelerators(gpu_execution_accelerator=[cuda]))


def on_cpu(configs: Configs) -> None:
    """Have the encoder compute on the CPU though there is a GPU."""
    for group in configs.encoder.instance_group:
        group.kind = group.KIND_CPU


def _set_batch_sizes(configs: Configs, setting: Setting) -> None:
    for config in configs:
        before, config.max_batch_size = config.max_batch_size, setting.max_batch_size
        for warmup in config.model_warmup:  # a full batch stays one, and Triton loads no model with a larger one
            full = warmup.batch_size == before
            warmup.batch_size = setting.max_batch_size if full else min(setting.max_batch_size, warmup.batch_size)


def _instance_count(config: Any) -> int:
    return max([1, *(int(group.count) for group in config.instance_group)])


def _set_instances(config: Any, count: int) -> None:
    if not config.instance_group:
        config.instance_group.add()
    for group in config.instance_group:
        group.count = count


def _bounds(configs: Configs) -> str:
    policy = configs.tokenizer.dynamic_batching.default_queue_policy
    bounded = policy.max_queue_size or policy.default_timeout_microseconds or policy.allow_timeout_override
    return BOUNDED if bounded else UNBOUNDED


def _set_bounds(configs: Configs, setting: Setting) -> None:
    if setting.queue_bounds == UNBOUNDED:
        clear_queue_bounds(configs)


def _set_scheduling(configs: Configs, setting: Setting) -> None:
    configs.encoder.parameters.pop(SCHEDULING, None)
    if setting.scheduling == CONTINUOUS:
        _set_parameter(configs.encoder, SCHEDULING, CONTINUOUS)


def _set_delay(configs: Configs, setting: Setting) -> None:
    configs.encoder.dynamic_batching.max_queue_delay_microseconds = setting.queue_delay_us


def _number(config: Any, key: str) -> int:
    """A parameter; 0 where it is not there or no number."""
    value = config.parameters[key].string_value if key in config.parameters else ""
    return int(value) if value.isdecimal() else 0


def _graph_tokens(configs: Configs) -> int:
    """Tokens of the largest shape of the CUDA graphs."""
    parameters = configs.encoder.parameters
    shapes = parameters[CUDA_GRAPH_SHAPES].string_value if CUDA_GRAPH_SHAPES in parameters else ""
    return max((math.prod(map(int, shape.split("x"))) for shape in filter(None, shapes.split(","))), default=0)


def _set_parameter(config: Any, key: str, value: str) -> None:
    config.parameters[key].string_value = value


# What stands in the configs: name of the field -> how it is read, and how a setting is written.
_STORED: dict[str, tuple[Callable[[Configs], Any], Callable[[Configs, Setting], None]]] = {
    "instances": (lambda c: _instance_count(c.encoder), lambda c, s: _set_instances(c.encoder, s.instances)),
    "threads": (
        lambda c: _number(c.encoder, THREADS.get(encoder_engine(c.encoder), "")),
        lambda c, s: _set_parameter(c.encoder, THREADS[encoder_engine(c.encoder)], str(s.threads)),
    ),
    "max_batch_size": (lambda c: c.encoder.max_batch_size, _set_batch_sizes),
    "queue_delay_us": (lambda c: c.encoder.dynamic_batching.max_queue_delay_microseconds, _set_delay),
    "queue_bounds": (_bounds, _set_bounds),
    "length_ladder": (
        lambda c: tuple(map(int, c.tokenizer.parameters[LENGTH_LADDER].string_value.split(","))),
        lambda c, s: _set_parameter(c.tokenizer, LENGTH_LADDER, ",".join(map(str, s.length_ladder))),
    ),
    "tokenizers": (lambda c: _instance_count(c.tokenizer), lambda c, s: _set_instances(c.tokenizer, s.tokenizers)),
    "micro_batch_tokens": (
        lambda c: _number(c.encoder, MICRO_BATCH_TOKENS),
        lambda c, s: _set_parameter(c.encoder, MICRO_BATCH_TOKENS, str(s.micro_batch_tokens)),
    ),
    "graph_tokens": (_graph_tokens, lambda c, s: _set_parameter(c.encoder, CUDA_GRAPH_SHAPES, s.graph_shapes)),
    "scheduling": (lambda c: CONTINUOUS if SCHEDULING in c.encoder.parameters else "executions", _set_scheduling),
}
