"""The prompt of a causal reranker: texts around query and document, and their tokens. Knows nothing of Triton.

What is special in a prompt stands apart from what a caller wrote: ``prefix``, ``middle`` and ``suffix`` are read with
their special tokens, the texts with query, document and instruction without. A text is tokenised together with the
words around it, so that the ids are those of the whole prompt: Qwen's "?" and a line break after it are one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

from .texts import FIRST_READ, TextTokens
from .tokenizer_file import PairError, Template

QUERY, DOCUMENT, INSTRUCTION = "{query}", "{document}", "{instruction}"
_PREFIX = "prompt_"  # of the parameters' names in config.pbtxt
_REMEMBERED = 64  # instructions

Tokenise = Callable[[str], list[int]]


@dataclass(frozen=True)
class Prompt:
    """The texts of a prompt, in their order; "" where there is none.

    Attributes:
        prefix: with special tokens.
        query: holds ``{query}`` and, if the prompt takes one, ``{instruction}``.
        middle: with special tokens.
        document: holds ``{document}``.
        suffix: with special tokens; never cut.
        bare_query: instead of ``query`` where there is no instruction.
        instruction: the model's own, where a request has none.
    """

    prefix: str
    query: str
    middle: str
    document: str
    suffix: str
    bare_query: str = ""
    instruction: str = ""

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, str]) -> Prompt | None:
        """Of config.pbtxt; None for a model that has none.

        Raises:
            PairError: a part is missing, or has no place for its text.
        """
        found = {name: parameters[key] for name, key in _KEYS.items() if key in parameters}
        if not found.keys() - {"instruction"}:
            return None
        prompt = cls(**{**dict.fromkeys(_KEYS, ""), **found})
        queries = [text for text in (prompt.query, prompt.bare_query) if text]
        ends = prompt.document.endswith(DOCUMENT) and prompt.document.count(DOCUMENT) == 1
        if not ends or not queries or any(text.count(QUERY) != 1 for text in queries):
            raise PairError(
                f"the prompt in config.pbtxt has no place for its texts: {_KEYS['query']} must hold {QUERY} once, and "
                f"{_KEYS['document']} end with {DOCUMENT}; export the model again"
            )
        return prompt

    @property
    def parameters(self) -> dict[str, str]:
        """For config.pbtxt; what is empty is left out."""
        return {_KEYS[name]: text for name, text in asdict(self).items() if text}

    def around_query(self, instruction: str) -> tuple[str, str]:
        """The texts before and behind the query."""
        before, _, after = (self.query if instruction or not self.bare_query else self.bare_query).partition(QUERY)
        return before.replace(INSTRUCTION, instruction), after.replace(INSTRUCTION, instruction)

    @property
    def before_document(self) -> str:
        """The text that is tokenised together with a document."""
        return self.document.partition(DOCUMENT)[0]


_KEYS = {
    field.name: field.name if field.name == "instruction" else _PREFIX + field.name for field in fields(Prompt)
}  # of a part -> its parameter


@dataclass(frozen=True)
class QueryTokens(TextTokens):
    """A query inside of its prompt.

    Attributes:
        template: what stands around its pairs where it is not cut: its end may be one token with what follows it.
    """

    template: Template


@dataclass(frozen=True)
class Frame:
    """The prompt of one request, its instruction filled in.

    Attributes:
        before: text that is tokenised together with the query, in front of it.
        after: and behind it.
        head: ids of ``before``.
        tail: ids of ``after``, where the query is cut.
        template: prefix and ``head``, ``tail`` and middle, suffix.
    """

    before: str
    after: str
    head: list[int]
    tail: list[int]
    template: Template

    def query(self, text: TextTokens) -> QueryTokens:
        """Find the query in the tokens of ``before``, query and ``after``."""
        whole = text.length == len(text.ids)
        start = _shared(self.head, text.ids)
        end = len(text.ids) - (_shared(self.tail[::-1], text.ids[start:][::-1]) if whole else 0)
        tail, middle = text.ids[end:] if whole else self.tail, self.template.middle[len(self.tail) :]
        template = replace(self.template, middle=[*tail, *middle])
        return QueryTokens(text.ids[start:end], text.length - start - (len(text.ids) - end), template)


class Framer:
    """Makes the frames of a model's prompt.

    Args:
        prompt: of the model.
        special: gives the ids of a text in which special tokens are special.
        plain: gives those of a text in which they are as in any query.
        max_length: tokens of the longest pair.
    """

    def __init__(self, prompt: Prompt, special: Tokenise, plain: Tokenise, max_length: int) -> None:
        self.prompt = prompt
        self._fixed = [special(text) for text in (prompt.prefix, prompt.middle, prompt.suffix)]
        self._plain = plain
        self._max_length = max_length
        self._remembered = lru_cache(_REMEMBERED)(self._frame)

    def frame(self, instruction: object = None) -> Frame:
        """The prompt with a request's instruction, or with the model's own.

        Raises:
            PairError: it is no text, is blank, has no place in the prompt, or leaves none for a pair.
        """
        if instruction is None:
            return self._remembered(self.prompt.instruction)
        if not isinstance(instruction, str) or not instruction.strip():
            raise PairError(f"instruction is {instruction!r:.80}: it must be a text that is not blank")
        if INSTRUCTION not in self.prompt.query:
            raise PairError("instruction: the prompt of this model has no place for one; leave it out")
        if len(instruction) > FIRST_READ * self._max_length:
            raise PairError(
                f"instruction has {len(instruction)} characters: the bound is {FIRST_READ * self._max_length}"
            )
        frame = self._remembered(instruction)
        if frame.template.n_special + 2 > self._max_length:
            raise PairError(
                f"instruction: with it the prompt has {frame.template.n_special} tokens; the bound is "
                f"{self._max_length - 2}, which leaves one to each text"
            )
        return frame

    def _frame(self, instruction: str) -> Frame:
        before, after = self.prompt.around_query(instruction)
        lead = len(before) - len(before.rstrip())  # a white space belongs to the word behind it
        head = self._plain(before[: len(before) - lead])
        tail = self._plain(after)
        prefix, middle, suffix = self._fixed
        template = Template([*prefix, *head], [*tail, *middle], suffix, (0, 0, 0, 0, 0))
        return Frame(before, after, head, tail, template)


def _shared(some: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(some), len(others)))
