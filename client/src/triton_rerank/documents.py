"""Documents from a user's file: one text a line, JSON, JSON lines or CSV, gzipped or not. A guess is said.

The form goes by the name's ending, in any case, and is held to the content: a file that is something else than its name
says is refused. Where the name says nothing (standard input, another ending), the content decides.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from triton_rerank.contract import MAX_TEXT_BYTES
from triton_rerank.errors import InvalidRequestError

FORMS = ("auto", "text", "jsonl", "json", "csv", "tsv")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
}
_CALLED = {
    "text": "one text a line",
    "jsonl": "JSON, one value a line",
    "json": "a JSON array",
    "csv": "CSV",
    "tsv": "CSV with tabs",
}
_GZIP = b"\x1f\x8b"


def read_documents(
    source: str, *, form: str = "auto", text_key: str = "text", say: Callable[[str], None] = lambda _: None
) -> list[Any]:
    """Read a file of documents, once.

    Args:
        source: path, or ``-`` for standard input.
        form: "text", one document a line, empty ones too; "jsonl", a JSON value a line, blank lines left out; "json",
            an array; "csv" or "tsv", with a head line; "auto" goes by the name and the content.
        text_key: key of an object's text, and the column of a table.
        say: told of each guess, in a sentence.

    Returns:
        Strings and mappings, as they stand there.

    Raises:
        InvalidRequestError: not there, not UTF-8, not of the form that it is said to have, or a document without a
            text; the line is named, from 1.
    """
    try:
        content, name = _unpacked(source, _read(source), say)
        text = _decoded(content)
    except (OSError, ValueError, EOFError, zlib.error) as exc:
        raise InvalidRequestError(f"--documents {source}: cannot be read ({exc}); give a UTF-8 file, or -") from exc
    file = _File(source, text, text_key, say)
    return list(_READERS[_form_of(file, name) if form == "auto" else form](file))


@dataclass(frozen=True)
class _File:
    source: str
    text: str
    text_key: str
    say: Callable[[str], None]

    @cached_property
    def value(self) -> Any:
        """The whole as one JSON value; an error if it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as exc:
            return exc

    def lines(self) -> list[str]:
        """As they stand there; a line ends with a line feed, and with nothing else."""
        return [line.removesuffix("\r") for line in self.text.removesuffix("\n").split("\n")] if self.text else []

    def refuse(self, what: str) -> InvalidRequestError:
        """The error that says which file, and what is wrong with it."""
        return InvalidRequestError(f"--documents {self.source}: {what}")


def _read(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer.read()


def _unpacked(source: str, content: bytes, say: Callable[[str], None]) -> tuple[bytes, str]:
    """What is in the file, and its name in small letters, without .gz."""
    name = source.lower()
    packed, named = content.startswith(_GZIP), name.endswith(".gz")
    if named and not packed:
        raise ValueError("its name ends with .gz and it is not gzipped: rename it")
    if packed and not named:
        say(f"{source} is gzipped, and was unpacked")
    return gzip.decompress(content) if packed else content, name.removesuffix(".gz")


def _decoded(content: bytes) -> str:
    if b"\0" in content:  # the letters of UTF-16 are UTF-8 too, with a zero beside each
        raise ValueError("it holds bytes that are 0: it is UTF-16, or no text")
    return content.decode("utf-8-sig")


def _form_of(file: _File, name: str) -> str:
    """The form by the name, held to the content; by the content, where the name says nothing."""
    named, seen = _ENDINGS.get(Path(name).suffix if name != "-" else ""), _seen(file)
    if named == "json" and seen == "jsonl":
        named = None  # many files of JSON lines are called .json
    if named is None:
        form = seen or "text"
        if seen is not None:
            file.say(
                f"{file.source} was read as {_CALLED[form]}, for that is what is in it; --format says it for certain"
            )
        return form
    if seen is not None and seen != named:
        raise file.refuse(
            f"its name says {_CALLED[named]}, and it holds {_CALLED[seen]}: say --format {seen}, or --format {named} "
            "if the name is right"
        )
    return named


def _seen(file: _File) -> str | None:
    """The form that the content shows beyond doubt; None says that any line would do."""
    start = file.text.lstrip()[:1]
    if start == "[":
        return "json" if isinstance(file.value, list) else None
    if start == "{":
        first = next(line for line in file.lines() if line.strip())
        try:
            return "jsonl" if isinstance(json.loads(first), dict) else None
        except (ValueError, RecursionError):
            return None
    return None


def _jsonl(file: _File) -> Iterator[Any]:
    for number, line in enumerate(file.lines(), 1):
        if line.strip():
            place = f"{file.source}:{number}"
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise InvalidRequestError(f"{place}: not JSON ({exc}); for one text a line say --format text") from exc
            yield _with_text(place, document, file.text_key)


def _json(file: _File) -> Iterator[Any]:
    if isinstance(file.value, Exception):
        raise file.refuse(f"not JSON ({file.value}); for one text a line say --format text") from file.value
    if not isinstance(file.value, list):
        raise file.refuse("one JSON value: it must be an array of texts or objects, or one of them a line")
    for number, document in enumerate(file.value):
        yield _with_text(f"{file.source}[{number}]", document, file.text_key)


def _table(file: _File, delimiters: str) -> Iterator[dict[str, str]]:
    head = file.text.partition("\n")[0]
    delimiter = next((one for one in delimiters if file.text_key in _cells(head, one)), delimiters[0])
    if delimiter != delimiters[0]:
        file.say(f"{file.source} was read with {delimiter!r} between its columns, as in its head line")
    before = csv.field_size_limit(MAX_TEXT_BYTES)
    try:
        rows = csv.reader(io.StringIO(file.text, newline=""), delimiter=delimiter, strict=True)
        yield from _rows(file, rows)
    except csv.Error as exc:
        raise file.refuse(f"not CSV ({exc}); for one text a line say --format text") from exc
    finally:
        csv.field_size_limit(before)


def _rows(file: _File, rows: Any) -> Iterator[dict[str, str]]:
    columns = [cell.strip() for cell in next(rows, [])]
    if columns.count(file.text_key) != 1:
        found = ", ".join(map(repr, columns)) or "none"
        raise file.refuse(
            f"its head line must have one column {file.text_key!r} and has {found:.200}: --text-key names another, "
            "--format text takes each line for a text"
        )
    for row in rows:
        if row and len(row) != len(columns):
            raise InvalidRequestError(
                f"{file.source}:{rows.line_num}: {len(row)} cells, and the head line has {len(columns)}; quote the "
                "texts that hold the separator"
            )
        if row:
            yield dict(zip(columns, row, strict=True))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _with_text(place: str, document: Any, text_key: str) -> Any:
    text = document.get(text_key) if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"{place}: neither a string nor an object with a string under the key {text_key!r} (see --text-key)"
        )
    return document


_READERS: dict[str, Callable[[_File], Iterable[Any]]] = {
    "text": _File.lines,
    "jsonl": _jsonl,
    "json": _json,
    "csv": partial(_table, delimiters=",;\t|"),
    "tsv": partial(_table, delimiters="\t"),
}
