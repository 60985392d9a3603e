"""Query-document pairs -> model inputs: tokenises, cuts, pads. Knows nothing of Triton.

The text of a pair is tokenised apart from its special tokens, so that a query shared by a thousand documents is
tokenised once, and so that query and document are cut each by its own rule. The special tokens around them are
read from the tokenizer file itself, by looking at one pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer


class PairError(ValueError):
    """A request or a tokenizer file that cannot be used; the message goes to the caller as it is."""


@dataclass(frozen=True)
class Template:
    """Special tokens around a pair: ``prefix`` query ``middle`` document ``suffix``, ids and segment of each part."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    segments: tuple[int, int, int, int, int]  # of prefix, query, middle, document, suffix

    @property
    def n_special(self) -> int:
        """Special tokens in a pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class TextTokens:
    """One text: its first ``max_length`` token ids, and how many there were before the cut."""

    ids: list[int]
    length: int


@dataclass(frozen=True)
class PairLimits:
    """How long one request's pairs may be, in tokens; special tokens count for ``max_length``."""

    max_length: int
    max_query_tokens: int


@dataclass(frozen=True)
class PairTensors:
    """What the encoder reads, right-padded, and what the caller is told.

    Attributes:
        input_ids: int64 ``(n, padded length)``.
        attention_mask: int64, same shape; 1 for tokens, 0 for padding.
        token_type_ids: int64, same shape.
        token_count: int32 ``(n, 1)``, special tokens included.
        truncated: bool ``(n, 1)``.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int64]
    token_count: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


class PairTokenizer:
    """A ``tokenizer.json`` with the lengths its model takes.

    Args:
        tokenizer_file: the model's ``tokenizer.json``; its own truncation and padding settings are ignored.
        max_length: tokens of the longest pair that the model takes.
        length_ladder: padded lengths, ascending, the last at least ``max_length``.
        pad_token_id: id that fills a row up.

    Raises:
        PairError: the file is missing or broken, or the ladder does not reach ``max_length``.
    """

    def __init__(
        self, tokenizer_file: Path, *, max_length: int, length_ladder: Sequence[int], pad_token_id: int
    ) -> None:
        if list(length_ladder) != sorted(set(length_ladder)) or not length_ladder or length_ladder[-1] < max_length:
            raise PairError(f"length_ladder {list(length_ladder)} must ascend and reach max_length {max_length}")
        self.max_length = max_length
        self.length_ladder = list(length_ladder)
        self.pad_token_id = pad_token_id
        self._tokenizer = load_tokenizer(tokenizer_file)
        if not 0 <= pad_token_id < self._tokenizer.get_vocab_size():
            raise PairError(
                f"{tokenizer_file}: pad_token_id {pad_token_id} of config.pbtxt is outside this tokenizer's vocabulary "
                f"of {self._tokenizer.get_vocab_size()}; the config belongs to another model, export it again"
            )
        self.template = read_template(self._tokenizer)

    def limits(self, max_length: object = None, max_query_tokens: object = None) -> PairLimits:
        """Check one request's parameters against the model's bounds.

        Args:
            max_length: tokens a pair; None means the model's own.
            max_query_tokens: tokens kept of the query; None means half of ``max_length``.

        Raises:
            PairError: not a whole number, or outside the bounds.
        """
        n_special = self.template.n_special
        length = self.max_length if max_length is None else max_length
        length = _whole("max_length", length, n_special + 2, self.max_length)
        most = length - n_special - 1  # one token is left to the document
        cap = min(length // 2, most) if max_query_tokens is None else max_query_tokens
        return PairLimits(length, _whole("max_query_tokens", cap, 1, most))

    def tokenize(self, texts: Iterable[str]) -> dict[str, TextTokens]:
        """Tokenise each different text once, all in one parallel call.

        Returns:
            Text -> its tokens, without special tokens, no longer than the model's ``max_length``.
        """
        distinct = list(dict.fromkeys(texts))
        encodings = self._tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        tokens = {}
        for text, encoding in zip(distinct, encodings, strict=True):
            length = len(encoding)
            encoding.truncate(self.max_length)  # before .ids: the list of a huge document is never made
            tokens[text] = TextTokens(encoding.ids, length)
        return tokens

    def assemble(
        self, queries: Sequence[TextTokens], documents: Sequence[TextTokens], limits: PairLimits
    ) -> PairTensors:
        """Cut, join and pad the pairs of one request.

        Args:
            queries: n tokenised queries, one a pair.
            documents: n tokenised documents.
            limits: from `limits`.

        Returns:
            Tensors padded to the first rung of the ladder that holds the longest pair.
        """
        template = self.template
        budget = limits.max_length - template.n_special
        kept = [min(query.length, limits.max_query_tokens) for query in queries]
        rooms = [min(document.length, budget - n) for document, n in zip(documents, kept, strict=True)]
        counts = np.array([template.n_special + q + d for q, d in zip(kept, rooms, strict=True)], dtype=np.int32)
        tensors = self._blank(counts)
        for row, (query, document, q, d) in enumerate(zip(queries, documents, kept, rooms, strict=True)):
            parts = (template.prefix, query.ids[:q], template.middle, document.ids[:d], template.suffix)
            start = 0
            for part, segment in zip(parts, template.segments, strict=True):
                end = start + len(part)
                tensors.input_ids[row, start:end] = part
                if segment:
                    tensors.token_type_ids[row, start:end] = segment
                start = end
            tensors.truncated[row, 0] = q < query.length or d < document.length
        return tensors

    def encode(self, query: str, documents: Sequence[str], limits: PairLimits | None = None) -> PairTensors:
        """Tokenise and assemble one query with n documents; what a request does, without Triton."""
        tokens = self.tokenize([query, *documents])
        queries = [tokens[query]] * len(documents)
        return self.assemble(queries, [tokens[d] for d in documents], limits or self.limits())

    def _blank(self, counts: npt.NDArray[np.int32]) -> PairTensors:
        longest = int(counts.max())
        width = next(rung for rung in self.length_ladder if rung >= longest)
        shape = (len(counts), width)
        return PairTensors(
            input_ids=np.full(shape, self.pad_token_id, dtype=np.int64),
            attention_mask=(np.arange(width) < counts[:, None]).astype(np.int64),
            token_type_ids=np.zeros(shape, dtype=np.int64),
            token_count=counts[:, None],
            truncated=np.zeros((len(counts), 1), dtype=np.bool_),
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json`` and switch its own truncation and padding off.

    Raises:
        PairError: missing, or not a tokenizer file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise PairError(f"{path}: cannot be read ({exc}); export the model again") from exc
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as exc:
        raise PairError(f"{path}: not a tokenizer file ({exc}); export the model again") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_template(tokenizer: Tokenizer) -> Template:
    """Find the special tokens that this tokenizer puts around a pair, by looking at one.

    Raises:
        PairError: the tokenizer puts none after the document, or joins pairs in another order.
    """
    pair = tokenizer.encode("a", "a a", add_special_tokens=True)
    owner = pair.sequence_ids  # None for special tokens, 0 for the query, 1 for the document
    places = {part: [i for i, o in enumerate(owner) if o == part] for part in (0, 1)}
    if not places[0] or not places[1] or places[0][-1] >= places[1][0]:
        raise PairError(f"this tokenizer encodes a pair as {pair.tokens}: no query followed by a document")
    first, last = (places[0][0], places[1][0]), (places[0][-1], places[1][-1])
    segment = dict(enumerate(pair.type_ids))
    prefix, middle, suffix = pair.ids[: first[0]], pair.ids[last[0] + 1 : first[1]], pair.ids[last[1] + 1 :]
    segments = (
        segment.get(0, 0),
        segment[first[0]],
        segment[last[0] + 1] if middle else 0,
        segment[first[1]],
        segment[len(pair.ids) - 1],
    )
    return Template(prefix, middle, suffix, segments)


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PairError(f"{name} is {value!r}: it must be a whole number from {least} to {most}")
    return value
