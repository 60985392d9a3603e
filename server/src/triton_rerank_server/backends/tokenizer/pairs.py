"""Query-document pairs -> model inputs: tokenises, cuts, pads. Knows nothing of Triton.

The text of a pair is tokenised apart from its special tokens, so that a query shared by a thousand documents is
tokenised once. The special tokens around them are read from the tokenizer file itself, by looking at one pair. A pair
is cut as ``longest_first`` does, the rule of sentence-transformers and TEI: one that fits is never cut. Where the model
has a prompt, its pieces stand in the places of the special tokens, and are never cut (prompt.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .prompt import Frame, Framer, Prompt, QueryTokens
from .texts import TextReader, TextTokens
from .tokenizer_file import SPECIAL, TEXT, PairError, Template, load_tokenizer, read_template

# of a request, as `PairTokenizer.limits` takes them
LIMITS = ("max_length", "max_query_tokens", "max_document_tokens", "instruction")

__all__ = ["LIMITS", "PairError", "PairLimits", "PairTensors", "PairTokenizer", "Prompt", "TextTokens", "longest_first"]


@dataclass(frozen=True)
class PairLimits:
    """How long one request's pairs may be, in tokens, and what stands around their texts.

    Attributes:
        max_length: of a pair, special tokens and prompt included.
        max_query_tokens: kept of a query, whatever the document's length; None means as ``longest_first`` does.
        max_document_tokens: kept of a document; the query may take what that leaves. None means as many as have room.
        frame: the model's prompt with the request's instruction; None for a model without.
    """

    max_length: int
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    frame: Frame | None = None

    def cut(self, query: TextTokens, document: TextTokens, n_special: int) -> tuple[int, int]:
        """How many tokens a pair keeps of its query and of its document."""
        room = self.max_length - n_special
        wanted = document.length if self.max_document_tokens is None else min(document.length, self.max_document_tokens)
        most = longest_first(query.length, wanted, room) if self.max_query_tokens is None else self.max_query_tokens
        kept = min(len(query.ids), most)
        return kept, min(len(document.ids), wanted, room - kept)


@dataclass(frozen=True)
class PairTensors:
    """What the encoder reads, right-padded, and what the caller is told.

    Attributes:
        input_ids: int64 ``(n, padded length)``.
        attention_mask: int64, same shape; 1 for tokens, 0 for padding.
        token_type_ids: int64, same shape.
        token_count: int32 ``(n, 1)``, special tokens included.
        truncated: bool ``(n, 1)``: a part of the pair is not read.
        query_cut: bool ``(n,)``: the query is that part, or one of them.
        document_cut: bool ``(n,)``, likewise.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int64]
    token_count: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    query_cut: npt.NDArray[np.bool_]
    document_cut: npt.NDArray[np.bool_]


