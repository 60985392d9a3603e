"""Pairs that static int8 takes the ranges of activations from: bundled texts, not those of the parity gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_export.gate.parity import ParityQuery, read_queries
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

CALIBRATION_SET = Path(__file__).with_name("calibration_set.jsonl")

Feed = dict[str, npt.NDArray[np.int64]]

_LONGEST_WORDS = 500  # of the longest text of documents joined; the first query's has a twelfth of it


def calibration_feeds(tokenizer: PairTokenizer, inputs: Sequence[str]) -> Iterator[Feed]:
    """Every pair of the set by itself, so that no padding is measured.

    A query meets its own documents, one of another query, an empty one, and one made of many, as long as traffic has.

    Args:
        tokenizer: of the model, with the lengths that will be served.
        inputs: names of the encoder's inputs.

    Returns:
        Per pair, input name -> int64 ``(1, tokens)``.

    Raises:
        PairError: the tokenizer does not take the texts.
    """
    queries = read_queries(CALIBRATION_SET)
    for place, entry in enumerate(queries):
        pairs = tokenizer.encode(entry.query, [*entry.documents, *_more_documents(queries, place)])
        for row, tokens in enumerate(pairs.token_count[:, 0]):
            yield {name: getattr(pairs, name)[row : row + 1, :tokens] for name in inputs}


def _more_documents(queries: Sequence[ParityQuery], place: int) -> list[str]:
    following = [*queries[place + 1 :], *queries[: place + 1]]
    words = " ".join(document for entry in following for document in entry.documents).split()
    return [following[0].documents[0], "", " ".join(words[: _LONGEST_WORDS * (place + 1) // len(queries)])]
