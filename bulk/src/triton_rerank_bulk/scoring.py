"""A block of pairs from texts to a Parquet file: the same code in a local loop and in a worker of Ray.

Back-pressure is the servers' own: a call that they refuse for want of room waits and is sent again, and halves the
number of calls under way, which answers raise again by one a round. A pair that fails by itself is found by halving its
call, and gets a row with the error; a server that is gone for ``patience_s`` ends the job, and costs no pair.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from triton_rerank import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    OverloadedError,
    RerankClient,
    RerankError,
    RerankResult,
)
from triton_rerank_bulk.pairs import DOCUMENTS, QUERIES, Texts, load_pairs

T = TypeVar("T")

SCORES = pa.schema(
    [
        ("pair", pa.int64()),  # its place in pairs.arrow
        ("query_id", pa.string()),
        ("document_id", pa.string()),
        ("score", pa.float64()),
        ("logit", pa.float32()),
        ("truncated", pa.bool_()),
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("error", pa.string()),  # null where it was scored
    ]
)
_CALL_PAIRS = 256
_TRIES, _TRIES_OF_HALVES = 4, 2  # of a call that the model fails on: its process may have died of another's
_FIRST_WAIT_S, _FAILED_WAIT_S, _LONGEST_WAIT_S = 0.1, 0.5, 3.0


@dataclass(frozen=True)
class Work:
    """All that a worker needs; it can be pickled.

    Attributes:
        input: folder with the pairs, see `Source.prepare`.
        output: folder where blocks become files.
        n_pairs: of the whole job.
        block_pairs: pairs of a block, but the last.
        client: who is asked; its ``timeout_s`` holds for a call of up to 256 pairs.
        model: its public name.
        model_version: of the job; an answer of another stops it.
        asked: ``max_length``, ``instruction`` and so on of `RerankClient.rerank`.
        concurrency: calls under way at a time.
        patience_s: seconds that servers may be gone, or refuse.
    """

    input: Path
    output: Path
    n_pairs: int
    block_pairs: int
    client: RerankClient = field(repr=False)
    model: str
    model_version: str
    asked: dict[str, Any]
    concurrency: int
    patience_s: float

    @property
    def n_blocks(self) -> int:
        """Blocks of the whole job."""
        return -(-self.n_pairs // self.block_pairs)

    def rows(self, block: int) -> range:
        """Places of a block's pairs."""
        return range(block * self.block_pairs, min((block + 1) * self.block_pairs, self.n_pairs))

    def file(self, block: int) -> Path:
        """Where a block's scores are; the same name whoever writes it, so that a block cannot be there twice."""
        return self.output / f"part-{block:08d}.parquet"


@dataclass(frozen=True)
class Outcome:
    """What became of a block.

    Attributes:
        pairs: rows that were written.
        errors: of these, rows with an error.
        example: one of the errors.
        failure: why the job must stop, the block being not written; else "".
        exit_code: what the command should end with then.
    """

    pairs: int = 0
    errors: int = 0
    example: str = ""
    failure: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class _Scored:
    score: float | None
    logit: float | None
    truncated: bool | None
    error: str | None = None


class _PairsFault(Exception):
    """A call that fails by what it asks."""


class _Window:
    """How many calls may be under way: halved when a server has no room, one more for each round of answers."""

    def __init__(self, most: int) -> None:
        self._most, self._size, self._used = most, float(most), 0
        self._changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Waits until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._used < int(self._size))
            self._used += 1
        try:
            yield
        finally:
            with self._changed:
                self._used -= 1
                self._changed.notify_all()

    def tell(self, *, had_room: bool) -> None:
        """What the last call met."""
        with self._changed:
            self._size = min(self._most, self._size + 1 / self._size) if had_room else max(1.0, self._size / 2)


