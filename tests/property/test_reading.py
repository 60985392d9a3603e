"""A long text is cut before it is tokenised, and nothing that is kept shows it."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tokenizer_kinds import ADDED, KINDS, make
from tokenizers import Tokenizer

from triton_rerank_server.backends.tokenizer.pairs import PairLimits, TextTokens
from triton_rerank_server.backends.tokenizer.texts import FIRST_READ, MARGIN, TextReader, longest_read
from triton_rerank_server.backends.tokenizer.tokenizer_file import PairError

MAX_LENGTH = 16
FIRST = FIRST_READ * MAX_LENGTH + MARGIN
LONG = longest_read(MAX_LENGTH)
FRAGMENTS = [
    "heap sort ", "a binary heap keeps its largest element at the root. ", " ", "  ", "\n", "\t \r\n", "\u3000",
    "x", "heap", "QUJDRmFzZGY3+9/", "0123456789", "-", "...", "東京都", "ทดสอบ", "🍚", "👩‍👩‍👧", "e\u0301",
    "\u0301", "\0", "\u200d", "ﷺ", "ﬁ", "Å", "[SEP]", "</s>", "<mask> ", " <left>", "<right> ", *ADDED,
]  # fmt: skip
PARTS = st.tuples(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 400))
TEXTS = st.lists(PARTS, min_size=1, max_size=6).map(lambda parts: "".join(text * n for text, n in parts)[:4000])


@cache
def tokenizer(kind: str) -> Tokenizer:
    made = make(kind)
    made.encode_special_tokens = True
    return made


@cache
def reader(kind: str) -> TextReader:
    """It asks the tokenizer what it makes of long runs when it is made."""
    return TextReader(tokenizer(kind), MAX_LENGTH)


@cache
def longer_reader(kind: str) -> TextReader:
    return TextReader(tokenizer(kind), 100)


@cache
def library(kind: str) -> Tokenizer:
    """One whose truncation may be set."""
    return Tokenizer.from_str(tokenizer(kind).to_str())


def seen(tokens: TextTokens) -> tuple[list[int], bool]:
    """Ids, and whether any were cut off."""
    return tokens.ids, tokens.length > len(tokens.ids)


def whole(kind: str, text: str) -> tuple[list[int], bool]:
    ids = tokenizer(kind).encode(text, add_special_tokens=False).ids
    return ids[:MAX_LENGTH], len(ids) > MAX_LENGTH


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(text=TEXTS)
@example(text=" " * 3000 + "heap")
@example(text="heap " + "\u0301" * 3000)
@example(text="heap " * 2 + "x" * 3000 + " sort")
@example(text="x" * (FIRST - 4) + "new york heap")
@example(text="x\u0301\u0301\u0301" * 400)
@example(text=("heap " * FIRST)[: FIRST - 3] + "new york heap")
@example(text="heap sort" + " " * (FIRST - 14) + "<left>")
@example(text="heap sort" + " " * 3000 + "<left>")
def test_ids_and_truncated_are_those_of_the_whole_text(kind: str, text: str) -> None:
    (tokens,) = reader(kind).read([text]).values()
    assert seen(tokens) == whole(kind, text)


class Counting:
    """A tokenizer that says how many characters it is given."""

    def __init__(self, kind: str) -> None:
        self._tokenizer, self.characters = tokenizer(kind), 0

    def encode(self, text: str, **options: bool) -> object:
        return self._tokenizer.encode(text, **options)

    def encode_batch(self, texts: list[str], **options: bool) -> object:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch(texts, **options)

    def encode_batch_fast(self, texts: list[str], **options: bool) -> object:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_no_text_is_read_beyond_the_bound_and_ordinary_ones_are_read_once(kind: str, fragment: str) -> None:
    text = (fragment * 200_000)[:200_000]
    counting = Counting(kind)
    text_reader = TextReader(counting, MAX_LENGTH)
    counting.characters = 0  # of trying what the tokenizer makes of long runs
    (tokens,) = text_reader.read([text]).values()
    assert counting.characters in (FIRST, FIRST + LONG) or (
        counting.characters <= FIRST + MARGIN and seen(tokens) == whole(kind, text)  # shortened
    )
    assert tokens.length > len(tokens.ids) or counting.characters < FIRST + LONG  # cut, and it says so
    if len(fragment) > 20:
        assert counting.characters == FIRST


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        " " * 3 * LONG + "heap",
        "heap" + "\n \t\u3000" * LONG + "sort heap",
        ("heap" + " " * 2000) * 100,
        ("aB1" * 2000 + " heap ") * 100,
        (" " * 900 + "zip" * 300) * 300,
        "x" * 2 * LONG + "-" + "y" * 2 * LONG + "東京 sort",
        "é" * 50 + "x" * 2 * LONG + "é heap",
        "heap " * 5 + "\r\n" * 3 * LONG,
        "\u200b" * 3 * LONG + "heap" + "\0" * 3 * LONG + " sort",
    ],
)
def test_long_runs_are_read_as_in_the_whole_text(kind: str, text: str) -> None:
    """Also what the tokenizer step decodes of it, by windows."""
    for begin in (text, reader(kind).decode(text.encode(), "document")):
        (tokens,) = reader(kind).read([begin]).values()
        assert seen(tokens) == whole(kind, text)


def test_what_stands_behind_the_longest_read_counts_as_cut() -> None:
    """The one way in which a text may differ from the whole: giant words of other letters, one unknown token each."""
    (tokens,) = TextReader(tokenizer("WordPiece"), MAX_LENGTH).read(["é" * LONG + " heap"]).values()
    assert seen(tokens) == (tokenizer("WordPiece").encode("é" * LONG, add_special_tokens=False).ids, True)


def test_where_a_text_is_not_utf8_is_told_whatever_window_it_is_in() -> None:
    decode = reader("WordPiece").decode
    for before in ("", "heap ", "東" * 2 * LONG, " " * 3 * LONG):
        value = before.encode() + b"\xff heap"
        if len(before) < LONG or before[0] == " ":
            with pytest.raises(PairError, match=f"invalid start byte at byte {len(before.encode())};"):
                decode(value, "document")
        else:
            assert decode(value, "document") == "東" * (LONG + 1)


LENGTHS = st.integers(0, 40)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
@settings(max_examples=300)
@given(query=LENGTHS, document=LENGTHS, max_length=st.integers(6, 70))
def test_pairs_are_cut_as_the_library_cuts_them(kind: str, query: int, document: int, max_length: int) -> None:
    """``longest_first`` of tokenizers: what transformers, sentence-transformers and TEI use."""
    theirs = library(kind)
    n_special = theirs.num_special_tokens_to_add(is_pair=True)
    theirs.enable_truncation(max_length, strategy="longest_first")
    texts = [" ".join([word] * n) for word, n in (("heap", query), ("sort", document))]
    owners = theirs.encode(*texts).sequence_ids
    tokens = longer_reader(kind).read(texts)
    ours = PairLimits(max_length).cut(tokens[texts[0]], tokens[texts[1]], n_special)
    assert ours == (owners.count(0), owners.count(1))
    assert sum(ours) == min(sum(len(tokens[text].ids) for text in texts), max_length - n_special)
