"""Test collections: documents, queries and which of them belong together, in every form that the field has."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError, InvalidRequestError
from triton_rerank_retrieval.candidates import Candidate
from triton_rerank_retrieval.corpus import Corpus
from triton_rerank_retrieval.files import digest_of

QRELS = ("qrels.tsv", "qrels/test.tsv", "qrels.trec", "qrels.txt")
_FORMS = (
    'FOLDER in BEIR form: corpus.jsonl ({"_id", "title", "text"} a line), queries.jsonl ({"_id", "text"} a line), and '
    "qrels.tsv or qrels/test.tsv (query-id, corpus-id, score, with a header), or qrels.trec (TREC's four columns)",
    'FILE.jsonl: {"query", "positives": [texts], "negatives": [texts]} a line; all texts together are the corpus',
    "hf:NAME: a Hugging Face dataset in BEIR form; needs the package datasets and access to the hub",
    "ir_datasets:NAME: a dataset of the package ir_datasets, such as ir_datasets:beir/scifact/test",
)
FORMS = "\n".join(("a collection is one of:", *(f"  {form}" for form in _FORMS)))
_WANTED = f"give one of: {'; '.join(_FORMS)}"


@dataclass(frozen=True)
class Collection:
    """Documents, queries and qrels.

    Attributes:
        name: for reports.
        corpus: the documents; their text is title, a space, text.
        queries: query id -> text of the judged queries, in the source's order.
        n_queries: queries in the source, judged or not.
        qrels: query id -> document id -> relevance; every query here has one of 1 or more.
        bad_rows: rows that were left out, with their line and the reason.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    n_queries: int
    qrels: Mapping[str, Mapping[str, int]]
    bad_rows: tuple[str, ...] = ()


def load_collection(source: str | Path) -> Collection:
    """Read a collection; see `FORMS`.

    Raises:
        InvalidRequestError: it is not there, or not of any form; or qrels name what the collection does not have.
        ConfigurationError: a package that the form needs is missing.
    """
    kind, _, name = str(source).partition(":")
    if kind in _PACKAGED and name:
        return _PACKAGED[kind](name)
    path = Path(source)
    if path.is_dir():
        return _beir(path)
    if path.is_file():
        return _triples(path)
    raise InvalidRequestError(f"--data {source}: looked for {path.absolute()}, which is not there; {_WANTED}")


def read_run(path: Path, collection: Collection) -> dict[str, list[Candidate[Any]]]:
    """A TREC run file: ``query Q0 document rank score tag`` a line, as a first stage's lists.

    Equal scores are ordered by rank, then as the file has them.

    Raises:
        InvalidRequestError: no such file, a line that is none, or documents and queries that the collection lacks.
    """
    place = {id: row for row, id in enumerate(collection.corpus.ids)}
    rows: dict[str, list[tuple[float, int, str]]] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        try:
            query, _, document, rank, score, *_ = fields
            rows.setdefault(query, []).append((-float(score), int(rank), document))
        except ValueError as exc:
            raise InvalidRequestError(
                f"{path}, line {number}: {line[:80]!r} is not query Q0 id rank score tag"
            ) from exc
    _check_known(path, "document", {document for of in rows.values() for *_, document in of} - set(place))
    if not set(rows) & set(collection.queries):
        raise InvalidRequestError(f"{path}: has none of the judged queries of {collection.name}: is it of another?")
    candidate = collection.corpus.candidate
    return {
        query: [candidate(place[id], -score) for score, _, id in sorted(found, key=lambda row: row[:2])]
        for query, found in rows.items()
        if query in collection.queries
    }


def collection_of(
    name: str,
    documents: Iterable[tuple[str, str]],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    source: Path | str,
    bad_rows: Iterable[str] = (),
) -> Collection:
    """Check that the three belong together.

    Raises:
        InvalidRequestError: qrels name ids that are not there, five of which are listed, or nothing is relevant.
    """
    corpus = Corpus.of([{"id": id, "text": text} for id, text in documents])
    relevant = {query: judged for query, judged in qrels.items() if any(grade > 0 for grade in judged.values())}
    if not relevant:
        raise InvalidRequestError(f"{source}: no query has a relevant document; there is nothing to measure")
    _check_known(source, "query", set(relevant) - set(queries))
    _check_known(source, "document", {id for judged in relevant.values() for id in judged} - set(corpus.ids))
    judged = {query: text for query, text in queries.items() if query in relevant}
    return Collection(name, corpus, judged, len(queries), relevant, tuple(bad_rows))


