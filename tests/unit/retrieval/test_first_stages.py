"""BM25, dense and foreign first stages: what they find, how they are kept, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from support.candidates import ids

from triton_rerank import ConfigurationError, InferenceError, InvalidRequestError, InvalidResponseError
from triton_rerank_retrieval import (
    Candidate,
    Corpus,
    Embedder,
    Feedback,
    IndexFileError,
    Retriever,
    langchain,
    llama_index,
    of_callable,
)
from triton_rerank_retrieval.corpus import best_rows
from triton_rerank_retrieval.first_stages.bm25 import Bm25, Bm25Options
from triton_rerank_retrieval.first_stages.dense import Dense, Kind

DOCUMENTS = [
    {"id": "sort", "text": "Quicksort sorts an array around a pivot.", "year": 1961},
    {"id": "zip", "text": "gzip compresses a file so that it takes less room.", "year": 1992},
    {"id": "blank", "text": "  ", "year": 1992},
    {"id": "bzip", "text": "bzip2 compresses a file better than gzip.", "year": 1996},
]
Make = Callable[[list[Any]], Any]


def letters(texts: list[str]) -> np.ndarray[Any, Any]:
    """A bi-encoder of a kind: how often each letter stands in a text."""
    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)


def embedder(**more: Any) -> Embedder:
    return Embedder(letters, model="letters", **more)


def dense(documents: Any, kind: Kind = "flat") -> Dense:
    return Dense.build(documents, embedder(), kind=kind)


def load(first: Any, folder: Path) -> Any:
    """What was saved there by such a first stage."""
    return Bm25.load(folder) if isinstance(first, Bm25) else Dense.load(folder, embedder())


@pytest.fixture(params=["bm25", "flat", "hnsw"])
def build(request: pytest.FixtureRequest) -> Make:
    if request.param == "bm25":
        return Bm25.build
    return lambda documents: dense(documents, request.param)


def test_the_best_document_is_found_with_the_callers_object(build: Make) -> None:
    found = build(DOCUMENTS).search("compress a file", 2)
    assert set(ids(found)) == {"zip", "bzip"}
    assert found[0].document is DOCUMENTS[[one["id"] for one in DOCUMENTS].index(found[0].id)]
    assert found[0].score > found[1].score


def test_a_filter_holds_before_the_best_are_chosen(build: Make) -> None:
    first = build(DOCUMENTS)
    assert ids(first.search("compress a file", 1, {"year": 1996})) == ["bzip"]
    assert ids(first.search("compress a file", 1, lambda document: document["year"] > 1995)) == ["bzip"]
    assert first.search("compress a file", 5, {"year": 2000}) == []


def test_a_document_without_text_is_never_found(build: Make) -> None:
    assert "blank" not in ids(build(DOCUMENTS).search("compress a file", 100))


def test_k_above_the_corpus_gives_what_there_is(build: Make) -> None:
    assert 2 <= len(build(DOCUMENTS).search("compress a file", 10**6)) <= 3


@pytest.mark.parametrize("documents", [[], ["", " "]])
def test_an_empty_index_finds_nothing_and_can_be_kept(build: Make, documents: list[str], tmp_path: Path) -> None:
    first = build(documents)
    assert first.search("anything", 5) == []
    first.save(tmp_path / "index")
    assert load(first, tmp_path / "index").search("anything", 5) == []


@pytest.mark.parametrize(("query", "k"), [("", 1), ("q", 0), ("q", -3), ("q", True)])
def test_wrong_arguments_are_refused(build: Make, query: str, k: int) -> None:
    with pytest.raises(InvalidRequestError):
        build(DOCUMENTS).search(query, k)


def test_a_saved_index_finds_what_it_found(build: Make, tmp_path: Path) -> None:
    first = build(DOCUMENTS)
    first.save(tmp_path / "index")
    first.save(tmp_path / "index")  # again, over the old one
    again = load(first, tmp_path / "index")
    assert again.search("compress a file", 3) == first.search("compress a file", 3)
    assert [file.name for file in tmp_path.iterdir()] == ["index"]  # nothing half-written beside it


def test_a_broken_index_is_told_whichever_file_it_is(build: Make, tmp_path: Path) -> None:
    first = build(DOCUMENTS)
    first.save(tmp_path / "index")
    for file in sorted((tmp_path / "index").iterdir()):
        whole = file.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"<html>"):
            file.write_bytes(broken)
            with pytest.raises(IndexFileError, match="index"):
                type(first).load(
                    *((tmp_path / "index",) if isinstance(first, Bm25) else (tmp_path / "index", embedder()))
                )
        file.write_bytes(whole)


def test_what_is_no_index_is_neither_read_nor_replaced(build: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    first = build(DOCUMENTS)
    with pytest.raises(ConfigurationError, match="is no index, so it is not replaced"):
        first.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(IndexFileError, match="holds no index"):
        Bm25.load(tmp_path / "mine")


def test_an_interrupt_while_saving_leaves_the_old_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Bm25.build(DOCUMENTS[:2]).save(tmp_path / "index")

    def interrupted(corpus: Corpus, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Corpus, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Bm25.build(DOCUMENTS).save(tmp_path / "index")
    assert len(Bm25.load(tmp_path / "index").corpus) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_a_document_that_json_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the document x is a dict, which JSON cannot hold"):
        Bm25.build([{"id": "x", "text": "a text", "raw": b"bytes"}]).save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_another_kind_or_model_is_refused(tmp_path: Path) -> None:
    dense(DOCUMENTS).save(tmp_path / "index")
    with pytest.raises(IndexFileError, match="kind 'dense', not 'bm25'"):
        Bm25.load(tmp_path / "index")
    with pytest.raises(IndexFileError, match="made by the model letters, not by other"):
        Dense.load(tmp_path / "index", Embedder(letters, model="other"))


def test_an_embedding_of_another_dimension_is_refused(tmp_path: Path) -> None:
    dense(DOCUMENTS).save(tmp_path / "index")
    narrow = Embedder(lambda texts: letters(texts)[:, :5], model="letters")
    with pytest.raises(ConfigurationError, match="5 dimensions, the index has 26"):
        Dense.load(tmp_path / "index", narrow).search("query", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_refused(value: float) -> None:
    def embed(texts: list[str]) -> Any:
        vectors = letters(texts)
        vectors[-1, 0] = value
        return vectors

    with pytest.raises(InvalidResponseError, match="not finite for text 3 of 4"):
        Dense.build(DOCUMENTS, Embedder(embed, model="m"))
    with pytest.raises(InvalidResponseError, match="not finite"):
        Dense(Corpus.of(DOCUMENTS), dense(DOCUMENTS)._index, Embedder(embed, model="m"), "flat").search("q", 1)


@pytest.mark.parametrize("wrong", [[], [[1.0]], [[]] * 4, 3.0])
def test_vectors_of_a_wrong_shape_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidResponseError, match="shape"):
        Dense.build(DOCUMENTS, Embedder(lambda texts: wrong, model="m"))


def test_an_embedding_function_that_fails_is_told_by_its_model() -> None:
    def fails(texts: list[str]) -> Any:
        raise OSError("no route to host")

    with pytest.raises(InferenceError, match="m could not embed 1 texts: OSError: no route to host"):
        Embedder(fails, model="m").query("q")


def test_indexing_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked: list[str] = []

    def embed(texts: list[str]) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(texts)
        return letters(texts)

    cache = tmp_path / "embeddings.sqlite"
    with pytest.raises(KeyboardInterrupt):
        Dense.build(DOCUMENTS, Embedder(embed, model="m", cache=cache, batch_size=2))
    asked.append("another run")
    steps: list[tuple[int, int]] = []
    Dense.build(
        DOCUMENTS,
        Embedder(embed, model="m", cache=cache, batch_size=2),
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert asked == [*(one["text"] for one in DOCUMENTS[:2]), "another run", *(one["text"] for one in DOCUMENTS[2:])]
    assert steps == [(2, 4), (4, 4)]


def test_embeddings_of_one_model_are_not_used_for_another(tmp_path: Path) -> None:
    cache = tmp_path / "embeddings.sqlite"
    (one,) = Embedder(letters, model="one", cache=cache).documents(["abc"])
    (two,) = Embedder(lambda texts: letters(texts)[:, ::-1], model="two", cache=cache).documents(["abc"])
    assert not np.array_equal(one, two)
    (again,) = Embedder(lambda texts: pytest.fail("asked again"), model="one", cache=cache).documents(["abc"])
    assert np.array_equal(one, again)


def test_a_cache_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"half of something" * 100)
    with pytest.raises(ConfigurationError, match="no cache of embeddings"):
        Embedder(letters, model="m", cache=tmp_path / "cache")


def test_a_document_without_text_key_and_ids_that_stand_twice_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="document 1 has no text: text is NoneType"):
        Corpus.of(["fine", {"id": "x", "body": "elsewhere"}])
    with pytest.raises(InvalidRequestError, match="6 ids stand twice, such as '0', '1', '2', '3', '4':"):
        Corpus.of([{"id": place % 6, "text": "t"} for place in range(12)])


def test_texts_and_ids_may_stand_anywhere() -> None:
    corpus = Corpus.of([{"body": "b", "key": 7}], text_key=lambda it: it["body"], id_key="key")
    assert (corpus.texts, corpus.ids) == (("b",), ("7",))


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 40))
def test_the_best_rows_are_those_of_a_stable_sort(scores: list[int], k: int) -> None:
    array = np.array(scores, float)
    assert best_rows(array, k).tolist() == np.argsort(-array, kind="stable")[:k].tolist()


def test_hnsw_finds_what_flat_finds_on_a_small_corpus() -> None:
    words = [f"{a}{b} {b}{c}" for a in "abcde" for b in "fghij" for c in "klmno"]
    flat, hnsw = dense(words), dense(words, "hnsw")
    exact = [one.score for one in flat.search("af fk", 5)]  # letters in another order have the same score
    assert [one.score for one in hnsw.search("af fk", 5)] == pytest.approx(exact)


def test_a_langchain_retriever_is_a_first_stage() -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(id=name, page_content=f"text {name}") for name in ("a", "b", "c")])
    first: Retriever = langchain(store.as_retriever(search_kwargs={"k": 2}))
    found = first.search("text b", 5)
    assert found[0].id == "b"
    assert isinstance(found[0].document, Document)
    assert len(found) == 2
    with pytest.raises(ConfigurationError, match="has no invoke"):
        langchain(store)


def test_a_llama_index_retriever_is_a_first_stage() -> None:
    class Fixed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=TextNode(id_=name, text=query_bundle.query_str), score=0.5) for name in "aab"]

    found = llama_index(Fixed()).search("the query", 5)
    assert [(one.id, one.text, one.score) for one in found] == [("a", "the query", 0.5), ("b", "the query", 0.5)]


def test_a_callable_may_give_documents_or_pairs() -> None:
    first = of_callable(lambda query, k: [("one", 2.0), ("two", 1.0), ("one", 0.5)][:k])
    assert [(one.text, one.score) for one in first.search("q", 3)] == [("one", 2.0), ("two", 1.0)]
    with pytest.raises(InvalidResponseError, match="without a text"):
        of_callable(lambda query, k: [{"id": 1}]).search("q", 1)


def test_bm25_saves_a_manifest_that_people_can_read(tmp_path: Path) -> None:
    Bm25.build(DOCUMENTS).save(tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["documents"], manifest["options"]["k1"]) == ("bm25", 4, 1.2)


@given(
    texts=st.lists(st.text("abc ", max_size=12), min_size=1, max_size=8),
    query=st.text("abc ", min_size=1, max_size=8).filter(str.strip),
    n_best=st.integers(0, 8),
)
def test_feedback_adds_the_heaviest_words_in_its_share(texts: list[str], query: str, n_best: int) -> None:
    plain = Bm25.build(texts, options=Bm25Options(stop_words="", stemmer=""))
    best = [str(place) for place in range(min(n_best, len(texts)))]
    feedback = Feedback(words=2, weight=0.25)
    candidates = [Candidate(id, texts[int(id)], texts[int(id)]) for id in best]
    found = plain.widened(query, candidates, feedback).scores_of(query, [str(place) for place in range(len(texts))])
    words = re.findall(r"\b\w\w+\b", query)
    known = [word for word in words if any(word in text.split() for text in texts)]
    mean = {
        word: sum(plain.scores(word)[int(id)] for id in best)
        for word in dict.fromkeys(w for id in best for w in re.findall(r"\b\w\w+\b", texts[int(id)]))
    }
    added = dict(sorted(mean.items(), key=lambda pair: -pair[1])[:2])
    share = 0.25 * max(len(known), 1) / (sum(added.values()) or 1)
    expected = 0.75 * plain.scores(query) + sum(share * mean[word] * plain.scores(word) for word in added)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4, atol=1e-6)


def test_feedback_reads_a_document_that_is_not_in_the_index() -> None:
    """Its words weigh what they weigh on average where they stand; words that no document has bring nothing."""
    plain = Bm25.build(["green apple", "red apple apple", "green pear"], options=Bm25Options(stop_words="", stemmer=""))
    foreign = Candidate("elsewhere", "apple quince", "apple quince")
    found = plain.widened("pear", [foreign], Feedback(weight=0.25)).scores_of("pear", ["0", "1", "2"])
    expected = 0.75 * plain.scores("pear") + 0.25 * plain.scores("apple")
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)
    both = [foreign, Candidate("0", "other words", None)]
    found = plain.widened("pear", both, Feedback(words=1)).scores_of("pear", ["0", "1", "2"])
    expected = 0.7 * plain.scores("pear") + 0.3 * plain.scores("apple")
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-6)
