"""What was written, held against what was asked for; and the same rows in the forms of the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triton_rerank_bulk.pairs import DOCUMENTS, QUERIES, Texts, load_pairs
from triton_rerank_bulk.scoring import SCORES, Work


@dataclass(frozen=True)
class Audit:
    """Counts of a whole output.

    Attributes:
        pairs: that were asked for.
        lost: of these, those without a row.
        doubled: rows beyond the first of a pair.
        foreign: rows of no pair, or with ids of another.
        broken: files that cannot be read.
        errors: rows with an error in place of a score.
        versions: of the model, over all rows with a score.
    """

    pairs: int
    lost: int
    doubled: int
    foreign: int
    broken: int
    errors: int
    versions: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Every pair has one row, by one version of the model."""
        return not (self.lost or self.doubled or self.foreign or self.broken) and len(self.versions) <= 1

    def line(self) -> str:
        """For people."""
        versions = ", ".join(self.versions) or "none"
        return (
            f"audit: {self.pairs:,} pairs, {self.lost:,} lost, {self.doubled:,} doubled, {self.foreign:,} foreign, "
            f"{self.broken:,} broken files, {self.errors:,} with an error, version {versions}"
        )

    def json(self) -> str:
        """For programs."""
        return json.dumps({**asdict(self), "clean": self.is_clean})


def audit(work: Work) -> Audit:
    """Read every row that is there."""
    ids = Texts(work.input / QUERIES), Texts(work.input / DOCUMENTS)
    pairs: tuple[Any, Any] = load_pairs(work.input)
    seen = np.zeros(work.n_pairs, np.int32)
    foreign = errors = broken = 0
    versions: set[str] = set()
    for path in sorted(work.output.glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=["pair", "query_id", "document_id", "model_version", "error"])
        except (OSError, pa.ArrowException):
            broken += 1
            continue
        places = table.column("pair").to_numpy()
        known = (places >= 0) & (places < work.n_pairs)
        for name, texts, rows in zip(("query_id", "document_id"), ids, pairs, strict=True):
            given = table.column(name).to_pylist()
            for at in np.flatnonzero(known):
                known[at] = texts.id(int(rows[places[at]])) == given[at]
        np.add.at(seen, places[known], 1)
        foreign += int((~known).sum())
        errors += table.num_rows - table.column("error").null_count
        versions |= set(table.column("model_version").drop_null().unique().to_pylist())
    return Audit(
        pairs=work.n_pairs,
        lost=int((seen == 0).sum()),
        doubled=int(np.maximum(seen - 1, 0).sum()),
        foreign=foreign,
        broken=broken,
        errors=errors,
        versions=tuple(sorted(versions)),
    )


def export(work: Work, form: str) -> Path:
    """Write ``scores.trec`` or ``scores.jsonl`` beside the Parquet files; pairs with an error are not in a run.

    Args:
        work: of an output whose audit is clean.
        form: "trec", best first for each query, or "jsonl", a row a line.

    Raises:
        OSError: it cannot be written.
    """
    path = work.output / f"scores.{form}"
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        _FORMS[form](_rows(work), file)
    draft.replace(path)
    return path


def _rows(work: Work) -> Iterator[dict[str, Any]]:
    for block in range(work.n_blocks):
        yield from pq.read_table(work.file(block), schema=SCORES).to_pylist()


def _to_trec(rows: Iterator[dict[str, Any]], file: TextIO) -> None:
    for query, of_query in groupby(rows, key=lambda row: row["query_id"]):
        scored = [row for row in of_query if row["error"] is None]
        scored.sort(key=lambda row: -row["score"] if row["logit"] is None else -row["logit"])
        for rank, row in enumerate(scored, 1):
            file.write(f"{query} Q0 {row['document_id']} {rank} {row['score']!r} {row['model']}\n")


def _to_jsonl(rows: Iterator[dict[str, Any]], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


_FORMS: dict[str, Callable[[Iterator[dict[str, Any]], TextIO], None]] = {"trec": _to_trec, "jsonl": _to_jsonl}
