"""What fine-tuning takes and what it reports: data only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from triton_rerank_export.errors import ExportError


@dataclass(frozen=True)
class FinetuneConfig:
    """The knobs of fine-tuning; the defaults suit a small BERT on a CPU.

    Raises:
        ExportError: a value out of its range.
    """

    group_size: Annotated[int, "documents a query in a step, the positive among them"] = 8
    groups_per_step: Annotated[int, "queries a step"] = 4
    epochs: Annotated[int, "passes over the data, where --minutes does not end it before"] = 1
    steps: Annotated[int | None, "updates in all; reproducible, unlike --minutes"] = None
    minutes: Annotated[float | None, "time budget of the training loop"] = None
    max_length: Annotated[int, "tokens a pair; a longer document is cut"] = 160
    max_query_tokens: Annotated[int, "tokens kept of a query, at most 16 below --max-length"] = 96
    learning_rate: Annotated[float, "of the encoder, at its highest, soon after the start; it falls to zero"] = 1e-4
    head_learning_rate: Annotated[float, "of the classifier, likewise"] = 1e-3
    weight_decay: Annotated[float, "AdamW's; 0 keeps the difference of low rank, which a delta needs"] = 0.0
    info_nce_weight: Annotated[float, "of InfoNCE beside margin-MSE; 1 where there is no teacher"] = 0.2
    clip_norm: Annotated[float, "largest norm of the gradient"] = 1.0
    freeze_word_embeddings: Annotated[bool, "leave the word embeddings as they are"] = True
    held_out_fraction: Annotated[float, "share of the queries that is only measured; 0 for none"] = 0.05
    held_out_limit: Annotated[int, "most queries held out"] = 200
    evaluations: Annotated[int, "measurements in between, for the curve; not counted in --minutes"] = 3
    seed: Annotated[int, "of everything random"] = 0
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], "of the matrix products; auto: bf16 where the machine is fast at it"
    ] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda"], "where to train; auto: CUDA where there is one"] = "auto"

    def __post_init__(self) -> None:
        least = {"group_size": 2, "groups_per_step": 1, "epochs": 1, "held_out_limit": 1, "seed": 0, "steps": 1}
        least |= {"evaluations": 0, "max_query_tokens": 1, "max_length": self.max_query_tokens + 16}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ExportError(f"{name} is {value}; it must be at least {bound}")
        for name in ("minutes", "learning_rate", "head_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ExportError(f"{name} is {value}; it must be above 0")
        if not 0 <= self.held_out_fraction < 1:
            raise ExportError(f"held_out_fraction is {self.held_out_fraction}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class Quality:
    """How well a model orders held-out groups: means over them, 0 to 1, higher is better.

    ``ndcg_at_10`` takes one positive as the only relevant document; ``pairwise_accuracy`` is the share of pairs of
    documents in the teacher's order (without a teacher: positive above negative).
    """

    ndcg_at_10: float
    pairwise_accuracy: float
    n_groups: int


@dataclass(frozen=True)
class FinetuneReport:
    """What a run did; ``before`` and ``after`` are None where nothing was held out.

    Attributes:
        steps: updates.
        pairs: that they were computed of.
        duration_s: seconds of training, without the measurements.
        before: quality of the checkpoint that was given.
        after: quality of what was written.
        losses: step and mean loss since the one before, at most 200 of them; the last is that of the last step.
        measured: step and quality, from 0 to the last step; empty where nothing was held out.
    """

    steps: int
    pairs: int
    duration_s: float
    before: Quality | None
    after: Quality | None
    losses: tuple[tuple[int, float], ...] = ()
    measured: tuple[tuple[int, Quality], ...] = ()
