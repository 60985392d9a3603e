"""A model's ``tokenizer.json``: read it, and find the special tokens that it puts around a pair."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

TEXT, SPECIAL = "text", "special"  # what special tokens written inside a text are


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


def load_tokenizer(path: Path, special_tokens_in_text: str = TEXT) -> Tokenizer:
    """Read a ``tokenizer.json`` and switch its own truncation and padding off.

    Raises:
        PairError: missing, or not a tokenizer file; or ``special_tokens_in_text`` is unknown.
    """
    if special_tokens_in_text not in (TEXT, SPECIAL):
        raise PairError(f"special_tokens_in_text is {special_tokens_in_text!r}: it must be {TEXT!r} or {SPECIAL!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise PairError(f"{path}: cannot be read ({exc}); export the model again") from exc
    try:
        tokenizer = Tokenizer.from_str(text)
        if special_tokens_in_text == TEXT:
            tokenizer = special_as_text(tokenizer, text)
    except Exception as exc:
        raise PairError(f"{path}: not a tokenizer file ({exc}); export the model again") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_as_text(tokenizer: Tokenizer, text: str) -> Tokenizer:
    """A tokenizer for which no text makes a special token, but for the one of unknown words.

    The library's own switch ends the search for special tokens in a text. A vocabulary may make them all the same: that
    of every Unigram model has the pieces ``<s>`` and ``</s>``, SentencePiece's control symbols, which no text may make
    there. Where it does, they get names that no text has.

    Args:
        tokenizer: is switched, and given back where that is enough.
        text: of its ``tokenizer.json``.
    """
    tokenizer.encode_special_tokens = True
    special = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if not any(index in _made_by(tokenizer, name) for index, name in special.items()):
        return tokenizer
    mark = secrets.token_hex()
    content = json.loads(text, parse_float=lambda digits: mark + digits)  # the scores keep all their digits
    model = content["model"]
    unknown = model.get("unk_token") or model["vocab"][model["unk_id"]][0]
    names = {name: name + mark for name in special.values() if name != unknown}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    renamed = Tokenizer.from_str(re.sub(rf'"{mark}([^"]+)"', r"\1", json.dumps(content)))
    renamed.encode_special_tokens = True
    return renamed


def _made_by(tokenizer: Tokenizer, name: str) -> set[int]:
    """Ids that a special token's name makes, alone and between words."""
    texts = (name, f"a {name} a", f"a{name}a")  # one by one: a process that forks later must not have used threads
    return {index for text in texts for index in tokenizer.encode(text, add_special_tokens=False).ids}


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
