"""One request from its bytes to its answer: who asks → what → when it is its turn → the model → the dialect's words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from triton_rerank import RerankError, RerankResult
from triton_rerank_gateway import body, failures, record, tracing
from triton_rerank_gateway.admission import Admission
from triton_rerank_gateway.dialects.base import Dialect
from triton_rerank_gateway.dialects.routes import Route
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields
from triton_rerank_gateway.keys import Key, Keys, Rates, read_key
from triton_rerank_gateway.models import Model, Models, from_settings
from triton_rerank_gateway.question import Answered, Question
from triton_rerank_gateway.queueing import Cost, Ticket
from triton_rerank_gateway.record import Metrics, Record
from triton_rerank_gateway.settings import Settings, read_file

_log = logging.getLogger("triton_rerank_gateway")
_UNAUTHORIZED_BYTES = 65_536  # of a body that is read only to see in which dialect to say no
_PAIR_TOKENS = 3  # special tokens of a pair
_PAIR_ROOM = 5  # tokens that a pair needs beside its query: special ones, and one of the document


T = TypeVar("T")


class CallerGoneError(Exception):
    """The caller hung up: nobody will read an answer."""


@dataclass(frozen=True)
class Asked:
    """A request as it comes from HTTP.

    Attributes:
        route: that it came by.
        headers: names in lower case.
        chunks: its body, as it comes; raises `CallerGoneError` if the caller hangs up.
        gone: returns when the caller has hung up; asked once the body is read.
        request_id: made here, or the caller's own.
        began_s: monotonic seconds.
        path_model: name of a model in the path, None where there is none.
    """

    route: Route
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    gone: Callable[[], Coroutine[Any, Any, None]]
    request_id: str
    began_s: float
    path_model: str | None = None


@dataclass(frozen=True)
class Reply:
    """What goes back: ``content`` is encoded as JSON."""

    status: int
    content: Any
    headers: Mapping[str, str]


class Gateway:
    """What one process needs to answer; lives in one event loop.

    Args:
        settings: bounds and times.
        models: None builds those of the settings.
        keys: None reads those of the settings.

    Raises:
        ConfigurationError: settings that cannot be.
    """

    def __init__(self, settings: Settings, models: Models | None = None, keys: Keys | None = None) -> None:
        self.settings = settings
        self.models = models or from_settings(settings)
        self.keys = keys or read_keys(settings)
        self.admission = Admission(
            Cost(settings.pairs_in_flight, settings.tokens_in_flight),
            Cost(settings.pairs_waiting, settings.tokens_waiting),
            max_wait_s=settings.max_wait_s,
        )
        self.metrics = Metrics(self.admission)
        self._rates = Rates(time.monotonic)

    async def handle(self, asked: Asked) -> Reply:
        """Answer one request; whatever goes wrong is answered too. Cancelling it cancels its work."""
        told = Record(asked.request_id, asked.route.dialect.name, status=record.CLIENT_GONE)
        dialect = [asked.route.dialect]  # known better once the body is read
        with tracing.tracer.start_as_current_span("rerank", tracing.context_of(asked.headers)) as span:
            try:
                reply = await self._answer(asked, told, dialect)
            except CallerGoneError:
                reply = Reply(record.CLIENT_GONE, None, {})
            except GatewayError as exc:
                reply = self._refusal(exc, dialect[0], told)
            except Exception:  # noqa: BLE001 - logged; a caller is told of every fault
                _log.exception("a fault of the gateway", extra={"request_id": asked.request_id})
                fault = GatewayError("internal", "the gateway has a fault; its log says more, under this request's id")
                reply = self._refusal(fault, dialect[0], told)
            finally:
                told.dialect = dialect[0].name
                told.total_s = time.monotonic() - asked.began_s
                span.set_attributes({"dialect": told.dialect, "model": told.model, "pairs": told.pairs})
                self.metrics.count(told)
                record.log(told)
        return replace(reply, headers={**reply.headers, "x-request-id": asked.request_id})

    async def _answer(self, asked: Asked, told: Record, dialect: list[Dialect]) -> Reply:
        key = await self._who(asked, dialect)
        told.key = key.name
        fields = Fields(body.decode(await self._read(asked, self.settings.max_body_bytes)))
        dialect[0] = asked.route.tell(fields)
        question = dialect[0].question(fields)
        model = self._model(question, asked, key)
        told.model, told.pairs = model.name, question.n_pairs
        if question.n_pairs > self.settings.max_documents:
            bound = f"the bound is {self.settings.max_documents}"
            raise GatewayError("too_large", f"{question.n_pairs} documents: {bound}; send them in several requests")
        self._rates.take(key, question.n_pairs)
        answered = await while_connected(asked, self._score(question, model, asked, key, told))
        return _reply(dialect[0], answered, told)

    async def _who(self, asked: Asked, dialect: list[Dialect]) -> Key:
        try:
            return self.keys.check(asked.headers.get("authorization"))
        except GatewayError as refused:
            try:
                fields = Fields(body.decode(await self._read(asked, _UNAUTHORIZED_BYTES)))
                dialect[0] = asked.route.tell(fields)
            except GatewayError:
                pass  # the dialect of the path will do
            raise refused from None

    async def _read(self, asked: Asked, most_bytes: int) -> bytes:
        timeout_s = self.settings.body_timeout_s
        return await body.read_body(asked.chunks, asked.headers, most_bytes=most_bytes, timeout_s=timeout_s)

    def _model(self, question: Question, asked: Asked, key: Key) -> Model:
        model = self.models.find(question.model or asked.path_model or next(iter(key.models), None))
        if not key.may_use(model.name):
            raise GatewayError("forbidden", f"this key may use {', '.join(key.models)}, and not {model.name!r}")
        return model

    async def _score(self, question: Question, model: Model, asked: Asked, key: Key, told: Record) -> Answered:
        """Wait for the request's turn, then ask the model with what is left of the time."""
        deadline_s = asked.began_s + self._timeout_s(question, asked)
        ticket = Ticket(key.name, key.weight, cost(question, model.max_length), question.priority)
        async with AsyncExitStack() as stack:
            with tracing.tracer.start_as_current_span("wait"):
                turn = self.admission.turn(ticket, deadline_s - time.monotonic())
                told.waited_s = await stack.enter_async_context(turn)
            with tracing.tracer.start_as_current_span("score"):
                results = await _ask(question, model, asked.headers, deadline_s - time.monotonic())
        told.total_s = time.monotonic() - asked.began_s
        return Answered(question, results, model.name, asked.request_id, int(time.time()), told.waited_s, told.total_s)

    def _timeout_s(self, question: Question, asked: Asked) -> float:
        """The caller's own timeout, in the body or a header, else the configured one."""
        wanted = question.extras.timeout_s
        header = asked.headers.get("x-request-timeout-ms")
        if wanted is None and header is not None:
            if not header.isdigit() or not int(header[:12]) > 0:
                raise GatewayError("invalid", "X-Request-Timeout-Ms must be a whole number of milliseconds from 1")
            wanted = int(header[:12]) / 1000
        return min(self.settings.timeout_s if wanted is None else wanted, self.settings.max_timeout_s)

    def _refusal(self, error: GatewayError, dialect: Dialect, told: Record) -> Reply:
        told.status, told.error = dialect.status(error), error.cause
        headers = {}
        if error.kind == "overloaded":  # Triton's own refusals, too, say when to come again
            after = error.retry_after_s or self.admission.overloaded().retry_after_s
            headers["retry-after"] = str(after)
        elif error.kind == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        return Reply(told.status, dialect.error(error), headers)


