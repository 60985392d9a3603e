"""The documents that an index holds: ids, texts and the caller's objects, checked once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank import ConfigurationError, InvalidRequestError
from triton_rerank_retrieval.candidates import Candidate, Filter, field_of, matches
from triton_rerank_retrieval.files import IndexFileError

FILE = "documents.jsonl"
Key = str | Callable[[Any], Any]


@dataclass(frozen=True)
class Corpus:
    """Documents in their order.

    Attributes:
        ids: each once.
        texts: what is indexed; a blank one is kept, and no first stage finds it.
        documents: the caller's objects.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    documents: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, documents: Iterable[Any], *, text_key: Key = "text", id_key: Key = "id") -> Corpus:
        """Check documents.

        Args:
            documents: strings, mappings or objects.
            text_key: where a document that is not a string has its text: a key, an attribute, or a function.
            id_key: the same for its id; a document without one gets its position in the list.

        Raises:
            InvalidRequestError: a document without a text, or ids that stand twice; five of them are named.
        """
        kept = tuple(documents)
        texts = tuple(_text(document, text_key, place) for place, document in enumerate(kept))
        ids = tuple(_id(document, id_key, place) for place, document in enumerate(kept))
        _check_unique(ids)
        return cls(ids, texts, kept)

    def candidate(self, row: int, score: float | None) -> Candidate[Any]:
        """One document as a candidate."""
        return Candidate(self.ids[row], self.texts[row], self.documents[row], score)

    def rows(self, ids: Iterable[str]) -> dict[str, int]:
        """Id -> place of the documents that are here."""
        return {id: self._places[id] for id in ids if id in self._places}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    def allowed(self, filter: Filter | None) -> npt.NDArray[np.bool_]:
        """Which documents may be found, bool ``(n,)``: they have a text, and match."""
        return np.array([bool(text.strip()) for text in self.texts], np.bool_) & (
            np.array([matches(filter, document) for document in self.documents], np.bool_)
            if filter is not None
            else np.True_
        )

    def save(self, folder: Path) -> None:
        """Write ids, texts and documents.

        Raises:
            ConfigurationError: a document that JSON cannot hold.
        """
        with (folder / FILE).open("w", encoding="utf-8") as file:
            for row in range(len(self)):
                file.write(self._line(row) + "\n")

    def _line(self, row: int) -> str:
        content = {"id": self.ids[row], "text": self.texts[row]}
        document = self.documents[row]
        try:
            return json.dumps(content if document == content["text"] else {**content, "document": document})
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(
                f"the document {self.ids[row][:80]} is a {type(document).__name__}, which JSON cannot hold ({exc}): "
                "an index of strings or mappings can be saved"
            ) from exc


def load_corpus(folder: Path) -> Corpus:
    """Read what `Corpus.save` wrote.

    Raises:
        IndexFileError: it is not of that form.
    """
    try:
        rows = list(_rows(folder / FILE))
        return Corpus(
            tuple(row["id"] for row in rows),
            tuple(row["text"] for row in rows),
            tuple(row.get("document", row["text"]) for row in rows),
        )
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise IndexFileError(f"{folder / FILE} is broken ({exc}): build the index anew, and save it there") from exc


def best_rows(scores: npt.NDArray[np.floating[Any]], k: int) -> npt.NDArray[np.intp]:
    """Places of the best ``k`` of ``scores`` ``(n,)``, best first; equal ones in the list's order."""
    if k < scores.size:
        least = np.partition(scores, scores.size - k)[scores.size - k]
        rows = np.flatnonzero(scores >= least)
    else:
        rows = np.arange(scores.size)
    return np.asarray(rows[np.argsort(-scores[rows], kind="stable")][:k], np.intp)


def check_search(query: str, k: int) -> None:
    """What every first stage asks of its arguments.

    Raises:
        InvalidRequestError: a blank query, or ``k`` under 1.
    """
    given: object = query
    if not isinstance(given, str) or not given.strip():
        raise InvalidRequestError(f"query is {str(query)[:80]!r}: it must be a text that is not blank")
    wanted: object = k
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < 1:
        raise InvalidRequestError(f"k is {str(k)[:80]}: it must be a whole number from 1")


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _text(document: object, key: Key, place: int) -> str:
    text = document if isinstance(document, str) else key(document) if callable(key) else field_of(document, key)
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"document {place} has no text: {str(key)[:80]} is {type(text).__name__}; name where it stands in text_key="
        )
    return text


def _id(document: object, key: Key, place: int) -> str:
    if isinstance(document, str):
        return str(place)
    found = key(document) if callable(key) else field_of(document, key)
    return str(place) if found is None else str(found)


def _check_unique(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    twice = list(dict.fromkeys(id for id in ids if id in seen or seen.add(id)))  # type: ignore[func-returns-value]
    if twice:
        shown = ", ".join(repr(id[:80]) for id in twice[:5])
        raise InvalidRequestError(f"{len(twice)} ids stand twice, such as {shown}: each document needs its own")
