"""Texts to time: seeded, the same on every machine, with lengths and words like those of real passages.

A workload's name stands for several lists, so that what is asked again and again is not one text. Real text comes
from a collection, generated text from words.txt:

words.txt holds the running-text words of Python's own language reference (``pydoc_data.topics`` of 3.11) that occur
three times or more, each with its count. Drawn by count, they come in natural proportion, so that tokens per word
are natural too.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from triton_rerank_bench.errors import BenchError
from triton_rerank_retrieval.eval.data import Collection, load_collection

MEAN_WORDS = 67  # with the query and special tokens about 90 tokens a pair
SPREAD = 0.37  # of the logarithm: the longest of 100 is 2.4 times the mean
CHUNK_WORDS = 219  # with the query and special tokens about 260 tokens a pair
CHUNK_SPREAD = 0.27  # the longest of 100 has about 490 tokens: just under the 512 of most models
N_DOCUMENTS = 100
MIXED_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # documents of each list
SHORT_SIZES = (*range(1, 11), *range(1, 11))  # documents of each list
SHORT_SPREAD = 0.8  # the longest of ten is nine times the shortest
N_LISTS = 8  # that a name stands for, but for "mixed" and "short", which have one of each size
QUERY_WORDS = 12
SENTENCE_WORDS = 16
SINGLE_WORDS = 60  # about 80 tokens with the query
MOST_QUERY_WORDS = 0.3  # share of a document's words that may come from the query


@dataclass(frozen=True)
class Workload:
    """One query with its documents; a round repeats short calls so often, since one is too short to time."""

    name: str
    query: str
    documents: list[str]
    calls: int


@dataclass(frozen=True)
class TokenStatistics:
    """Tokens of a workload's pairs, special tokens included, padding not."""

    pairs: int
    total: int
    mean: float
    median: float
    longest: int
    tokens_per_word: float


class TextMaker:
    """Makes texts from words drawn by their frequency; the same seed gives the same texts."""

    def __init__(self, seed: int) -> None:
        # Random.random() is the one method whose sequence Python promises to keep, so all draws go through it.
        self._random = random.Random(seed)  # noqa: S311 - texts to time, no secret
        self._words, self._cumulative = load_words()

    def words(self, n: int) -> list[str]:
        """Draw n words."""
        return [self._word() for _ in range(n)]

    def document(self, n_words: int, query: Sequence[str]) -> str:
        """Sentences of n words in all, a seeded share of which are the query's.

        The share differs from document to document: else all would score alike, and their order would be noise.
        """
        share = MOST_QUERY_WORDS * self._random.random()
        words = [self._pick(query) if self._random.random() < share else self._word() for _ in range(n_words)]
        sentences = [words[start : start + SENTENCE_WORDS] for start in range(0, n_words, SENTENCE_WORDS)]
        return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)

    def shuffled(self, values: Sequence[int]) -> list[int]:
        """The values in seeded order."""
        keys = [self._random.random() for _ in values]
        return [value for _, value in sorted(zip(keys, values, strict=True))]

    def _word(self) -> str:
        place = self._random.random() * self._cumulative[-1]
        return self._words[bisect.bisect_right(self._cumulative, place)]

    def _pick(self, words: Sequence[str]) -> str:
        return words[int(self._random.random() * len(words))]


def passages(seed: int, n_documents: int = N_DOCUMENTS) -> Workload:
    """100 passages, or another number, of log-normal length for one query of 12 words."""
    return lognormal_list("passages", n_documents, MEAN_WORDS, SPREAD, seed)


def chunks(seed: int) -> Workload:
    """100 documents of log-normal length that just fit into 512 tokens with the query: about 26,000 tokens in all."""
    return lognormal_list("chunks", N_DOCUMENTS, CHUNK_WORDS, CHUNK_SPREAD, seed)


def single(seed: int) -> Workload:
    """One pair of about 80 tokens."""
    maker = TextMaker(seed)
    query = maker.words(QUERY_WORDS)
    return Workload("single", " ".join(query), [maker.document(SINGLE_WORDS, query)], calls=20)


def mixed(seed: int) -> list[Workload]:
    """Lists of 1 to 1,000 passages in seeded order, each with a query of its own."""
    sizes = TextMaker(seed).shuffled(MIXED_SIZES)
    return [lognormal_list("mixed", size, MEAN_WORDS, SPREAD, seed + i) for i, size in enumerate(sizes)]


def short(seed: int) -> list[Workload]:
    """Lists of 1 to 10 documents of very different lengths, in seeded order, each with a query of its own."""
    sizes = TextMaker(seed).shuffled(SHORT_SIZES)
    return [lognormal_list("short", size, MEAN_WORDS, SHORT_SPREAD, seed + i) for i, size in enumerate(sizes)]


