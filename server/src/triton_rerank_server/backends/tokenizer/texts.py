"""Texts -> tokens; of a long text no more is read than its tokens need. Knows nothing of Triton.

Tokenising what is cut off costs as much as tokenising what is kept: 16 MiB take a minute and gigabytes. So the first
``FIRST_READ`` characters for each token of ``max_length`` are tokenised, and more where that gives too few tokens.

What stands behind a cut can only change tokens near it: no word, added token or composed character reaches across a
white space, and none but a giant one is longer than ``MARGIN``. A read counts only if all tokens that are kept, and one
more, end that far before the cut. So ids and ``truncated`` are those of the whole text, but for two kinds of text:

- one whose first `longest_read` characters give no more than ``max_length`` tokens (a hundred thousand spaces, or words
  of a thousand letters): what stands behind them is not read, and the text counts as cut;
- more than ``MARGIN`` characters without any white space that a Unigram vocabulary can split in several equally good
  ways (one letter a thousand times): the ids are those of what was read.
"""

from __future__ import annotations

import codecs
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
        most = 4 * (self._longest_read + 1)  # one character more than is read: so a cut is seen
        try:
            return codecs.utf_8_decode(value[:most], "strict", len(value) <= most)[0]
        except UnicodeDecodeError as exc:
            raise PairError(f"{name} is not UTF-8: {exc.reason} at byte {exc.start}; send UTF-8 text") from exc

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
            tokens.update(self._read_long([text for text in tokens if len(text) > self._first_read]))
        return tokens

    def _read_long(self, texts: list[str]) -> Iterator[tuple[str, TextTokens]]:
        for size in (self._first_read, self._longest_read):
            begins = [text[:size] for text in texts]
            encodings = self._tokenizer.encode_batch(begins, add_special_tokens=False)  # with the tokens' places
            missing = []
            for text, encoding in zip(texts, encodings, strict=True):
                if len(text) <= size:
                    yield text, self._whole(encoding)
                elif size == self._longest_read or self._is_enough(encoding, size):
                    yield text, self._part(encoding)
                else:
                    missing.append(text)
            texts = missing

    def _is_enough(self, encoding: Encoding, size: int) -> bool:
        """More than ``max_length`` tokens end so far before the cut that nothing behind it changes them."""
        return len(encoding) > self._max_length and encoding.token_to_chars(self._max_length)[1] <= size - MARGIN

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
