"""HTTP status and a provider's words -> error class, in one table. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from triton_rerank.errors import (
    ConfigurationError,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.hosted.dialect import field

_QUOTED_CHARACTERS = 200  # of a provider's message
_DOCUMENT_CHARACTERS = 80  # of a text that the caller sent, which providers like to echo

# (first status, last status, error, what to do); first match wins. 500 passes more often than not (the providers' own
# SDKs send it again), as a gateway's 502 and 504 do, Cloudflare's 520 to 527, and 408, where the provider never had the
# whole request; 529 is an overload. An empty account (402) is nothing that the same request
# will get past, but another scorer may answer it: so it is neither an overload nor a fault of the configuration.
TABLE: tuple[tuple[int, int, type[RerankError], str], ...] = (
    (300, 399, ConfigurationError, "check base_url: redirects are not followed, since the API key would go with them"),
    (400, 400, InvalidRequestError, "change the request"),
    (401, 401, ConfigurationError, "check the API key"),
    (402, 402, InferenceError, "check the account's balance"),
    (403, 403, ConfigurationError, "check the API key and what it may do"),
    (404, 405, ConfigurationError, "check the model and base_url"),
    (408, 408, ServerUnavailableError, "send it again"),
    (413, 413, RequestTooLargeError, "send fewer or shorter documents"),
    (422, 422, InvalidRequestError, "change the request"),
    (429, 429, OverloadedError, "send it again later, or raise the account's rate limit"),
    (500, 500, ServerUnavailableError, "send it again later"),
    (502, 504, ServerUnavailableError, "send it again later"),
    (520, 527, ServerUnavailableError, "send it again later"),
    (529, 529, OverloadedError, "send it again later"),
    (0, 999, InferenceError, "see the provider's status page"),
)


def error_for(
    status: int,
    body: bytes,
    *,
    who: str,
    secret: str,
    texts: Sequence[str],
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> RerankError:
    """Make the error for an answer that is no success.

    Args:
        status: of the answer.
        body: of the answer; its message is quoted.
        who: model and address, as messages name them.
        secret: API key, taken out of the quotation.
        texts: query and documents of the request; no more than 80 characters of one are quoted.
        retry_after_s: seconds that the provider asks to wait.
        request_id: id of the request.
    """
    error, advice = next((error, advice) for first, last, error, advice in TABLE if first <= status <= last)
    words = quote(_message(body).replace(secret, "…"), texts)
    wait = "" if retry_after_s is None else f", Retry-After {retry_after_s:g} s"
    return error(f"{who}: {words} [HTTP {status}{wait}]; {advice}", request_id=request_id, said=words)


def quote(message: str, texts: Sequence[str]) -> str:
    """A provider's message on one line, at most 200 characters of it, and 80 if it echoes what was sent."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(message.split()))
    bound = _DOCUMENT_CHARACTERS if _echoes(line[:_QUOTED_CHARACTERS], texts) else _QUOTED_CHARACTERS
    return line if len(line) <= bound else f"{line[: bound - 1]}…"


def _echoes(line: str, texts: Sequence[str]) -> bool:
    """True if more than 80 characters of the line can stand in one of the texts: then a piece of 41 every 40 does."""
    step = _DOCUMENT_CHARACTERS // 2
    pieces = [line[start : start + step + 1] for start in range(0, len(line) - step, step)]
    return bool(pieces) and any(piece in " ".join(text.split()) for text in texts for piece in pieces)


def _message(body: bytes) -> str:
    """What an error's body says, in any dialect that we know; of a validation error its words, not the input."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return body[: 10 * _QUOTED_CHARACTERS].decode("utf-8", "replace") or "no message"
    for names in (("message",), ("detail",), ("error", "message"), ("error",)):
        found = field(payload, *names)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, list):
            return "; ".join(str(field(item, "msg")) for item in found)
    return "no message"
