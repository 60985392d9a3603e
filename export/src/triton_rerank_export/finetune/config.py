"""What fine-tuning takes and what it reports: data only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from triton_rerank_export.errors import ExportError


@dataclass(frozen=True)
class FinetuneConfig:
    """The knobs of fine-tuning; the defaults suit a small BERT on a CPU.

    Attributes:
        group_size: documents a query in one step, the positive included; at least 2.
        groups_per_step: queries a step; ``group_size * groups_per_step`` pairs are behind each update.
        epochs: passes over the training groups.
        steps: updates; None means as many as ``epochs`` asks for.
        minutes: wall-clock budget of the training loop; the learning rate has fallen to zero when it is spent, so
            the result depends on the machine's speed. None means no budget.
        max_length: tokens a pair, special tokens included; a longer document is cut.
        max_query_tokens: tokens kept of a query, so that the document has room; at most ``max_length - 16``.
        learning_rate: of the encoder, at its highest; it rises over the first 5 % and then falls linearly to zero.
        head_learning_rate: of the classifier, likewise.
        weight_decay: AdamW's; 0 keeps the difference to the start of low rank, which a delta needs.
        info_nce_weight: weight of InfoNCE beside margin-MSE; without a teacher InfoNCE stands alone at weight 1.
        clip_norm: largest norm of the gradient.
        freeze_word_embeddings: leave the word embeddings as they are.
        held_out_fraction: share of the queries that is measured and never trained on; 0 for none.
        held_out_limit: most queries held out.
        evaluations: measurements of the held-out queries in between, at equal shares of the run, for the curve; they
            take no time of ``minutes`` and change nothing of the result.
        seed: of data order, sampling, split and new parameters.
        precision: ``auto`` is bf16 where the machine is fast at it, else fp32; weights are fp32 always.
        device: ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ExportError: a value out of its range.
    """

    group_size: int = 8
    groups_per_step: int = 4
    epochs: int = 1
    steps: int | None = None
    minutes: float | None = None
    max_length: int = 160
    max_query_tokens: int = 96
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    info_nce_weight: float = 0.2
    clip_norm: float = 1.0
    freeze_word_embeddings: bool = True
    held_out_fraction: float = 0.05
    held_out_limit: int = 200
    evaluations: int = 3
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

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
