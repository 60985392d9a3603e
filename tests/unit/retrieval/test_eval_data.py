"""Collections in every form; bad rows are named with their line, ids that do not match are listed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.toy_collection import QRELS, write_collection

from triton_rerank import ConfigurationError, InvalidRequestError
from triton_rerank_retrieval.eval.data import load_collection, read_run
from triton_rerank_retrieval.eval.measures import evaluate, means
from triton_rerank_retrieval.first_stages.bm25 import Bm25


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "toy")


def test_a_beir_folder_is_read(folder: Path) -> None:
    toy = load_collection(folder)
    assert (toy.name, len(toy.corpus), list(toy.queries), toy.n_queries) == ("toy", 6, ["q1", "q2", "q4", "q5"], 5)
    assert toy.corpus.texts[0].startswith("Sorting Quicksort")
    assert toy.corpus.texts[2] == "Time sharing"
    assert toy.qrels["q2"] == {"d1": 1, "d6": 0}


@pytest.mark.parametrize("name", ["qrels.trec", "qrels.txt", "qrels/test.tsv"])
def test_qrels_may_be_trecs_or_stand_where_beir_puts_them(name: str, folder: Path) -> None:
    expected = load_collection(folder).qrels
    (folder / "qrels.tsv").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    lines = [f"{query} 0 {document} {grade}" for query, document, grade in QRELS]
    if name.endswith(".tsv"):
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    (folder / name).write_text("\n".join(lines))
    assert load_collection(folder).qrels == expected


def test_bad_rows_are_left_out_and_named_with_their_line(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "x"}\nno json\n[1]\n')
    with (folder / "qrels.tsv").open("a") as file:
        file.write("q1\td1\tmaybe\n")
    toy = load_collection(folder)
    assert len(toy.corpus) == 6
    assert [row.partition("toy/")[2][:21] for row in toy.bad_rows] == [
        "corpus.jsonl, line 7:", "corpus.jsonl, line 8:", "corpus.jsonl, line 9:", "qrels.tsv, line 8: is"
    ]  # fmt: skip


def test_a_file_without_a_good_row_is_an_error(folder: Path) -> None:
    (folder / "queries.jsonl").write_text('{"id": "q1"}\n')
    with pytest.raises(InvalidRequestError, match="no row is of the form"):
        load_collection(folder)


def test_ids_that_do_not_match_are_an_error_that_lists_five(folder: Path) -> None:
    with (folder / "qrels.tsv").open("a") as file:
        file.writelines(f"q1\tmissing{number}\t1\n" for number in range(7))
    with pytest.raises(InvalidRequestError, match=r"7 document ids .* 'missing0'.*'missing4'; the files"):
        load_collection(folder)


def test_ids_that_stand_twice_are_an_error(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d1", "text": "again"}) + "\n")
    with pytest.raises(InvalidRequestError, match="1 ids stand twice, such as 'd1'"):
        load_collection(folder)


def test_nothing_relevant_is_an_error(folder: Path) -> None:
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t0\n")
    with pytest.raises(InvalidRequestError, match="nothing to measure"):
        load_collection(folder)


def test_data_that_is_absent_says_where_it_looked_and_in_which_form_it_must_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"looked for .*absent.*(?s:.*)corpus\.jsonl.*queries\.jsonl"):
        load_collection(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match=r"looked for corpus\.jsonl, queries\.jsonl, qrels\.tsv there"):
        load_collection(tmp_path / "empty")


def test_triples_are_a_collection_whose_texts_are_the_corpus(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"query": "one", "positives": ["a", "b"], "negatives": ["c"]},
        {"query": "two", "positives": []},
        {"query": "three", "positives": ["c"]},
        {"query": "four", "positives": "text"},
    ]
    path = tmp_path / "triples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    triples = load_collection(path)
    assert triples.corpus.texts == ("a", "b", "c")
    assert list(triples.queries.values()) == ["one", "three"]
    assert [sum(judged.values()) for judged in triples.qrels.values()] == [2, 1]
    assert len(triples.bad_rows) == 2


def test_a_run_file_with_ties_is_read_by_score_rank_and_line(folder: Path, tmp_path: Path) -> None:
    lines = ["q1 Q0 d5 2 1.5 tag", "q1 Q0 d2 1 1.5 tag", "q1 Q0 d1 9 1.5 tag", "q1 Q0 d4 9 1.5 tag", "q3 Q0 d1 1 9 tag"]
    (tmp_path / "run.trec").write_text("\n".join(lines))
    run = read_run(tmp_path / "run.trec", load_collection(folder))
    assert {query: [one.id for one in found] for query, found in run.items()} == {"q1": ["d2", "d5", "d1", "d4"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [("q1 d1", "line 1"), ("q1 Q0 zzz 1 1 t", "1 document ids"), ("q9 Q0 d1 1 1 t", "none of the judged queries")],
)
def test_a_run_file_that_does_not_fit_is_refused(line: str, message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text(line)
    with pytest.raises(InvalidRequestError, match=message):
        read_run(tmp_path / "run.trec", load_collection(folder))


def test_ir_datasets_and_the_hub_are_read_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(**fields: str) -> SimpleNamespace:
        return SimpleNamespace(**fields, default_text=lambda: fields["text"])

    dataset = SimpleNamespace(
        docs_iter=lambda: [text(doc_id="d", text="a document")],
        queries_iter=lambda: [text(query_id="q", text="a query")],
        qrels_iter=lambda: [SimpleNamespace(query_id="q", doc_id="d", relevance=1)],
    )
    tables: dict[Any, list[dict[str, Any]]] = {
        ("org/toy", "corpus"): [{"_id": "d", "title": "a", "text": "document"}],
        ("org/toy", "queries"): [{"_id": "q", "text": "a query"}],
        ("org/toy-qrels", None): [{"query-id": "q", "corpus-id": "d", "score": 1}],
    }
    stand_ins: dict[str, Any] = {
        "ir_datasets": SimpleNamespace(load={"beir/toy/test": dataset}.__getitem__),
        "datasets": SimpleNamespace(load_dataset=lambda name, part=None, split="": tables[name, part]),
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(vars(members))
        monkeypatch.setitem(sys.modules, name, module)
    for source, name in (("ir_datasets:beir/toy/test", "beir-toy-test"), ("hf:org/toy", "toy")):
        read = load_collection(source)
        assert (read.name, read.corpus.texts, read.queries) == (name, ("a document",), {"q": "a query"})


def test_a_form_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(ConfigurationError, match="pip install ir_datasets"):
        load_collection("ir_datasets:beir/scifact/test")


DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "n_judged", "ndcg", "mrr"), [("cisi", 76, 0.3957, 0.6457), ("cacm", 52, 0.4995, 0.7472)]
)
def test_bm25_reproduces_the_yardstick(name: str, n_judged: int, ndcg: float, mrr: float) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"the collection {name} is not at ../shared/data, beside the project's folder")
    collection = load_collection(DATA / name)
    bm25 = Bm25.build(collection.corpus)
    run = {query: [one.id for one in bm25.search(text, 100)] for query, text in collection.queries.items()}
    found = means(evaluate(collection.qrels, run))
    assert len(collection.queries) == n_judged
    assert (found["nDCG@10"], found["RR@10"]) == pytest.approx((ndcg, mrr), abs=6e-5)