class BlockScorer:
    """Scores blocks; safe to share between threads, and closed by `close`."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._queries, self._documents = Texts(work.input / QUERIES), Texts(work.input / DOCUMENTS)
        self._pairs = load_pairs(work.input)
        self._calls = ThreadPoolExecutor(work.concurrency, thread_name_prefix="triton-rerank-bulk")
        self._window = _Window(work.concurrency)
        self._stopped = threading.Event()
        self._answered_at = time.monotonic()

    def close(self) -> None:
        """Give up what is under way."""
        self._stopped.set()
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._work.client.close()

    def run(self, block: int) -> Outcome:
        """Score a block and write its file; never raises for what a server or a disk does."""
        try:
            table = self._table(self._work.rows(block))
            _write_whole(table, self._work.file(block))
        except RerankError as exc:
            return Outcome(failure=f"{type(exc).__name__}: {exc}", exit_code=exc.exit_code)
        except OSError as exc:
            return Outcome(failure=f"{self._work.output}: cannot be written ({reason_of(exc)})", exit_code=1)
        errors = table.column("error").drop_null()
        return Outcome(table.num_rows, len(errors), str(errors[0]) if len(errors) else "")

    def _table(self, rows: range) -> pa.Table:
        queries, documents = (column[rows.start : rows.stop] for column in self._pairs)
        answers = list(self._calls.map(lambda call: self._answer(queries, documents, call), _calls(queries)))
        scored = [row for answer in answers for row in answer]
        columns = {
            "pair": np.arange(rows.start, rows.stop),
            "query_id": [self._queries.id(int(row)) for row in queries],
            "document_id": [self._documents.id(int(row)) for row in documents],
            "score": [row.score for row in scored],
            "logit": [row.logit for row in scored],
            "truncated": [row.truncated for row in scored],
            "model": [self._work.model] * len(rows),
            "model_version": [None if row.error else self._work.model_version for row in scored],
            "error": [row.error for row in scored],
        }
        return pa.table(columns, schema=SCORES)

    def _answer(self, queries: Any, documents: Any, call: slice) -> list[_Scored]:
        query = self._queries.text(int(queries[call.start]))
        return self._score(query, [self._documents.text(int(row)) for row in documents[call]])

    def _score(self, query: str, documents: Sequence[str], tries: int = _TRIES) -> list[_Scored]:
        """A row a document; halves what fails until the pair that fails is alone."""
        try:
            result = self._ask(query, documents, tries)
        except _PairsFault as fault:
            if len(documents) == 1:
                return [_Scored(None, None, None, str(fault))]
            half = len(documents) // 2
            halves = documents[:half], documents[half:]
            return [row for each in halves for row in self._score(query, each, _TRIES_OF_HALVES)]
        rows: list[Any] = [None] * len(documents)
        for one in result:
            rows[one.index] = _Scored(one.score, one.logit, one.truncated)
        return rows

    def _ask(self, query: str, documents: Sequence[str], tries: int) -> RerankResult[str]:
        """The answer, however long the servers are busy or gone, within the patience.

        Raises:
            _PairsFault: others are answered, and these are not.
            ConfigurationError: another version answered.
            RerankError: the patience is over.
        """
        client, asked = self._work.client, self._work.asked
        started, wait_s = time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                with self._window.place():
                    result = client.rerank(query, documents, **asked)
                break
            except RerankError as exc:
                tries -= self._is_of_the_pairs(exc, started, alone=len(documents) == 1)
                if tries <= 0 or isinstance(exc, InvalidRequestError):
                    raise _PairsFault(f"{type(exc).__name__}: {exc}") from exc
                silent_s = time.monotonic() - max(started, self._answered_at)
                if self._stopped.is_set() or silent_s > self._work.patience_s:
                    raise
                if isinstance(exc, OverloadedError):
                    self._window.tell(had_room=False)
                wait_s = max(wait_s, _FAILED_WAIT_S if isinstance(exc, InferenceError) else 0.0)
            self._stopped.wait(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self._window.tell(had_room=True)
        self._answered_at = time.monotonic()
        self._check_version(result)
        return result

    def _is_of_the_pairs(self, exc: RerankError, started: float, *, alone: bool) -> int:
        """How many tries an error costs: none if it is the server's, all if a shorter list is to be tried at once."""
        if isinstance(exc, DeadlineExceededError) and self._answered_at > started:
            return 1 if alone else _TRIES
        return int(isinstance(exc, InferenceError | InvalidResponseError))

    def _check_version(self, result: RerankResult[str]) -> None:
        if result.model_version != self._work.model_version:
            raise ConfigurationError(
                f"{result.served_by} answered with version {result.model_version} of {result.model}, and the job was "
                f"begun with version {self._work.model_version}: serve that, or begin another --output"
            )


def reason_of(exc: OSError) -> str:
    """The system's own words; Arrow has more, of its insides."""
    return os.strerror(exc.errno) if exc.errno else str(exc)


def wait_for(ask: Callable[[], T], patience_s: float, say: Callable[[str], None]) -> T:
    """What a server says, once it is there.

    Raises:
        RerankError: the patience is over, or it is of a kind that waiting does not mend.
    """
    started, said = time.monotonic(), False
    while True:
        try:
            return ask()
        except (ConfigurationError, InvalidRequestError):
            raise
        except RerankError as exc:
            if time.monotonic() - started > patience_s:
                raise
            if not said:
                say(f"waiting for an answer, {patience_s:g} s at most: {exc}")
            said = True
            time.sleep(1.0)


def _calls(queries: Any) -> Iterator[slice]:
    """Slices of equal neighbours ``(n,)``, each small enough for a call."""
    edges = [0, *(np.flatnonzero(queries[1:] != queries[:-1]) + 1).tolist(), len(queries)]
    for start, stop in pairwise(edges):
        for first in range(start, stop, _CALL_PAIRS):
            yield slice(first, min(first + _CALL_PAIRS, stop))


def _write_whole(table: pa.Table, path: Path) -> None:
    """A file is there whole, or not at all, whoever else writes it at the same time."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        pq.write_table(table, draft, compression="zstd")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