def _beir(folder: Path) -> Collection:
    qrels = next((folder / name for name in QRELS if (folder / name).is_file()), None)
    missing = [name for name in ("corpus.jsonl", "queries.jsonl") if not (folder / name).is_file()]
    if missing or qrels is None:
        lacks = [*missing, *([] if qrels else ["qrels.tsv"])]
        raise InvalidRequestError(f"--data {folder}: looked for {', '.join(lacks)} there, and found none; {_WANTED}")
    bad: list[str] = []
    documents = [(row["_id"], _document(row)) for row in _rows(folder / "corpus.jsonl", ("_id", "text"), bad)]
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl", ("_id", "text"), bad)}
    return collection_of(folder.resolve().name, documents, queries, _qrels(qrels, bad), qrels, bad)


def _triples(path: Path) -> Collection:
    bad: list[str] = []
    texts: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(_rows(path, ("query",), bad), 1):
        positives, negatives = row.get("positives"), row.get("negatives", [])
        if not _are_texts(positives) or not positives or not _are_texts(negatives):
            bad.append(f"{path}: row {number}: positives (at least one) and negatives must be lists of texts")
            continue
        named = {digest_of(text)[:12]: text for text in (*positives, *negatives)}
        texts.update(named)
        query = f"q{number}"
        queries[query] = row["query"]
        qrels[query] = {digest_of(text)[:12]: 1 for text in positives}
    return collection_of(path.stem, texts.items(), queries, qrels, path, bad)


def _hub(name: str) -> Collection:
    """BEIR's form on the hub: the corpus and queries are configurations, qrels a dataset of their own."""
    load = _needed("datasets", "load_dataset")
    documents = [(str(row["_id"]), _document(row)) for row in load(name, "corpus", split="corpus")]
    queries = {str(row["_id"]): str(row["text"]) for row in load(name, "queries", split="queries")}
    qrels: dict[str, dict[str, int]] = {}
    for row in load(f"{name}-qrels", split="test"):
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    return collection_of(name.rpartition("/")[2], documents, queries, qrels, f"hf:{name}")


def _ir_datasets(name: str) -> Collection:
    dataset = _needed("ir_datasets", "load")(name)
    documents = [(str(document.doc_id), str(document.default_text())) for document in dataset.docs_iter()]
    queries = {str(query.query_id): str(query.default_text()) for query in dataset.queries_iter()}
    qrels: dict[str, dict[str, int]] = {}
    for judged in dataset.qrels_iter():
        qrels.setdefault(str(judged.query_id), {})[str(judged.doc_id)] = int(judged.relevance)
    return collection_of(name.replace("/", "-"), documents, queries, qrels, f"ir_datasets:{name}")


_PACKAGED: Mapping[str, Callable[[str], Collection]] = {"hf": _hub, "ir_datasets": _ir_datasets}


def _needed(package: str, function: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(package), function)
        return found
    except ImportError as exc:
        raise ConfigurationError(f"this collection needs the package {package}: pip install {package}") from exc


def _rows(path: Path, keys: tuple[str, ...], bad: list[str]) -> Iterator[dict[str, Any]]:
    """The good rows of a JSONL file; the others are noted with their line. None good is an error."""
    good = 0
    for number, line in enumerate(_lines(path), 1):
        reason = None
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
                reason = f"{', '.join(keys)} must be texts"
        except ValueError as exc:
            reason = f"not JSON ({exc})"
        if reason:
            bad.append(f"{path}, line {number}: {reason}")
        else:
            good += 1
            yield row
    if not good:
        raise InvalidRequestError(f"{path}: no row is of the form; the last: {bad[-1] if bad else 'it is empty'}")


def _qrels(path: Path, bad: list[str]) -> dict[str, dict[str, int]]:
    """TSV of three columns with a header, or TREC's four columns without."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and fields[-1].strip().lower() in ("score", "relevance"):
            continue
        grade = fields[-1].strip()
        if len(fields) not in (3, 4) or not grade.lstrip("-").isdecimal():
            bad.append(f"{path}, line {number}: is {line[:80]!r}: query-id, corpus-id and score are expected")
        else:
            qrels.setdefault(fields[0], {})[fields[-2]] = max(0, int(grade))
    return qrels


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"{path}: cannot be read ({exc}); a UTF-8 file is expected") from exc
    return text.removesuffix("\n").split("\n") if text else []  # not splitlines: a text may hold U+2028


def _document(row: Mapping[str, Any]) -> str:
    return f"{row.get('title') or ''} {row['text']}".strip()


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _check_known(source: Path | str, what: str, unknown: set[str]) -> None:
    if unknown:
        shown = ", ".join(repr(id[:80]) for id in sorted(unknown)[:5])
        raise InvalidRequestError(
            f"{source}: names {len(unknown)} {what} ids that the collection does not have, such as {shown}; "
            "the files must belong together"
        )
