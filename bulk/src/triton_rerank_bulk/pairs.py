"""What is to be scored, read from the forms of the field and checked, as three Arrow files that workers map.

``queries.arrow`` and ``documents.arrow`` hold ids and texts; ``pairs.arrow`` holds rows of those two, the pairs of a
query side by side. Texts are written once and never joined into pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from triton_rerank import InvalidRequestError

QUERIES, DOCUMENTS, PAIRS = "queries.arrow", "documents.arrow", "pairs.arrow"
_TEXTS = pa.schema([("id", pa.string()), ("text", pa.large_string())])
_ROWS = pa.schema([("query", pa.int32()), ("document", pa.int64())])
_TEXT_ROWS = 1024  # of a record batch: the unit that is mapped
_PAIR_ROWS = 65_536
_IDS = ("query_id", "document_id")
_WANTED = (
    "give RUN.trec (query Q0 document rank score tag a line), PAIRS.parquet or PAIRS.jsonl (query_id, document_id, and "
    "the texts query and document unless --collection has them), or a folder with corpus.jsonl, queries.jsonl and "
    "run.trec"
)

PairTexts = tuple[str, str, str | None, str | None]  # query id, document id, and their texts


@dataclass(frozen=True)
class Source:
    """Where pairs and their texts come from.

    Attributes:
        pairs: a TREC run, or Parquet or JSONL with ``query_id`` and ``document_id``.
        collection: folder with ``corpus.jsonl`` and ``queries.jsonl`` in BEIR's form; None where the pairs have texts.
    """

    pairs: Path
    collection: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read."""
        folder = self.collection
        return (self.pairs,) if folder is None else (self.pairs, folder / "queries.jsonl", folder / "corpus.jsonl")

    def digest(self) -> str:
        """SHA-256 of what stands in the files; their names and places do not count."""
        digest = hashlib.sha256()
        for path in self.files:
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as exc:
                raise _unreadable(path, exc) from exc
            digest.update(b"\0%d" % path.stat().st_size)
        return digest.hexdigest()

    def prepare(self, folder: Path) -> int:
        """Write the three Arrow files into a folder that is there.

        Returns:
            How many pairs there are.

        Raises:
            InvalidRequestError: a line or a file that is not of the form, an id that stands twice, or a pair whose
                query or document has no text.
            OSError: they cannot be written.
        """
        if self.collection is None:
            found = _with_texts(self.pairs, folder)
        else:
            queries = _write_texts(self.collection / "queries.jsonl", folder / QUERIES)
            documents = _write_texts(self.collection / "corpus.jsonl", folder / DOCUMENTS)
            found = _with_ids(self.pairs, queries, documents)
        return _write_pairs(self.pairs, folder, found)


class Texts:
    """Ids and texts of an Arrow file, by row; the file is mapped, so that only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: dict[int, Any] = {}

    def __len__(self) -> int:
        n = self._reader.num_record_batches
        return (n - 1) * _TEXT_ROWS + self._reader.get_batch(n - 1).num_rows if n else 0

    def id(self, row: int) -> str:
        """The id that stands in a row."""
        return str(self._cell(row, 0))

    def text(self, row: int) -> str:
        """The text that stands in a row."""
        return str(self._cell(row, 1))

    def _cell(self, row: int, column: int) -> Any:
        place, offset = divmod(row, _TEXT_ROWS)
        batch = self._batches.get(place)
        if batch is None:
            batch = self._batches.setdefault(place, self._reader.get_batch(place))
        return batch.column(column)[offset].as_py()


def load_pairs(folder: Path) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Rows of the queries ``(n,)`` and of the documents ``(n,)``, mapped."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / PAIRS))).read_all()
    return table.column("query").to_numpy(), table.column("document").to_numpy()


def find_source(given: Path, collection: Path | None) -> Source:
    """What ``--input`` and ``--collection`` mean.

    Raises:
        InvalidRequestError: a file is missing, or of no form that is known.
    """
    pairs = given
    if given.is_dir():
        collection, pairs = collection or given, given / "run.trec"
    if not pairs.is_file():
        raise InvalidRequestError(f"--input {given}: {pairs} is not there; {_WANTED}")
    if pairs.suffix not in (".trec", ".run", ".txt", ".parquet", ".jsonl"):
        raise InvalidRequestError(f"--input {given}: of an unknown form; {_WANTED}")
    if collection is None and pairs.suffix not in (".parquet", ".jsonl"):
        raise InvalidRequestError(f"--input {given}: a run has ids only: name the texts' folder by --collection")
    source = Source(pairs, collection)
    missing = [str(path) for path in source.files if not path.is_file()]
    if missing:
        raise InvalidRequestError(f"--collection {collection}: {', '.join(missing)} is not there")
    return source


def _with_ids(path: Path, queries: Mapping[str, int], documents: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    unknown: dict[str, dict[str, None]] = {"query": {}, "document": {}}
    for query, document, *_ in _read(path, _IDS):
        row = queries.get(query), documents.get(document)
        if row[0] is not None and row[1] is not None:
            yield row  # type: ignore[misc]
        else:
            unknown["query"].update({query: None} if row[0] is None else {})
            unknown["document"].update({document: None} if row[1] is None else {})
    for what, ids in unknown.items():
        if ids:
            shown = ", ".join(repr(id[:80]) for id in list(ids)[:5])
            raise InvalidRequestError(
                f"{path}: names {len(ids)} {what} ids that the collection does not have, such as {shown}; "
                "the files must belong together"
            )


def _with_texts(path: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Texts stand in the pairs: each is written when its id is first met."""
    with ExitStack() as stack:
        writers = [stack.enter_context(_TextWriter(folder / name)) for name in (QUERIES, DOCUMENTS)]
        for number, (*ids, query, document) in enumerate(_read(path, (*_IDS, "query", "document")), 1):
            rows = []
            for writer, id, text, what in zip(writers, ids, (query, document), ("query", "document"), strict=True):
                row = writer.add(id, text)
                if row is None:
                    raise InvalidRequestError(f"{path}, row {number}: the {what} {id[:80]!r} has two different texts")
                rows.append(row)
            yield rows[0], rows[1]


