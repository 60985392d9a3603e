"""The metrics and the bounds of the gate, and what the bundled pairs hold."""

from __future__ import annotations

import numpy as np
import pytest

from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity


def floats(*values: float) -> parity.Logits:
    return np.array(values, np.float32)


def report(**changes: float) -> parity.ParityReport:
    values = {
        "max_logit_difference": 0.0,
        "kendall_tau": 1.0,
        "top1_kept": 1.0,
        "clear_tau": 1.0,
        "clear_top1": 1.0,
        "top10_overlap": 1.0,
    }
    canary = parity.ParityQuery("q", ("a", "b"))
    return parity.ParityReport(pairs=4, worst=("a pair",), canary=canary, **(values | changes))  # type: ignore[arg-type]


def test_tau_is_1_for_the_same_order_and_minus_1_for_the_reverse() -> None:
    up = floats(1, 2, 3, 4)
    assert parity.kendall_tau(up, up * 7) == 1.0
    assert parity.kendall_tau(up, -up) == -1.0
    assert parity.kendall_tau(up, floats(2, 1, 3, 4)) == pytest.approx(4 / 6)


def test_pairs_that_the_reference_ties_do_not_count() -> None:
    assert parity.kendall_tau(floats(1, 1, 2), floats(5, 3, 9)) == 1.0


def test_pairs_no_further_apart_than_a_tie_do_not_count() -> None:
    expected, got = floats(0, 0.01, 1), floats(0.01, 0, 1)
    assert parity.kendall_tau(expected, got) == pytest.approx(1 / 3)
    assert parity.kendall_tau(expected, got, tie=0.05) == 1.0
    assert parity.kendall_tau(expected, floats(1, 0.5, 0), tie=0.05) == -1.0


def two_queries() -> list[parity.ParityQuery]:
    return [parity.ParityQuery("clear", ("a", "b", "c")), parity.ParityQuery("flat", ("a", "b", "c"))]


def test_documents_that_the_reference_hardly_tells_apart_may_swap_where_the_bounds_look() -> None:
    expected = [floats(0, 4, 3.95), floats(1, 1.01, 1.02)]  # the medians' 3 % are 0.06
    found = parity.compare(two_queries(), expected, [floats(0, 3.9, 4), floats(1.02, 1.01, 1)])
    assert found.kendall_tau == pytest.approx((1 / 3 - 1) / 2)
    assert found.top1_kept == 0.0
    assert found.clear_tau == found.clear_top1 == 1.0


def test_documents_that_the_reference_tells_apart_may_not() -> None:
    expected = [floats(0, 4, 3.8), floats(1, 1.01, 1.02)]
    found = parity.compare(two_queries(), expected, [floats(0, 3.9, 4), floats(1, 1.01, 1.02)])
    assert found.clear_tau == pytest.approx(1 / 3)
    assert found.clear_top1 == 0.5


def test_a_model_that_gives_every_document_one_logit_has_no_order_to_keep() -> None:
    dead = [floats(1, 1, 1)] * 2
    found = parity.compare(two_queries(), dead, dead)
    assert found.kendall_tau == found.clear_tau == 0.0
    assert found.misses(parity.BOUNDS["int8"])


def test_the_top_10_overlap_counts_those_of_the_reference() -> None:
    expected = np.arange(12, dtype=np.float32)
    got = expected.copy()
    assert parity.top10_overlap(expected, got) == 1.0
    got[[0, 11]] = got[[11, 0]]  # the best falls out of the ten, the worst comes in
    assert parity.top10_overlap(expected, got) == 0.9


def test_a_document_tied_with_the_tenth_is_as_good_as_the_tenth() -> None:
    expected = floats(*range(1, 11), 1, 0)  # numbers 0 and 10 share the tenth place
    assert parity.top10_overlap(expected, floats(0.5, *range(2, 11), 1, 0)) == 1.0


