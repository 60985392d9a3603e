"""What must hold for every input."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_models import MAX_LENGTH
from transformers import AutoTokenizer

from triton_rerank import InvalidRequestError
from triton_rerank._plan import plan
from triton_rerank._ranking import activate, order
from triton_rerank._validate import check_request
from triton_rerank_server.backends.onnxruntime.engine import micro_batches
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

LOGITS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50).map(lambda v: np.array(v, np.float32))
LENGTHS = st.lists(st.integers(0, 5000), max_size=80)


@given(LENGTHS, st.integers(0, 100), st.integers(1, 20), st.integers(1, 10_000))
def test_a_plan_holds_each_document_once_within_the_limits(
    lengths: list[int], overhead: int, max_batch_size: int, max_request_bytes: int
) -> None:
    groups = plan(lengths, overhead=overhead, max_batch_size=max_batch_size, max_request_bytes=max_request_bytes)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= max_batch_size
        assert len(group) == 1 or sum(lengths[index] + overhead for index in group) <= max_request_bytes


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 4096))
def test_micro_batches_hold_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = np.array(lengths)
    batches = micro_batches(rows, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * rows[batch].max() <= budget


@given(LOGITS)
def test_an_order_is_a_permutation_that_never_rises_and_keeps_ties(logits: npt.NDArray[Any]) -> None:
    ranking = order(logits)
    assert sorted(ranking.tolist()) == list(range(len(logits)))
    for before, after in itertools.pairwise(ranking):
        assert logits[before] > logits[after] or (logits[before] == logits[after] and before < after)


@given(LOGITS)
def test_activation_never_turns_the_order_around(logits: npt.NDArray[Any]) -> None:
    scores = activate(logits, "sigmoid")[order(logits)]
    assert np.all(np.diff(scores) <= 0)
    assert np.all((scores >= 0) & (scores <= 1))


@given(st.lists(st.text(), max_size=10))
def test_every_unicode_text_survives_and_every_other_is_refused(documents: list[str]) -> None:
    try:
        request = check_request("q", documents)
    except InvalidRequestError:
        assert any("\ud800" <= character <= "\udfff" for text in documents for character in text)
    else:
        assert [encoded.decode() for encoded in request.encoded] == documents


@pytest.mark.parametrize("family", ["tiny-bert", "tiny-xlmr"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    documents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), min_size=1, max_size=4),
    max_length=st.integers(40, MAX_LENGTH),
)
def test_tokens_equal_transformers_for_any_text(
    checkpoints: dict[str, Path], family: str, query: str, documents: list[str], max_length: int
) -> None:
    peer = AutoTokenizer.from_pretrained(checkpoints[family])
    ours = PairTokenizer(
        checkpoints[family] / "tokenizer.json",
        max_length=MAX_LENGTH,
        length_ladder=(MAX_LENGTH,),
        pad_token_id=peer.pad_token_id,
    )
    limits = ours.limits(max_length)
    tensors = ours.encode(query, documents, limits)
    query_ids = peer(query, add_special_tokens=False)["input_ids"][: limits.max_query_tokens]
    for row, document in enumerate(documents):
        document_ids = peer(document, add_special_tokens=False)["input_ids"]
        theirs = peer.build_inputs_with_special_tokens(
            query_ids, document_ids[: max_length - len(query_ids) - ours.template.n_special]
        )
        count = int(tensors.token_count[row, 0])
        assert count <= max_length
        assert tensors.input_ids[row, :count].tolist() == theirs
        assert tensors.attention_mask[row].sum() == count