class PairTokenizer:
    """A ``tokenizer.json`` with the lengths its model takes.

    Args:
        tokenizer_file: the model's ``tokenizer.json``; its own truncation and padding settings are ignored.
        max_length: tokens of the longest pair that the model takes.
        length_ladder: padded lengths, ascending, the last at least ``max_length``.
        pad_token_id: id that fills a row up.
        query_prompt: put before every query; prompt and query are one text, whose tokens are the query's.
        special_tokens_in_text: "text" reads special tokens that are written inside a text as text, so that no
            document can forge the border between query and document; "special" reads them as what they name, as
            Hugging Face does by default.
        prompt: of a causal reranker, instead of special tokens around the texts; None for a model without.

    Raises:
        PairError: the file is missing or broken, the ladder does not reach ``max_length``, or
            ``special_tokens_in_text`` is neither of its two values.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        *,
        max_length: int,
        length_ladder: Sequence[int],
        pad_token_id: int,
        query_prompt: str = "",
        special_tokens_in_text: str = TEXT,
        prompt: Prompt | None = None,
    ) -> None:
        if list(length_ladder) != sorted(set(length_ladder)) or not length_ladder or length_ladder[-1] < max_length:
            raise PairError(f"length_ladder {list(length_ladder)} must ascend and reach max_length {max_length}")
        self.max_length = max_length
        self.length_ladder = list(length_ladder)
        self.pad_token_id = pad_token_id
        self.query_prompt = query_prompt
        tokenizer = load_tokenizer(tokenizer_file, special_tokens_in_text)
        if not 0 <= pad_token_id < tokenizer.get_vocab_size():
            raise PairError(
                f"{tokenizer_file}: pad_token_id {pad_token_id} of config.pbtxt is outside this tokenizer's vocabulary "
                f"of {tokenizer.get_vocab_size()}; the config belongs to another model, export it again"
            )
        self.template = read_template(tokenizer)
        self.reader = TextReader(tokenizer, max_length)
        self._framer: Framer | None = None
        if prompt is not None:
            whole = load_tokenizer(tokenizer_file, SPECIAL)
            self._framer = Framer(prompt, _ids_by(whole), _ids_by(tokenizer), max_length)
            self.template = self._framer.frame().template
            if self.template.n_special + 2 > max_length:
                raise PairError(
                    f"max_length {max_length}: the model's prompt alone has {self.template.n_special} tokens"
                )

    @classmethod
    def of_parameters(cls, tokenizer_file: Path, parameters: Mapping[str, str]) -> PairTokenizer:
        """The tokenizer of a step, from the parameters of its config.pbtxt.

        Raises:
            PairError: as the constructor, or a parameter is missing.
        """
        try:
            lengths = {name: int(parameters[name]) for name in ("max_length", "pad_token_id")}
            ladder = [int(rung) for rung in parameters["length_ladder"].split(",")]
        except KeyError as exc:
            raise PairError(f"{tokenizer_file}: its config.pbtxt has no parameter {exc}; export it again") from exc
        except ValueError as exc:
            raise PairError(f"{tokenizer_file}: its config.pbtxt has a parameter that is no number ({exc})") from exc
        return cls(
            tokenizer_file,
            length_ladder=ladder,
            query_prompt=parameters.get("query_prompt", ""),
            special_tokens_in_text=parameters.get("special_tokens_in_text", TEXT),
            prompt=Prompt.of_parameters(parameters),
            **lengths,
        )

    def limits(
        self,
        max_length: object = None,
        max_query_tokens: object = None,
        max_document_tokens: object = None,
        instruction: object = None,
    ) -> PairLimits:
        """Check one request's parameters against the model's bounds.

        Args:
            max_length: tokens a pair; None means the model's own.
            max_query_tokens: tokens kept of the query, the prompt's included; None means all where the pair fits,
                and at least half of the room, as ``longest_first`` does.
            max_document_tokens: tokens kept of a document; None means as many as have room.
            instruction: what the model is told to look for; None means the prompt's own.

        Raises:
            PairError: not a whole number, or outside the bounds; or the model takes no such instruction.
        """
        frame = self._frame(instruction)
        n_special = (self.template if frame is None else frame.template).n_special
        length = self.max_length if max_length is None else max_length
        length = _whole("max_length", length, n_special + 2, self.max_length)
        most = length - n_special - 1  # one token is left to the other text
        kept = {"max_query_tokens": max_query_tokens, "max_document_tokens": max_document_tokens}
        bounds = {name: _whole(name, value, 1, most) for name, value in kept.items() if value is not None}
        return PairLimits(length, **bounds, frame=frame)

    def _frame(self, instruction: object) -> Frame | None:
        if self._framer is not None:
            return self._framer.frame(instruction)
        if instruction is not None:
            raise PairError("instruction: this model has no prompt that one could stand in; leave it out")
        return None

    def prompted(self, query: str, limits: PairLimits) -> str:
        """The text that is tokenised for a query."""
        if limits.frame is not None:
            return limits.frame.before + query + limits.frame.after
        return self.query_prompt + query

    def prompted_document(self, document: str) -> str:
        """The text that is tokenised for a document."""
        return document if self._framer is None else self._framer.prompt.before_document + document

    def tokenize(self, texts: Iterable[str]) -> dict[str, TextTokens]:
        """Tokenise each different text once; of a long one no more is read than its tokens need.

        Returns:
            Text -> its tokens, without special tokens, no longer than the model's ``max_length``.
        """
        return self.reader.read(texts)

    def assemble(
        self, queries: Sequence[TextTokens], documents: Sequence[TextTokens], limits: PairLimits
    ) -> PairTensors:
        """Cut, join and pad the pairs of one request.

        Args:
            queries: n tokenised queries with their prompt, one a pair.
            documents: n tokenised documents.
            limits: from `limits`.

        Returns:
            Tensors padded to the first rung of the ladder that holds the longest pair.
        """
        inside = _inside(queries, limits.frame)
        joined = [self._join(query, document, limits) for query, document in zip(inside, documents, strict=True)]
        counts = np.array([template.n_special + q + d for template, q, d in joined], dtype=np.int32)
        tensors = self._blank(counts)
        for row, (query, document, (template, q, d)) in enumerate(zip(inside, documents, joined, strict=True)):
            parts = (template.prefix, query.ids[:q], template.middle, document.ids[:d], template.suffix)
            start = 0
            for part, segment in zip(parts, template.segments, strict=True):
                end = start + len(part)
                tensors.input_ids[row, start:end] = part
                if segment:
                    tensors.token_type_ids[row, start:end] = segment
                start = end
            tensors.query_cut[row], tensors.document_cut[row] = q < query.length, d < document.length
        np.logical_or(tensors.query_cut, tensors.document_cut, out=tensors.truncated[:, 0])
        return tensors

    def _join(self, query: TextTokens, document: TextTokens, limits: PairLimits) -> tuple[Template, int, int]:
        """What stands around a pair, and how many tokens it keeps of its query and of its document."""
        if limits.frame is None:
            return self.template, *limits.cut(query, document, self.template.n_special)
        if isinstance(query, QueryTokens):
            q, d = limits.cut(query, document, query.template.n_special)
            if q == query.length:
                return query.template, q, d
        return limits.frame.template, *limits.cut(query, document, limits.frame.template.n_special)

    def encode(self, query: str, documents: Sequence[str], limits: PairLimits | None = None) -> PairTensors:
        """Tokenise and assemble one query with n documents; what a request does, without Triton."""
        limits = limits or self.limits()
        texts = [self.prompted_document(document) for document in documents]
        prompted = self.prompted(query, limits)
        tokens = self.tokenize([prompted, *texts])
        return self.assemble([tokens[prompted]] * len(texts), [tokens[text] for text in texts], limits)

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
            query_cut=np.zeros(len(counts), dtype=np.bool_),
            document_cut=np.zeros(len(counts), dtype=np.bool_),
        )


def _ids_by(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _inside(queries: Sequence[TextTokens], frame: Frame | None) -> Sequence[TextTokens]:
    """The queries without the prompt's words around them; each different one is looked at once."""
    if frame is None:
        return queries
    found = {id(query): frame.query(query) for query in {id(query): query for query in queries}.values()}
    return [found[id(query)] for query in queries]


def longest_first(query: int, document: int, room: int) -> int:
    """Tokens that a query keeps where a pair has ``room``: all if the pair fits, and at least half of the room.

    This is ``LongestFirst`` of the library tokenizers: the odd token goes to the longer text.
    """
    half = room // 2 + (room % 2 if query > document else 0)
    return min(query, max(half, room - document))


def _whole(name: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PairError(f"{name} is {value!r}: it must be a whole number from {least} to {most}")
    return value