def test_compare_reports_each_figure_of_two_queries() -> None:
    queries = [
        parity.ParityQuery("short", ("a", "b", ""), extremes=1),
        parity.ParityQuery("long", tuple(str(n) for n in range(12))),
    ]
    expected = [floats(0.0, 2.0, 9.0), np.arange(12, dtype=np.float32)]
    got = [floats(0.5, 2.0, 9.0), expected[1][::-1].copy()]
    found = parity.compare(queries, expected, got)
    assert found.pairs == 15
    assert found.max_logit_difference == 11.0
    assert found.kendall_tau == found.clear_tau == 0.0  # 1 and −1
    assert found.top1_kept == found.clear_top1 == 0.5
    assert found.top10_overlap == pytest.approx(0.8)  # the second query only: the first has too few documents
    assert "'long' / '0'" in found.worst[0]
    assert found.canary == parity.ParityQuery("long", ("11", "0"))


def test_the_canary_is_never_an_extreme() -> None:
    query = parity.ParityQuery("q", ("a", "b", "made"), extremes=1)
    found = parity.compare([query], [floats(1, 2, 99)], [floats(1, 2, 99)])
    assert found.canary.documents == ("b", "a")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"max_logit_difference": 2e-4}, "largest logit difference is 0.0002, the bound is at most 0.0001"),
        ({"max_logit_difference": float("nan")}, "largest logit difference is nan"),
        ({"clear_tau": 0.5}, "Kendall's tau of clearly different documents is 0.5, the bound is at least 0.99"),
        ({"clear_tau": float("nan")}, "Kendall's tau of clearly different documents is nan"),
        ({"clear_top1": 0.95}, "share of queries that keep a best document is 0.95, the bound is at least 1"),
    ],
)
def test_a_bound_that_is_not_kept_is_named_with_the_worst_pairs(changes: dict[str, float], fragment: str) -> None:
    with pytest.raises(ExportError) as error:
        parity.check(report(**changes), "fp32")
    assert fragment in str(error.value)
    assert "a pair" in str(error.value)


def test_each_precision_has_bounds_of_its_own() -> None:
    moved, swapped = report(max_logit_difference=5e-3), report(max_logit_difference=0.3, clear_tau=0.98)
    assert moved.misses(parity.BOUNDS["fp32"]) and not moved.misses(parity.BOUNDS["fp16"])
    assert swapped.misses(parity.BOUNDS["fp16"]) and not swapped.misses(parity.BOUNDS["int8"])
    assert report(clear_tau=0.96).misses(parity.BOUNDS["int8"])
    assert report(clear_top1=0.95).misses(parity.BOUNDS["int8"])  # one query of twenty


def test_the_parity_set_has_what_real_traffic_has() -> None:
    queries = parity.load_parity_set()
    documents = [document for query in queries for document in query.documents]
    assert 240 <= len(documents) <= 300
    assert len(queries) >= 20
    assert all(len(query.documents) - query.extremes >= 12 for query in queries)  # ten best of more than ten
    assert all("" in query.documents for query in queries)
    assert all(len(set(query.documents)) < len(query.documents) for query in queries)  # repeated documents
    assert any(document and not document.strip() for document in documents)  # white space only
    assert sum(len(document.split()) > 1024 for document in documents) == 4  # dear: as long as 200 short ones
    assert sum(300 < len(document.split()) < 512 for document in documents) >= 3
    assert max(len(query.query.split()) for query in queries) > 512


@pytest.mark.parametrize(
    "text", ["東京", "睡眠", "الماء", "борщ", "इंद्रधनुष", "서울", "🍣", "SELECT", "34.99 €", "\u0000"]
)
def test_the_parity_set_has_many_scripts_and_symbols(text: str) -> None:
    assert any(text in document for query in parity.load_parity_set() for document in query.documents)


def test_the_overlong_query_passes_the_longest_pair_that_a_model_takes() -> None:
    query = parity.overlong_query(8192)
    assert len(query.query.split()) > 8192
    assert len(query.documents[0].split()) > 8192
