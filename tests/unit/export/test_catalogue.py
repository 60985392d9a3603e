from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from triton_rerank_export.checkpoint.catalogue import CATALOGUE, CatalogueEntry, find
from triton_rerank_export.checkpoint.facts import read_facts
from triton_rerank_export.checkpoint.published import BF16_TOLERANCE, FP16_TOLERANCE, FP32_TOLERANCE

HUB_MODELS = {
    "ms-marco-minilm-l6-v2": ("cross-encoder/ms-marco-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2"),
    "ms-marco-minilm-l12-v2": ("cross-encoder/ms-marco-MiniLM-L12-v2", "cross-encoder/ms-marco-MiniLM-L-12-v2"),
    "ms-marco-minilm-l4-v2": ("cross-encoder/ms-marco-MiniLM-L4-v2", "cross-encoder/ms-marco-MiniLM-L-4-v2"),
    "ms-marco-minilm-l2-v2": ("cross-encoder/ms-marco-MiniLM-L2-v2", "cross-encoder/ms-marco-MiniLM-L-2-v2"),
    "ms-marco-tinybert-l2-v2": ("cross-encoder/ms-marco-TinyBERT-L2-v2", "cross-encoder/ms-marco-TinyBERT-L-2-v2"),
    "ms-marco-electra-base": ("cross-encoder/ms-marco-electra-base",),
    "gte-reranker-modernbert-base": ("Alibaba-NLP/gte-reranker-modernbert-base",),
    "granite-embedding-reranker-english-r2": ("ibm-granite/granite-embedding-reranker-english-r2",),
    **{
        f"ettin-reranker-{size}-v1": (f"cross-encoder/ettin-reranker-{size}-v1",)
        for size in ("17m", "32m", "68m", "150m", "400m", "1b")
    },
    "mxbai-rerank-xsmall-v1": ("mixedbread-ai/mxbai-rerank-xsmall-v1",),
    "mxbai-rerank-base-v1": ("mixedbread-ai/mxbai-rerank-base-v1",),
    "mxbai-rerank-large-v1": ("mixedbread-ai/mxbai-rerank-large-v1",),
    "mmarco-mminilmv2-l12-h384-v1": ("cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",),
    "bert-multilingual-passage-reranking-msmarco": ("amberoad/bert-multilingual-passage-reranking-msmarco",),
    "bce-reranker-base_v1": ("maidalun1020/bce-reranker-base_v1",),
    "bge-reranker-base": ("BAAI/bge-reranker-base",),
    "bge-reranker-large": ("BAAI/bge-reranker-large",),
    "bge-reranker-v2-m3": ("BAAI/bge-reranker-v2-m3",),
    "qwen3-reranker-0.6b": ("Qwen/Qwen3-Reranker-0.6B",),
    "qwen3-reranker-4b": ("Qwen/Qwen3-Reranker-4B",),
    "qwen3-reranker-8b": ("Qwen/Qwen3-Reranker-8B",),
    "mxbai-rerank-base-v2": ("mixedbread-ai/mxbai-rerank-base-v2",),
    "mxbai-rerank-large-v2": ("mixedbread-ai/mxbai-rerank-large-v2",),
    "zerank-2": ("zeroentropy/zerank-2-reranker", "zeroentropy/zerank-2"),
    "bge-reranker-v2-gemma": ("BAAI/bge-reranker-v2-gemma",),
}
ENTRIES = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))


@pytest.mark.parametrize("name", HUB_MODELS)
def test_a_model_is_found_by_its_name_and_by_its_ids_in_any_case(name: str) -> None:
    for spelling in (name, *HUB_MODELS[name]):
        for model in (spelling, spelling.lower(), spelling.upper()):
            assert find(model) is CATALOGUE[name]


@pytest.mark.parametrize("model", ["", "bge", "bge-reranker-base ", "acme/bge-reranker-base"])
def test_what_is_not_in_the_catalogue_is_not_found(model: str) -> None:
    assert find(model) is None


