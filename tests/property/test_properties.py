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
from triton_rerank.core.ranking import activate, order, rank
from triton_rerank.core.scorer import Scored
from triton_rerank.core.validate import check_request
from triton_rerank.triton.plan import BYTES_PER_TOKEN, REQUEST_COST_TOKENS, Limits, plan
from triton_rerank.triton.wire import PairScores, merge
from triton_rerank_server.backends.encoder.engine import micro_batches
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

LOGITS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50).map(lambda v: np.array(v, np.float32))
LENGTHS = st.lists(st.integers(0, 5000), max_size=80)
LADDERS = st.lists(st.integers(1, 600), unique=True, max_size=8).map(lambda rungs: tuple(sorted(rungs)))


@given(LENGTHS, st.integers(0, 100), st.integers(1, 20), st.integers(1, 10_000), LADDERS)
def test_a_plan_holds_each_document_once_within_the_limits(
    lengths: list[int], overhead: int, max_batch_size: int, max_request_bytes: int, ladder: tuple[int, ...]
) -> None:
    groups = plan(lengths, overhead=overhead, limits=Limits(max_batch_size, max_request_bytes, ladder))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= max_batch_size
        assert len(group) == 1 or sum(lengths[index] + overhead for index in group) <= max_request_bytes


def padded(sizes: list[int], ladder: tuple[int, ...]) -> int:
    """Padded tokens of one request, as the plan estimates them."""
    tokens = max(sizes) / BYTES_PER_TOKEN
    return len(sizes) * next((rung for rung in ladder if rung >= tokens), ladder[-1])


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=7), LADDERS.filter(bool))
def test_no_other_split_by_length_has_less_padding_and_requests_together(
    lengths: list[int], ladder: tuple[int, ...]
) -> None:
    groups = plan(lengths, overhead=0, limits=Limits(1000, 10**9, ladder))
    cost = sum(padded([lengths[i] for i in group], ladder) + REQUEST_COST_TOKENS for group in groups)
    ascending = sorted(lengths)
    cuts = itertools.product([False, True], repeat=len(lengths) - 1)  # every way to cut the ascending list
    for cut in cuts:
        edges = [0, *(i for i, here in enumerate(cut, 1) if here), len(lengths)]
        parts = [ascending[a:b] for a, b in itertools.pairwise(edges)]
        assert cost <= sum(padded(part, ladder) + REQUEST_COST_TOKENS for part in parts)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 4096), st.integers(0, 4096))
def test_micro_batches_hold_each_row_once_within_the_budget_and_their_padding_within_its_bound(
    lengths: list[int], budget: int, batch_cost: int
) -> None:
    rows = np.array(lengths)
    batches = micro_batches(rows, budget, batch_cost)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * rows[batch].max() <= budget
        assert len(batch) * rows[batch].max() - rows[batch].sum() <= batch_cost


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
        assert [request.distinct[place].decode() for place in request.places] == documents
        assert len(set(request.distinct)) == len(request.distinct)


def judged(logits: npt.NDArray[Any], tiers: npt.NDArray[Any] | None = None) -> Scored:
    wide = logits.astype(np.float64)
    return Scored("m", "s", logits, wide, np.zeros(len(logits), np.bool_), 0, tiers=tiers)


@given(LOGITS, st.data())
def test_duplicates_share_a_logit_and_top_k_is_a_prefix(logits: npt.NDArray[Any], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=60))
    documents = [object() for _ in places]
    everything = rank(documents, places, judged(logits), top_k=len(places), min_score=None)
    assert sorted(ranked.index for ranked in everything) == list(range(len(places)))
    assert all(ranked.document is documents[ranked.index] for ranked in everything)
    assert all(ranked.logit == float(logits[places[ranked.index]]) for ranked in everything)
    assert [ranked.index for ranked in everything] == order(logits[places]).tolist()
    top_k = data.draw(st.integers(1, len(places)))
    assert rank(documents, places, judged(logits), top_k=top_k, min_score=None) == everything[:top_k]


@given(LOGITS, st.floats(-100, 100))
def test_min_score_keeps_what_reaches_it_in_the_same_order(logits: npt.NDArray[Any], min_score: float) -> None:
    places = list(range(len(logits)))
    everything = rank(places, places, judged(logits), top_k=len(places), min_score=None)
    kept = rank(places, places, judged(logits), top_k=len(places), min_score=min_score)
    assert kept == tuple(ranked for ranked in everything if ranked.score is not None and ranked.score >= min_score)


@given(LOGITS, st.data())
def test_a_lower_tier_goes_first_and_only_the_first_has_scores(logits: npt.NDArray[Any], data: st.DataObject) -> None:
    n = len(logits)
    tiers = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.intp)
    ranking = rank(list(range(n)), list(range(n)), judged(logits, tiers), top_k=n, min_score=None)
    keys = [(int(tiers[ranked.index]), -float(logits[ranked.index]), ranked.index) for ranked in ranking]
    assert keys == sorted(keys)
    assert all((ranked.score is None) == (tiers[ranked.index] == 1) for ranked in ranking)


@given(LENGTHS.filter(bool), st.integers(1, 20), LADDERS, st.data())
def test_a_split_list_merges_to_what_one_request_would_give(
    lengths: list[int], max_batch_size: int, ladder: tuple[int, ...], data: st.DataObject
) -> None:
    n = len(lengths)
    logits = np.array(data.draw(st.lists(st.floats(-9, 9, width=32), min_size=n, max_size=n)), np.float32)
    whole = PairScores(logits, np.arange(n, dtype=np.int64), logits > 0)
    groups = plan(lengths, overhead=3, limits=Limits(max_batch_size, 10_000, ladder))
    rows = [np.asarray(group, np.intp) for group in groups]
    parts = [PairScores(whole.logits[r], whole.token_count[r], whole.truncated[r]) for r in rows]
    merged = merge(list(zip(groups, parts, strict=True)), n)
    assert np.array_equal(merged.logits, whole.logits)
    assert np.array_equal(merged.token_count, whole.token_count)
    assert np.array_equal(merged.truncated, whole.truncated)


@pytest.mark.parametrize("family", ["tiny-bert", "tiny-xlmr"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    tensors = ours.encode(query, documents, ours.limits(max_length))
    for row, document in enumerate(documents):
        (theirs,) = peer(
            [query], [document], truncation="longest_first", max_length=max_length, split_special_tokens=True
        )["input_ids"]
        count = int(tensors.token_count[row, 0])
        assert count <= max_length
        assert tensors.input_ids[row, :count].tolist() == theirs
        assert tensors.attention_mask[row].sum() == count
