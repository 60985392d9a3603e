"""Texts -> tokens; of a long text no more is read than its tokens need. Knows nothing of Triton.

Tokenising what is cut off costs as much as tokenising what is kept: 16 MiB take a minute and gigabytes. So the first
``FIRST_READ`` characters for each token of ``max_length`` are tokenised, and more where that gives too few tokens.

What stands behind a cut can only change tokens near it: no word, added token or composed character reaches across a
white space, and none but a giant one is longer than ``MARGIN``. A read counts only if all tokens that are kept, and one
more, end that far before the cut. Long runs of white space, and of letters and digits, are shortened before, where the
tokenizer makes the same of a short one: nothing of a thousand spaces, one unknown word of a thousand letters. So ids
and ``truncated`` are those of the whole text, but for two kinds of text:

- one whose first `longest_read` characters, such runs shortened, give no more than ``max_length`` tokens (hundreds of
  words of more than 64 letters each): what stands behind them is not read, and the text counts as cut;
- more than ``MARGIN`` characters without any white space that a Unigram vocabulary can split in several equally good
  ways (one letter a thousand times): the ids are those of what was read.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tokenizers import Encoding, Tokenizer

from .tokenizer_file import PairError

MAX_TEXT_BYTES = 16 * 1024 * 1024  # of one query or document; contract.MAX_TEXT_BYTES of the client
FIRST_READ = 8  # characters a token; ordinary text has four or five
MARGIN = 256  # characters before a cut
_MOST_READ = 64  # characters a token
_MOST_READ_OF_SHORT = 32 * 1024  # characters, where max_length is small
_MANY = sys.maxsize  # tokens of a text that was not read to its end
_BLANKS = " \t\n\r\v\f\xa0\u3000\0\xad\u200b\u200d\u2060\ufeff"  # and what is nothing to BERT
_KEPT_OF_WORD = 128  # characters; WordPiece makes one unknown token of more than 100
_LETTERS = "A-Za-z0-9"
_WORDS = ("aB1", "a", "Z", "0")  # of these


@dataclass(frozen=True)
class TextTokens:
    """One text.

    Attributes:
        ids: its tokens, the first ``max_length`` at most.
        length: how many it has; more than ``ids`` where it was not read to its end.
    """

    ids: list[int]
    length: int


class TextReader:
    """Tokenises texts as far as a model can use them.

    Args:
        tokenizer: without truncation and padding.
        max_length: tokens of the longest pair.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._first_read = FIRST_READ * max_length + MARGIN
        self._longest_read = longest_read(max_length)
        self._runs = _runs_that_shorten(tokenizer)
        self._has_giants = self._runs is not None and _LETTERS in self._runs.pattern

    def decode(self, value: bytes, name: str) -> str:
        """As much of a text as may be read.

        Args:
            value: UTF-8; what stands behind the longest read is not looked at.
            name: of the tensor.

        Raises:
            PairError: more than ``MAX_TEXT_BYTES``, or not UTF-8.
        """
        if len(value) > MAX_TEXT_BYTES:
            raise PairError(
                f"{name} has {len(value)} bytes: the bound is {MAX_TEXT_BYTES}; the model reads no more than its first "
                f"{self._longest_read} characters, so cut it"
            )
        if len(value) > self._longest_read:
            return self._begin(self._decoded(value, name))
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise _not_utf8(name, exc) from exc

    def _decoded(self, value: bytes, name: str) -> Iterator[str]:
        size = self._longest_read + 1
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(value), size):
            before = start - len(decoder.getstate()[0])
            try:
                yield decoder.decode(value[start : start + size], start + size >= len(value))
            except UnicodeDecodeError as exc:
                raise _not_utf8(name, exc, before) from exc

    def _begin(self, windows: Iterable[str]) -> str:
        """As much of a text as is read, and one character more where it goes on; no long run in it that may be short.

        Where one window alone has words for all tokens, nothing is looked for.
        """
        begin = ""
        for window in windows:
            if self._runs is None or len(window.split(None, self._max_length)) > self._max_length:
                begin += window
            else:  # with what may be the same run
                begin = begin[:-MARGIN] + self._runs.sub(_shortened, begin[-MARGIN:] + window)
            if len(begin) > self._longest_read:
                break
        return begin[: self._longest_read + 1]

    def read(self, texts: Iterable[str]) -> dict[str, TextTokens]:
        """Tokenise each different text once, all in one parallel call, or in two or three where some are long.

        Returns:
            Text -> its tokens, without special tokens.
        """
        tokens: dict[str, TextTokens] = dict.fromkeys(texts, TextTokens([], 0))
        short = [text for text in tokens if len(text) <= self._first_read]
        encodings = self._tokenizer.encode_batch_fast(short, add_special_tokens=False)
        tokens.update((text, self._whole(encoding)) for text, encoding in zip(short, encodings, strict=True))
        if len(short) < len(tokens):
            long = [text for text in tokens if len(text) > self._first_read]
            tokens.update(self._read_long({text: self._begin_of(text) for text in long}))
        return tokens

    def _begin_of(self, text: str) -> str:
        size = self._longest_read + 1
        windows = (text[start : start + size] for start in range(0, len(text), size))
        return text if len(text) < size else self._begin(windows)

    def _read_long(self, begins: dict[str, str]) -> Iterator[tuple[str, TextTokens]]:
        for size in (self._first_read, self._longest_read):
            reads = [begin[:size] for begin in begins.values()]
            encodings = self._tokenizer.encode_batch(reads, add_special_tokens=False)  # with the tokens' places
            missing = {}
            for (text, begin), encoding in zip(begins.items(), encodings, strict=True):
                if len(begin) <= size:
                    yield text, self._whole(encoding)
                elif size == self._longest_read or self._is_enough(encoding, begin[:size]):
                    yield text, self._part(encoding)
                else:
                    missing[text] = begin
            begins = missing

    def _is_enough(self, encoding: Encoding, read: str) -> bool:
        """More than ``max_length`` tokens end so far before the cut that nothing behind it changes them.

        White space that goes on to the cut may be part of an added token behind it, however much it is. Where giant
        words are one unknown token, a word that goes on to the cut may become one: accents do not count.
        """
        last, end = self._max_length, len(read) - MARGIN
        if len(encoding) <= last or encoding.token_to_chars(last)[1] > end:
            return False
        if read[encoding.token_to_chars(last)[0] : end].isspace():
            return False
        return not self._has_giants or encoding.token_to_word(last) != encoding.token_to_word(len(encoding) - 1)

    def _whole(self, encoding: Encoding) -> TextTokens:
        length = len(encoding)
        encoding.truncate(self._max_length)  # before .ids: the list of all is never made
        return TextTokens(encoding.ids, length)

    def _part(self, encoding: Encoding) -> TextTokens:
        begin = self._whole(encoding)
        return replace(begin, length=_MANY if begin.length > self._max_length else begin.length + 1)


