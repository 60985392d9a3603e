"""Test collections in BEIR form: a folder with corpus.jsonl, queries.jsonl and qrels.tsv."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_bench.errors import BenchError

FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")


@dataclass(frozen=True)
class Collection:
    """Documents, queries and which of them belong together.

    Attributes:
        name: the folder's name.
        document_ids: one a document, in the file's order.
        documents: title, a space, text; what every system reads. The title alone where the text is empty.
        queries: query id -> text of the judged queries, in the file's order.
        n_queries: queries in the file, judged or not.
        qrels: query id -> document id -> relevance, 1 or more; every query here has at least one.
    """

    name: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    queries: Mapping[str, str]
    n_queries: int
    qrels: Mapping[str, Mapping[str, int]]


def load_collection(folder: Path) -> Collection:
    """Read one collection.

    Args:
        folder: holds the three files of `FILES`.

    Raises:
        BenchError: a file is missing or not of the form, or the qrels name what is not there.
    """
    _check_files(folder)
    texts = {_field(row, "_id", place): _document_text(row, place) for place, row in _rows(folder / "corpus.jsonl")}
    queries = {_field(row, "_id", place): _field(row, "text", place) for place, row in _rows(folder / "queries.jsonl")}
    qrels = _read_qrels(folder / "qrels.tsv")
    _check_known(folder, "query", set(qrels) - set(queries))
    _check_known(folder, "document", {document for judged in qrels.values() for document in judged} - set(texts))
    return Collection(
        name=folder.resolve().name,
        document_ids=tuple(texts),
        documents=tuple(texts.values()),
        queries={query: text for query, text in queries.items() if query in qrels},
        n_queries=len(queries),
        qrels=qrels,
    )


def _check_files(folder: Path) -> None:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BenchError(
            f"--data {folder}: looked for {', '.join(missing)} there, and found none; give a folder in BEIR form, "
            f"which holds {', '.join(FILES)}"
        )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as exc:
            raise BenchError(f"{place}: not JSON ({exc}); one object a line is expected") from exc
        if not isinstance(row, dict):
            raise BenchError(f"{place}: is a {type(row).__name__}; one object a line is expected")
        yield place, row


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BenchError(f"{path}: cannot be read ({exc}); a UTF-8 file is expected") from exc
    return text.removesuffix("\n").split("\n")  # not splitlines: a text may hold U+2028


def _field(row: Mapping[str, object], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise BenchError(f"{place}: {key} is {value!r}; a string is expected")
    return value


def _document_text(row: Mapping[str, object], place: str) -> str:
    title = _field(row, "title", place) if "title" in row else ""
    return f"{title} {_field(row, 'text', place)}".strip()


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(path)[1:], 2):  # the first line is the header
        fields = line.split("\t")
        if len(fields) != 3 or not fields[2].strip().isdecimal():
            raise BenchError(f"{path}, line {number}: is {line[:80]!r}; query-id, corpus-id and score are expected")
        if int(fields[2]) > 0:
            qrels.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    if not qrels:
        raise BenchError(f"{path}: no query has a relevant document; there is nothing to measure")
    return qrels


def _check_known(folder: Path, what: str, unknown: set[str]) -> None:
    if unknown:
        raise BenchError(
            f"{folder / 'qrels.tsv'}: names {len(unknown)} {what} ids that the collection does not have, such as "
            f"{min(unknown)!r}; the three files must belong together"
        )
