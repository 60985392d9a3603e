"""How a model is served: what can be set without computing its graph again, and what an installed version keeps."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from triton_rerank.contract import ENCODER_BACKEND, THREADS
from triton_rerank_export.arguments import flag
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.triton_config import EXECUTION_TOKENS, Scheduling, ServedModel

_LEAST_MICRO_BATCH = 64
_MAX_INT32 = 2**31 - 1
_BOUNDS = {  # least and most
    "instances": (1, 64),
    "threads": (0, 1024),
    "tokenizers": (1, 64),
    "micro_batch_tokens": (0, 4_194_304),
    "max_batch_size": (1, 65_536),
    "queue_delay_us": (0, 10_000_000),
    "max_queue_size": (0, _MAX_INT32),
    "queue_timeout_us": (0, 3_600_000_000),
}
_IN_THE_PLAN = ("length_ladder", "max_batch_size")  # of TensorRT, which is built for them
_SHAPES = re.compile(r"([1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*)?")


@dataclass(frozen=True)
class Settings:
    """What `make perf` tunes. None keeps what the version beside it has, or the default where there is none."""

    instances: Annotated[int | None, "instances of the encoder"] = None
    threads: Annotated[int | None, "threads of an instance; 0: the engine's choice"] = None
    tokenizers: Annotated[int | None, "instances of the tokenizer"] = None
    length_ladder: Annotated[
        tuple[int, ...] | None, "padded lengths below the longest pair's, such as 64,128,512; '': the usual ones"
    ] = None
    micro_batch_tokens: Annotated[
        int | None, "padded tokens computed at once, by our encoder over ONNX Runtime; 0: its choice"
    ] = None
    cuda_graph_shapes: Annotated[str | None, "rows x width of CUDA graphs, such as 1x32,8x128; '': none"] = None
    max_batch_size: Annotated[int | None, "pairs in a request and in an execution"] = None
    queue_delay_us: Annotated[int | None, "µs that requests may wait for others in front of the encoder"] = None
    max_queue_size: Annotated[int | None, "requests that may wait in front of a step; 0: no bound"] = None
    queue_timeout_us: Annotated[int | None, "µs until a waiting request is refused; 0: never"] = None
    scheduling: Annotated[
        Scheduling | None,
        "continuous: short requests are not kept waiting by long ones; executions: as Triton merges them",
    ] = None

    def __post_init__(self) -> None:
        """Refuse what no model could be served with.

        Raises:
            ExportError: names the option, its value and its bounds.
        """
        for name, (least, most) in _BOUNDS.items():
            check_bounds(name, getattr(self, name), least, most)
        ladder = self.length_ladder or ()
        if list(ladder) != sorted({rung for rung in ladder if rung > 0}):
            raise ExportError(f"--length-ladder is {_text(ladder)}: it must be numbers above 0, each above the last")
        if self.scheduling not in (None, *get_args(Scheduling)):
            raise ExportError(f"--scheduling is {self.scheduling}: it must be {' or '.join(get_args(Scheduling))}")
        if 0 < (self.micro_batch_tokens or 0) < _LEAST_MICRO_BATCH:
            raise ExportError(
                f"--micro-batch-tokens is {self.micro_batch_tokens}: it must be 0, or {_LEAST_MICRO_BATCH} and more, "
                "since fewer compute every pair by itself"
            )
        if not _SHAPES.fullmatch(self.cuda_graph_shapes or ""):
            raise ExportError(
                f"--cuda-graph-shapes is {self.cuda_graph_shapes}: it must be rows x width, such as 1x32,8x128"
            )

    @classmethod
    def of(cls, model: ServedModel) -> Settings:
        """All settings of a model, none of them None."""
        return Settings(**{name: getattr(model, name) for name in SETTINGS})

    @property
    def given(self) -> dict[str, Any]:
        """Name -> value of those that are not None."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}

    def applied(self, model: ServedModel) -> ServedModel:
        """The model with these settings.

        Native backends compute a request in one piece, so there a batch of the longest pairs is bounded in tokens too.

        Raises:
            ExportError: a setting that this model's engine does not have, or a padded length beyond its longest pair.
        """
        model = dataclasses.replace(model, **self.given)
        if model.length_ladder and model.length_ladder[-1] > model.max_length:
            raise ExportError(
                f"--length-ladder is {_text(model.length_ladder)}: no pair of {model.name} has more than "
                f"{model.max_length} tokens (--max-length)"
            )
        ours, engine = model.backend == ENCODER_BACKEND, model.engine
        if model.threads and engine not in THREADS:
            raise ExportError(f"--threads is {model.threads}: {engine} computes on a GPU and has none; leave it out")
        for name in ("micro_batch_tokens", "cuda_graph_shapes"):
            if getattr(model, name) and not (ours and engine == "onnxruntime"):
                raise ExportError(
                    f"{flag(name)} is {getattr(model, name)}: only our encoder over ONNX Runtime reads it, and "
                    f"{model.name} is served by {'Triton itself' if not ours else engine}; leave it out"
                )
        for cannot, why in (
            (model.graph == "flat", "a flat graph's tensors have no such shapes"),
            (model.precision == "int8", "int8 is computed on CPUs, which have none"),
        ):
            if model.cuda_graph_shapes and cannot:
                raise ExportError(f"--cuda-graph-shapes is {model.cuda_graph_shapes}: {why}; leave it out")
        if ours:
            return model
        if self.scheduling == "continuous":
            raise ExportError(
                f"--scheduling is continuous: only our encoder does that, and {model.name} is served by Triton itself; "
                "leave it out"
            )
        most = max(1, EXECUTION_TOKENS // model.max_length)
        return dataclasses.replace(model, max_batch_size=min(model.max_batch_size, most), scheduling="executions")


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


def check_bounds(name: str, value: int | None, least: int, most: int) -> None:
    """Raise ExportError, with the option of the field, for a number out of its bounds."""
    if value is not None and not least <= value <= most:
        raise ExportError(f"{flag(name)} is {value}: it must be from {least} to {most}")


def shared_by_versions(model: ServedModel) -> set[str]:
    """Settings that versions of this model must share; all others are the active version's."""
    return set(_IN_THE_PLAN) if model.engine == "tensorrt" else set()


def changes(old: ServedModel, new: ServedModel) -> list[str]:
    """A sentence each for the settings that differ."""
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in SETTINGS}
    return [f"{name} {_text(was)} → {_text(is_now)}" for name, (was, is_now) in pairs.items() if was != is_now]


def listed(model: ServedModel, *, changed: bool = False) -> str:
    """All settings of a model, or those that are not the default, for people."""
    given = Settings.of(model).given.items()
    return ", ".join(
        f"{name} {_text(value)}" for name, value in given if not changed or value != getattr(ServedModel, name)
    )


def _text(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "default"