async def while_connected(asked: Asked, work: Coroutine[Any, Any, T]) -> T:
    """Result of the work.

    Raises:
        CallerGoneError: the caller hung up first; the work is cancelled, and with it what it sent.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(asked.gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGoneError
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def cost(question: Question, max_length: int) -> Cost:
    """Pairs, and tokens by a rule of thumb: four letters a token, one sign a token outside ASCII.

    A document that will be asked again as chunks costs what its chunks do.
    """
    most = question.extras.max_chunks or 0
    pairs = tokens = 0
    for part in question.parts:
        query = _tokens(part.query) + _PAIR_TOKENS
        for document in part.documents:
            length = query + _tokens(document)
            asked = 1 + min(most, -(-length // max_length)) if length > max_length else 1
            pairs += asked
            tokens += min(length, max_length) * asked
    return Cost(pairs, tokens)


def _tokens(text: str) -> int:
    return len(text) // 4 + 1 if text.isascii() else len(text)


async def _ask(
    question: Question, model: Model, headers: Mapping[str, str], timeout_s: float
) -> tuple[RerankResult[str], ...]:
    """Ask the model.

    Raises:
        GatewayError: it did not answer, or a pair had to be cut and must not be.
    """
    if timeout_s <= 0:
        raise GatewayError("deadline", "the time for this request passed while it waited for its turn")
    results = await _results(question, model, tracing.headers_for(headers), timeout_s)
    if not question.truncate:
        for result in results:
            _check_whole(result, model)
    return results


async def _results(
    question: Question, model: Model, headers: Mapping[str, str], timeout_s: float
) -> tuple[RerankResult[str], ...]:
    options: dict[str, Any] = {"timeout_s": timeout_s, "headers": headers}
    if question.max_query_tokens is not None:
        options["max_query_tokens"] = max(1, min(question.max_query_tokens, model.max_length - _PAIR_ROOM))
    try:
        if len(question.parts) == 1:
            part = question.parts[0]
            return (await model.client.rerank(part.query, part.documents, **options, **_chunks(question)),)
        queries, lists = zip(*((part.query, part.documents) for part in question.parts), strict=True)
        found = await model.client.rerank_many(queries, lists, **options)
    except RerankError as exc:
        raise _failed(exc, model) from exc
    for result in found:
        if isinstance(result, RerankError):
            raise _failed(result, model) from result
    return tuple(result for result in found if not isinstance(result, RerankError))


def _chunks(question: Question) -> dict[str, Any]:
    extras = question.extras
    if extras.max_chunks is None:
        return {}
    overlap = {} if extras.overlap_tokens is None else {"overlap_tokens": extras.overlap_tokens}
    return {"long_documents": "chunk", "max_chunks": extras.max_chunks, **overlap}


def _failed(error: RerankError, model: Model) -> GatewayError:
    told = failures.from_client(error)
    if failures.STATUSES[told.kind] >= 500:
        extra = {"model": model.name, "error": type(error).__name__, "detail": str(error)}
        _log.warning("the model was not reached", extra={**extra, "triton_request_id": error.request_id})
    return told


def _check_whole(result: RerankResult[str], model: Model) -> None:
    cut = sorted(ranked.index for ranked in result if ranked.truncated)
    if cut:
        raise GatewayError(
            "invalid",
            f"text {cut[0]} does not fit with the query into the {model.max_length} tokens that {model.name!r} reads, "
            "and the request forbids cutting; shorten it, or allow truncation",
        )


def _reply(dialect: Dialect, answered: Answered, told: Record) -> Reply:
    results = answered.results
    told.status, told.tokens = 200, answered.token_count
    told.scoring_s = sum(result.timings.scoring_s for result in results)
    told.truncated = sum(ranked.truncated for result in results for ranked in result)
    told.cached = sum(result.usage.cached_pairs for result in results)
    told.degraded, told.served_by = answered.degraded, answered.served_by
    return Reply(200, dialect.answer(answered), {**_seen_headers(answered), **dialect.headers(answered)})


def _seen_headers(answered: Answered) -> dict[str, str]:
    headers = {"x-rerank-model": answered.model, "x-rerank-served-by": answered.served_by}
    if answered.degraded:
        headers |= {"x-rerank-degraded": "true", "x-rerank-reason": answered.reason[:500]}
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


def read_keys(settings: Settings) -> Keys:
    """Keys of ``--key``, of the file, and of ``keys_file``.

    Raises:
        ConfigurationError: one is not what it must be, or there is none and the address is not loopback.
    """
    flags = [dict(zip(("name", "hash"), entry.partition("=")[::2], strict=True)) for entry in settings.key]
    filed = read_file(Path(settings.keys_file)).get("keys", ()) if settings.keys_file else ()
    return Keys([read_key(table) for table in (*flags, *settings.keys, *filed)] if settings.auth else [])
