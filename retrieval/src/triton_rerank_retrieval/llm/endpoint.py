"""One question to a chat endpoint in OpenAI's form, within a deadline; its errors become the client's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triton_rerank import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    OverloadedError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.extending import Call
from triton_rerank_retrieval.context import estimate_tokens
from triton_rerank_retrieval.first_stages.embedder import Embedder

try:
    import openai
except ImportError as exc:
    raise ConfigurationError("this needs the SDK: pip install 'triton-rerank-retrieval[llm]'") from exc

NO_KEY = "none"  # local endpoints ask for none, and the SDK insists on one
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: of the first choice.
        tokens: prompt and completion together, as the endpoint counts; 0 where it does not.
        cut: the answer ended at the endpoint's limit.
    """

    text: str
    tokens: int
    cut: bool


class Endpoint:
    """A model behind an endpoint in OpenAI's form. Safe to share between threads and event loops.

    Args:
        model: the endpoint's name of it.
        base_url: such as ``http://127.0.0.1:8000/v1``; None is OpenAI's own.
        api_key: None reads ``OPENAI_API_KEY``; with a ``base_url``, none is needed.
        structured: ask for JSON by a schema; an endpoint that refuses that is asked without from then on.
        retries: most further attempts after a fault that may pass, within the deadline.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        structured: bool = True,
        retries: int = 1,
    ) -> None:
        self.model = model
        self._structured = structured
        try:
            key = api_key if api_key or base_url is None else NO_KEY
            self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries)
        except openai.OpenAIError as exc:
            raise ConfigurationError(f"the endpoint of {model[:80]} cannot be used: {exc}") from exc

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r})"  # never the key

    async def ask(self, messages: Messages, call: Call, *, schema: Mapping[str, Any] | None = None) -> Reply:
        """One answer at temperature 0.

        Raises:
            InvalidResponseError: no answer in the endpoint's form, an empty one, or a refusal.
            RerankError: by the endpoint's status.
        """
        left_s = call.deadline.left_s(doing=f"{self.model} was asked")
        try:
            return await call.runtime.in_thread(lambda: self._ask(messages, left_s, schema), timeout_s=left_s)
        except RerankError:
            raise
        except TimeoutError as exc:
            raise DeadlineExceededError(f"{self.model} did not answer within {left_s:.3g} s; raise timeout_s") from exc

    def stream(self, messages: Messages, *, timeout_s: float) -> Iterator[str]:
        """The answer piece by piece; errors as for `ask`."""
        with _translated(self.model):
            for part in self._client.chat.completions.create(
                model=self.model, messages=_plain(messages), temperature=0, stream=True, timeout=timeout_s
            ):
                if part.choices and part.choices[0].delta.content:
                    yield part.choices[0].delta.content

    def embed(self, texts: list[str]) -> Any:
        """Vectors of texts, float32 ``(n, dimensions)``."""
        with _translated(self.model):
            answer = self._client.embeddings.create(model=self.model, input=texts, encoding_format="float")
            rows = sorted(_of(answer, "data", self.model), key=lambda row: row.index)
            return np.array([row.embedding for row in rows], np.float32)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, messages: Messages, timeout_s: float, schema: Mapping[str, Any] | None) -> Reply:
        form: Any = openai.NOT_GIVEN
        if schema is not None and self._structured:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        try:
            with _translated(self.model):
                answer = self._client.chat.completions.create(
                    model=self.model, messages=_plain(messages), temperature=0, timeout=timeout_s, response_format=form
                )
        except InvalidRequestError:
            if form is openai.NOT_GIVEN:
                raise
            self._structured = False  # it may not know the form: once more without
            return self._ask(messages, timeout_s, None)
        return _reply(answer, self.model)


def openai_embedder(
    model: str, *, base_url: str | None = None, api_key: str | None = None, cache: str | Path | None = None
) -> Embedder:
    """An embedder behind an HTTP endpoint in OpenAI's form; arguments as for `Endpoint` and `Embedder`."""
    endpoint = Endpoint(model, base_url=base_url, api_key=api_key)
    return Embedder(endpoint.embed, model=model, cache=cache)


def cut_text(text: str, max_tokens: int, count_tokens: Callable[[str], int] = estimate_tokens) -> tuple[str, bool]:
    """The longest beginning of a text within a number of tokens, and whether anything was cut."""
    if count_tokens(text) <= max_tokens:
        return text, False
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_tokens(text[:middle]) <= max_tokens else (low, middle - 1)
    return text[:low], True


def _reply(answer: Any, model: str) -> Reply:
    choices = _of(answer, "choices", model)
    if not choices:
        raise InvalidResponseError(f"{model} gave no choice")
    choice = choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise InvalidResponseError(f"{model} refused: {str(choice.message.refusal)[:80]}")
    if not choice.message.content:
        raise InvalidResponseError(f"{model} gave an empty answer")
    usage = answer.usage.total_tokens if answer.usage else 0
    return Reply(choice.message.content, int(usage or 0), choice.finish_reason == "length")


def _of(answer: Any, name: str, model: str) -> Any:
    """A part of an answer: what is no JSON of that form (a proxy's page, for instance) comes as a text."""
    part = getattr(answer, name, None)
    if part is None:
        raise InvalidResponseError(f"{model} gave no {name}: {str(answer)[:80]!r}; is base_url that of an API?")
    return part


class _translated:  # noqa: N801 - a context manager that reads as a word
    """The SDK's errors become the client's."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, json.JSONDecodeError):
            raise InvalidResponseError(f"{self._model} did not answer in JSON: {error}") from error
        if isinstance(error, openai.OpenAIError):
            raise _error_class(error)(f"{self._model}: {str(error)[:200]}") from error


def _error_class(error: openai.OpenAIError) -> type[RerankError]:
    for kind, ours in _CLASSES:
        if isinstance(error, kind):
            return ours
    return InferenceError


# the more special ones first
_CLASSES: tuple[tuple[type[openai.OpenAIError], type[RerankError]], ...] = (
    (openai.APITimeoutError, DeadlineExceededError),
    (openai.APIConnectionError, ServerUnavailableError),
    (openai.APIResponseValidationError, InvalidResponseError),
    (openai.RateLimitError, OverloadedError),
    (openai.AuthenticationError, ConfigurationError),
    (openai.PermissionDeniedError, ConfigurationError),
    (openai.NotFoundError, ConfigurationError),
    (openai.BadRequestError, InvalidRequestError),
    (openai.UnprocessableEntityError, InvalidRequestError),
    (openai.InternalServerError, InferenceError),
)


def _plain(messages: Messages) -> Any:
    return [dict(message) for message in messages]