def _several(make: Callable[[int], Workload]) -> Callable[[int], list[Workload]]:
    return lambda seed: [make(seed + i) for i in range(N_LISTS)]


# Name -> seed -> lists, all different. The first list of a name is the one that its function above makes.
BY_NAME: Mapping[str, Callable[[int], list[Workload]]] = {
    "passages": _several(passages),
    "chunks": _several(chunks),
    "single": _several(single),
    "mixed": mixed,
    "short": short,
}


def from_collection(folder: Path) -> Mapping[str, Callable[[int], list[Workload]]]:
    """`BY_NAME` in the real text of a collection in BEIR form, whose lengths are its own.

    Queries are judged ones, documents are drawn from all. A chunk is whole documents until it has `CHUNK_WORDS` words.

    Raises:
        InvalidRequestError: it is not of that form.
        BenchError: from the functions, where the collection is too small for a list.
    """
    collection = load_collection(folder)
    texts = list(dict.fromkeys(filter(None, collection.corpus.texts)))  # the client sends equal texts once

    def lists(name: str, sizes: Sequence[int], pieces: Sequence[str], seed: int) -> list[Workload]:
        """A list of documents for each size, each with its query, drawn by one seed."""
        queries = list(collection.queries.values())
        maker = TextMaker(seed)
        chosen = maker.shuffled(range(len(queries)))
        return [
            Workload(name, queries[chosen[i % len(chosen)]], _draw(collection, name, pieces, size, maker), calls=1)
            for i, size in enumerate(sizes)
        ]

    return {
        "passages": lambda seed: lists("passages", [N_DOCUMENTS] * N_LISTS, texts, seed),
        "chunks": lambda seed: lists("chunks", [N_DOCUMENTS] * N_LISTS, list(_joined(texts)), seed),
        "single": lambda seed: lists("single", [1] * N_LISTS, texts, seed),
        "mixed": lambda seed: lists("mixed", TextMaker(seed).shuffled(MIXED_SIZES), texts, seed),
        "short": lambda seed: lists("short", TextMaker(seed).shuffled(SHORT_SIZES), texts, seed),
    }


def lognormal_lengths(n: int, *, mean: float, spread: float) -> list[int]:
    """The n middle quantiles of a log-normal distribution, ascending whole numbers from 1.

    Quantiles, not draws: every seed gives the same total and the same longest text. ``spread`` is the standard
    deviation of the logarithm.
    """
    logarithm = statistics.NormalDist(math.log(mean) - spread**2 / 2, spread)
    return [max(1, round(math.exp(logarithm.inv_cdf((i + 0.5) / n)))) for i in range(n)]


def token_statistics(workload: Workload, token_counts: Sequence[int]) -> TokenStatistics:
    """Describe a workload by the tokens of each of its pairs, special tokens included."""
    words = sum(len(f"{workload.query} {document}".split()) for document in workload.documents)
    return TokenStatistics(
        pairs=len(token_counts),
        total=sum(token_counts),
        mean=statistics.fmean(token_counts),
        median=statistics.median(token_counts),
        longest=max(token_counts),
        tokens_per_word=sum(token_counts) / words,
    )


def lognormal_list(name: str, size: int, mean: float, spread: float, seed: int) -> Workload:
    """A query with so many documents of log-normal length, in seeded order."""
    maker = TextMaker(seed)
    query = maker.words(QUERY_WORDS)
    lengths = maker.shuffled(lognormal_lengths(size, mean=mean, spread=spread))
    return Workload(name, " ".join(query), [maker.document(length, query) for length in lengths], calls=1)


def _draw(collection: Collection, name: str, pieces: Sequence[str], size: int, maker: TextMaker) -> list[str]:
    if size > len(pieces):
        raise BenchError(
            f"--data: {collection.name} has {len(pieces)} different texts for {name}, which wants {size}; give a "
            "larger collection, or leave --data out"
        )
    return [pieces[place] for place in maker.shuffled(range(len(pieces)))[:size]]


def _joined(texts: Sequence[str]) -> Iterator[str]:
    chunk: list[str] = []
    for text in texts:
        chunk += text.split()
        if len(chunk) >= CHUNK_WORDS:
            yield " ".join(chunk)
            chunk = []


def load_words() -> tuple[list[str], list[int]]:
    """Words, most frequent first, and the running sum of their counts."""
    text = resources.files("triton_rerank_bench").joinpath("words.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines()]
    return [word for word, _ in rows], list(itertools.accumulate(int(count) for _, count in rows))
