"""One request from its bytes to its answer: who asks → what → when it is its turn → the model → the dialect's words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from triton_rerank import ConfigurationError
from triton_rerank_gateway.admission import body
from triton_rerank_gateway.admission.admission import Admission
from triton_rerank_gateway.admission.keys import Key, Keys, Rates, read_keys
from triton_rerank_gateway.admission.queueing import Cost, Ticket
from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects.base import Dialect
from triton_rerank_gateway.dialects.routes import Route
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.fields import Fields
from triton_rerank_gateway.models import asking
from triton_rerank_gateway.models.models import Model, Models, from_settings
from triton_rerank_gateway.observability import record, tracing
from triton_rerank_gateway.observability.record import Metrics, Record
from triton_rerank_gateway.question import Question
from triton_rerank_gateway.settings import Settings

_log = logging.getLogger("triton_rerank_gateway")
_UNAUTHORIZED_BYTES = 65_536  # of a body that is read only to see in which dialect to say no


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
        if settings.max_bodies_bytes < settings.max_body_bytes:
            raise ConfigurationError(
                f"max_bodies_bytes is {settings.max_bodies_bytes}, less than one body may have "
                f"(max_body_bytes, {settings.max_body_bytes}): raise the one, or lower the other"
            )
        self.room = body.Room(settings.max_bodies_bytes)
        self.metrics = Metrics(self.admission, self.room)
        self._rates = Rates(time.monotonic)

    async def handle(self, asked: Asked) -> Reply:
        """Answer one request; whatever goes wrong is answered too. Cancelling it cancels its work."""
        told = Record(asked.request_id, asked.route.dialect.name, status=record.CLIENT_GONE)
        dialect = [asked.route.dialect]  # known better once the body is read
        with tracing.span("rerank", asked.headers) as span:
            try:
                with self.room.taken() as take:
                    reply = await self._answer(asked, told, dialect, take)
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

    async def _answer(self, asked: Asked, told: Record, dialect: list[Dialect], take: body.Take) -> Reply:
        key = await self._who(asked, dialect, take)
        told.key = key.name
        fields = Fields(body.decode(await self._read(asked, self.settings.max_body_bytes, take)))
        dialect[0] = asked.route.tell(fields)
        question = dialect[0].question(fields)
        model = self.find(question.model or asked.path_model, key)
        told.model, told.pairs = model.name, question.n_pairs
        if question.n_pairs > self.settings.max_documents:
            bound = f"the bound is {self.settings.max_documents}"
            raise GatewayError("too_large", f"{question.n_pairs} documents: {bound}; send them in several requests")
        self._rates.take(key, question.n_pairs)
        answered = await while_connected(asked, self._score(question, model, asked, key, told))
        return _reply(dialect[0], answered, told)

    async def _who(self, asked: Asked, dialect: list[Dialect], take: body.Take) -> Key:
        try:
            return self.keys.check(asked.headers.get("authorization"))
        except GatewayError as refused:
            try:
                fields = Fields(body.decode(await self._read(asked, _UNAUTHORIZED_BYTES, take)))
                dialect[0] = asked.route.tell(fields)
            except GatewayError:
                pass  # the dialect of the path will do
            raise refused from None

    async def _read(self, asked: Asked, most_bytes: int, take: body.Take) -> bytes:
        timeout_s = self.settings.body_timeout_s
        return await body.read_body(asked.chunks, asked.headers, most_bytes=most_bytes, timeout_s=timeout_s, take=take)

    def find(self, name: str | None, key: Key) -> Model:
        """The model of that name; for none the default, or the first that the key may use.

        Raises:
            GatewayError: there is none, or the key may not use it.
        """
        model = self.models.find(name or next(iter(key.models), None))
        if not key.may_use(model.name):
            raise GatewayError("forbidden", f"this key may use {', '.join(key.models)}, and not {model.name!r}")
        return model

    async def _score(self, question: Question, model: Model, asked: Asked, key: Key, told: Record) -> Answered:
        """Wait for the request's turn, then ask the model with what is left of the time."""
        deadline_s = asked.began_s + self._timeout_s(question, asked)
        ticket = Ticket(key.name, key.weight, asking.cost(question, model.max_length), question.priority)
        async with AsyncExitStack() as stack:
            with tracing.span("wait"):
                turn = self.admission.turn(ticket, deadline_s - time.monotonic())
                told.waited_s = await stack.enter_async_context(turn)
            with tracing.span("score"):
                results = await asking.ask(question, model, asked.headers, deadline_s - time.monotonic())
        told.total_s = time.monotonic() - asked.began_s
        return Answered(question, results, model.name, asked.request_id, int(time.time()), told.waited_s, told.total_s)

    def _timeout_s(self, question: Question, asked: Asked) -> float:
        """The caller's own timeout, in the body or a header, else the configured one."""
        wanted = question.extras.timeout_s
        header = asked.headers.get("x-request-timeout-ms")
        if wanted is None and header is not None:
            if not header.isdecimal() or not int(header[:12]) > 0:
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
