"""The best chunks in a token budget, with citations that lead back to them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triton_rerank import InvalidRequestError
from triton_rerank_retrieval.candidates import Candidate, LeftOut

_CITATION = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")


@dataclass(frozen=True)
class Context:
    """What a language model is given to read.

    Attributes:
        text: the passages, each behind its number: ``[1] …``.
        passages: the candidates; number 1 is the first.
        tokens: of ``text``, by the counter that was given.
        left_out: candidates that did not fit, with how long they are.
    """

    text: str
    passages: tuple[Candidate[Any], ...]
    tokens: int
    left_out: tuple[LeftOut[Any], ...]


@dataclass(frozen=True)
class Citations:
    """What an answer cites.

    Attributes:
        cited: passages that it names, each once, in the answer's order.
        invented: numbers that no passage has.
    """

    cited: tuple[Candidate[Any], ...]
    invented: tuple[int, ...]


def estimate_tokens(text: str) -> int:
    """About the tokens of a text, from its bytes: one for four, a little high for English."""
    return len(text.encode()) // 4 + 1


def pack(
    candidates: Sequence[Candidate[Any]],
    *,
    budget: int,
    count_tokens: Callable[[str], int] = estimate_tokens,
    order: Literal["rank", "reading"] = "rank",
    position: Callable[[Any], Any] | None = None,
) -> Context:
    """Pack the best candidates that fit. A text is never cut: one that does not fit makes way for the next.

    Args:
        candidates: best first.
        budget: most tokens of the whole text, at least 1.
        count_tokens: of a text, by the tokenizer of the model that will read it.
        order: "rank", or "reading": as the documents stand in their sources.
        position: document -> what to sort by in reading order, such as ``(source, chunk)``.

    Raises:
        InvalidRequestError: no budget, or reading order without positions.
    """
    if budget < 1:
        raise InvalidRequestError(f"budget is {budget}: it must be at least 1 token")
    if order == "reading" and position is None:
        raise InvalidRequestError("reading order needs position=, a function of the document to sort by")
    taken, left_out, used = list[Candidate[Any]](), list[LeftOut[Any]](), 0
    for candidate in candidates:
        tokens = count_tokens(_passage(len(taken) + 1, candidate))
        if used + tokens > budget:
            left_out.append(LeftOut(candidate, "context", f"{tokens} tokens, {budget - used} were left"))
        else:
            taken.append(candidate)
            used += tokens
    if order == "reading" and position is not None:
        taken.sort(key=lambda one: position(one.document))
    text = "".join(_passage(number, one) for number, one in enumerate(taken, 1)).rstrip()
    return Context(text, tuple(taken), used, tuple(left_out))


def citations(answer: str, context: Context) -> Citations:
    """Which passages an answer cites as ``[1]`` or ``[1, 3]``, and which numbers it made up."""
    found = [int(number) for group in _CITATION.findall(answer) for number in group.split(",")]
    numbers = list(dict.fromkeys(found))
    known = [number for number in numbers if 1 <= number <= len(context.passages)]
    return Citations(
        tuple(context.passages[number - 1] for number in known),
        tuple(number for number in numbers if number not in known),
    )


def _passage(number: int, candidate: Candidate[Any]) -> str:
    return f"[{number}] {candidate.text}\n\n"