def test_no_two_models_share_a_name_or_an_id() -> None:
    entries = CATALOGUE.values()
    ids = [name.lower() for entry in entries for name in (entry.name, entry.source, *entry.older_ids)]
    assert len(ids) == len(set(ids))


@ENTRIES
def test_a_model_on_the_hub_is_pinned_to_a_commit(entry: CatalogueEntry) -> None:
    if entry.build is None:
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
        assert re.fullmatch(r"[\w-]+/[\w.-]+", entry.source)
        assert entry.name in HUB_MODELS
    else:
        assert entry.revision == ""


@ENTRIES
def test_every_fact_is_stated(entry: CatalogueEntry) -> None:
    optional = {"revision", "known_as", "older_ids", "build", "label"}
    assert all(getattr(entry, field.name) for field in fields(entry) if field.name not in optional)
    assert re.fullmatch(r"[\d.]+ M", entry.params)
    assert entry.max_length >= 512


def test_a_model_that_is_built_here_is_what_the_catalogue_says(checkpoints: dict[str, Path]) -> None:
    entry = CATALOGUE["minilm-l6-demo"]
    facts = read_facts(checkpoints[entry.name])
    assert (facts.architecture, facts.activation, facts.max_length) == (
        entry.architecture, entry.activation, entry.max_length,
    )  # fmt: skip


def test_the_published_scores_are_the_cards() -> None:
    scores = {name: [(s.logit, s.tolerance) for s in entry.scores] for name, entry in CATALOGUE.items() if entry.scores}
    assert scores == {
        "ms-marco-minilm-l6-v2": [(8.607138, FP32_TOLERANCE), (-4.320078, FP32_TOLERANCE)],
        "ms-marco-minilm-l12-v2": [(9.218911, FP32_TOLERANCE), (-4.0780287, FP32_TOLERANCE)],
        "ms-marco-minilm-l4-v2": [(logit, BF16_TOLERANCE) for logit in (-7.875, 9.0, 5.6875, 6.65625)],
        "ms-marco-minilm-l2-v2": [(logit, BF16_TOLERANCE) for logit in (-10.25, 9.8125, 7.9375, 8.3125)],
        "ms-marco-tinybert-l2-v2": [(logit, BF16_TOLERANCE) for logit in (-10.875, 7.0, 5.875, 5.6875)],
        "gte-reranker-modernbert-base": [
            (2.138258218765259, FP32_TOLERANCE), (2.4609625339508057, FP32_TOLERANCE),
            (-1.6775450706481934, FP32_TOLERANCE),
        ],
        "ettin-reranker-32m-v1": [(11.393298, FP16_TOLERANCE), (2.968891, FP16_TOLERANCE)],
        "mmarco-mminilmv2-l12-h384-v1": [(logit, BF16_TOLERANCE) for logit in (-3.28125, 10.1875, 3.4375, 7.46875)],
        "bge-reranker-base": [(6.15733337, FP32_TOLERANCE), (-3.65939403, FP32_TOLERANCE)],
        "bge-reranker-large": [
            (-1.5263671875, FP16_TOLERANCE), (-5.60546875, FP16_TOLERANCE), (5.76171875, FP16_TOLERANCE),
        ],
        "bge-reranker-v2-m3": [
            (-5.65234375, FP16_TOLERANCE), (-8.1875, FP16_TOLERANCE), (5.26171875, FP16_TOLERANCE),
        ],
        "qwen3-reranker-0.6b": [
            (-3.109297752380371, FP32_TOLERANCE), (7.120389938354492, FP32_TOLERANCE),
            (-0.3787546157836914, FP32_TOLERANCE), (3.541637420654297, FP32_TOLERANCE),
        ],
    }  # fmt: skip
    assert (FP32_TOLERANCE, FP16_TOLERANCE, BF16_TOLERANCE) == (0.01, 0.05, 0.1)


@ENTRIES
def test_published_scores_can_judge_an_order_too(entry: CatalogueEntry) -> None:
    """int8 is held to the order of a query's documents, so there have to be two of one query."""
    queries = [score.query for score in entry.scores]
    assert not queries or len(set(queries)) < len(queries)