def longest_read(max_length: int) -> int:
    """Characters of a text that are read at most, whatever it holds: what bounds one execution's work."""
    return max(_MOST_READ * max_length, _MOST_READ_OF_SHORT)


def _not_utf8(name: str, exc: UnicodeDecodeError, before: int = 0) -> PairError:
    return PairError(f"{name} is not UTF-8: {exc.reason} at byte {before + exc.start}; send UTF-8 text")


def _shortened(run: re.Match[str]) -> str:
    kept = 1 if run[0].isspace() else _KEPT_OF_WORD // 2
    return run[0][:kept] + run[0][-kept:]


def _runs_that_shorten(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Runs longer than ``MARGIN`` of which this tokenizer makes the same when they are shortened; found by trying."""

    def is_same(characters: str, kept: int, *forms: str) -> bool:
        """One by one: the library's threads are not begun here, since a process may fork after it has loaded."""
        short, long = ([form.replace("*", (characters * 3 * MARGIN)[:n]) for form in forms] for n in (kept, 3 * MARGIN))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in short + long]
        return ids[: len(forms)] == ids[len(forms) :]

    kinds: list[str] = []  # characters that may stand in one run
    for space in _BLANKS:
        fits = [kind for kind in [*kinds, ""] if is_same(kind + space, 2, "*heap", "heap*", "heap*sort")]
        kinds = [kind for kind in kinds if kind not in fits[:1]] + [kind + space for kind in fits[:1]]
    patterns = [re.escape(kind) for kind in kinds]
    if all(is_same(word, _KEPT_OF_WORD, "*", "* heap", "heap *", "heap * sort") for word in _WORDS):
        patterns.append(_LETTERS)
    return re.compile("|".join(f"[{pattern}]{{{MARGIN + 1},}}" for pattern in patterns)) if patterns else None