def _write_texts(path: Path, target: Path) -> Mapping[str, int]:
    """One file of a collection. Returns id -> row."""
    with _TextWriter(target) as writer:
        for number, row in _json_rows(path, ("_id", "text")):
            before = len(writer.rows)
            if writer.add(row["_id"], f"{row.get('title') or ''} {row['text']}".strip()) != before:
                raise InvalidRequestError(f"{path}, line {number}: the id {row['_id'][:80]!r} stands twice")
        return writer.rows


class _TextWriter:
    """An Arrow file of texts that grows; every id once."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, int] = {}
        self._digests: list[bytes] = []
        self._left: list[tuple[str, str]] = []
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, _TEXTS)

    def __enter__(self) -> _TextWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()
        self._sink.close()

    def add(self, id: str, text: str | None) -> int | None:
        """The row of an id; None if it stands there with another text."""
        digest = hashlib.blake2b((text or "").encode("utf-8"), digest_size=12).digest()
        row = self.rows.setdefault(id, len(self.rows))
        if row < len(self._digests):
            return row if self._digests[row] == digest else None
        self._digests.append(digest)
        self._left.append((id, text or ""))
        if len(self._left) == _TEXT_ROWS:
            self._flush()
        return row

    def _flush(self) -> None:
        if self._left:
            ids, texts = zip(*self._left, strict=True)
            self._file.write_batch(
                pa.record_batch([pa.array(ids, pa.string()), pa.array(texts, pa.large_string())], schema=_TEXTS)
            )
            self._left.clear()


def _write_pairs(path: Path, folder: Path, found: Iterable[tuple[int, int]]) -> int:
    rows = np.fromiter(found, np.dtype([("query", np.int32), ("document", np.int64)]))
    if not rows.size:
        raise InvalidRequestError(f"{path}: has no pairs; {_WANTED}")
    order = np.argsort(rows["query"], kind="stable")
    rows = rows[order]
    sorted_rows = np.sort(rows)
    twice = sorted_rows[1:][sorted_rows[1:] == sorted_rows[:-1]]
    if twice.size:
        queries, documents = Texts(folder / QUERIES), Texts(folder / DOCUMENTS)
        shown = ", ".join(f"{queries.id(int(q))[:80]} {documents.id(int(d))[:80]}" for q, d in twice[:5])
        raise InvalidRequestError(f"{path}: {twice.size} pairs stand twice, such as {shown}: each may stand once")
    with pa.OSFile(str(folder / PAIRS), "wb") as sink, pa.ipc.new_file(sink, _ROWS) as file:
        columns = [np.ascontiguousarray(rows[name]) for name in ("query", "document")]
        file.write_table(pa.table(columns, schema=_ROWS), max_chunksize=_PAIR_ROWS)
    return int(rows.size)


def _read(path: Path, columns: tuple[str, ...]) -> Iterator[PairTexts]:
    if path.suffix == ".parquet":
        return _read_parquet(path, columns)
    if path.suffix == ".jsonl":
        return (
            (row[columns[0]], row[columns[1]], row.get("query"), row.get("document"))
            for _, row in _json_rows(path, columns)
        )
    return _read_run(path)


def _read_run(path: Path) -> Iterator[PairTexts]:
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise InvalidRequestError(f"{path}, line {number}: {line[:80]!r} is not query Q0 document rank score tag")
        yield fields[0], fields[2], None, None


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[PairTexts]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if missing:
                raise InvalidRequestError(
                    f"{path}: has no column {', '.join(missing)}, but {', '.join(names[:10])}; {_WANTED}"
                )
            first = 1
            for batch in file.iter_batches(columns=list(columns), batch_size=_PAIR_ROWS):
                cells = [batch.column(name).cast(pa.large_string()) for name in columns]
                if any(column.null_count for column in cells):
                    raise InvalidRequestError(
                        f"{path}, rows {first} to {first + batch.num_rows - 1}: a null among {', '.join(columns)}"
                    )
                first += batch.num_rows
                texts = [column.to_pylist() for column in cells]
                texts += [[None] * batch.num_rows] * (4 - len(texts))
                yield from zip(*texts, strict=True)
    except (OSError, pa.ArrowException) as exc:
        raise _unreadable(path, exc) from exc


def _json_rows(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InvalidRequestError(f"{path}, line {number}: is no JSON ({exc})") from exc
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
            raise InvalidRequestError(f"{path}, line {number}: {', '.join(keys)} must be texts, in an object")
        try:
            "".join(str(row.get(key)) for key in (*keys, "title")).encode()
        except UnicodeEncodeError as exc:
            raise InvalidRequestError(f"{path}, line {number}: a text is no Unicode ({exc.reason})") from exc
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"{path}: cannot be read, or is cut ({exc}); nothing was scored")
