"""What hosted scorers share: one request for a list, or several for a long one, with retries, within the deadline."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from triton_rerank.core.numbers import whole
from triton_rerank.core.remade import Remade
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.core.validate import Secret
from triton_rerank.errors import ConfigurationError, InvalidResponseError, RerankError
from triton_rerank.hosted.channel import HttpChannel, HttpReply, HttpRequest
from triton_rerank.hosted.dialect import Dialect, Relevance, read_answer
from triton_rerank.hosted.retry import RetryBudget, backoff_s, retry_after_s
from triton_rerank.hosted.status import error_for

if TYPE_CHECKING:
    import httpx

_CONCURRENCY = 4  # requests of one call at a time; accounts have rate limits


class HostedScorer(Remade):
    """A reranker behind a provider's HTTP endpoint; safe to share between threads and event loops.

    A call's ``headers`` are not sent: they are for Triton, and may hold its secrets. Neither do proxies and
    certificates from the environment apply: the key and the documents go to ``base_url``, and through a proxy only if
    it is named here.

    ``max_query_tokens`` is not sent, as no provider has it: the query is cut by the provider's own rule. Neither is
    ``instruction``, which is for a model with a prompt.
    Results have scores and no logits, ``truncated`` is False for every document (providers cut long texts and do not
    say so), and ``token_count`` is 0 where the provider does not tell.

    Args:
        api_key: None reads the provider's environment variable, ``COHERE_API_KEY``, ``JINA_API_KEY`` or
            ``VOYAGE_API_KEY``.
        model: the provider's name of it.
        base_url: None for the provider's own.
        name: what results, logs and counters call it; None gives "provider/model".
        retries: most further attempts after a fault that may pass; they wait with jitter, at least as long as the
            provider asks, never past the deadline, and stop while most attempts fail.
        proxy: ``http://`` or ``https://`` address of a proxy.
        ssl_context: trust for ``https://``; None trusts the public authorities.

    Raises:
        ConfigurationError: no key, a key or address that cannot be sent, or httpx is not installed.
    """

    dialect: ClassVar[Dialect]

    def __init__(
        self,
        api_key: str | None = None,
        *,
        model: str,
        base_url: str | None = None,
        name: str | None = None,
        retries: int = 1,
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        _require_httpx()
        if not model:
            raise ConfigurationError(f"model is empty: give {self.dialect.provider}'s name of a reranker")
        self.model = model
        self.base_url = _checked_url("base_url", base_url or self.dialect.base_url)
        self.name = name or f"{self.dialect.provider.lower()}/{model}"
        self.retries = whole("retries", retries, least=0, must="a whole number of at least 0")
        self._api_key = _checked_key(api_key, self.dialect)
        self._budget = RetryBudget()
        proxy = None if proxy is None else Secret(_checked_url("proxy", proxy, may_have_user=True))
        self._channel = HttpChannel(partial(_make_client, proxy, ssl_context))
        self._through = "" if proxy is None else f" through the proxy {_without_user(proxy)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, base_url={self.base_url!r})"  # never the key

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made_with.kwargs.get("ssl_context") is not None:
            raise ConfigurationError(
                f"{self.name} has an ssl_context, which can be neither pickled nor copied: make the scorer in the "
                "process that uses it"
            )
        return super().__reduce__()

    async def score(self, request: PairRequest, call: Call) -> Scored:
        """Score every document of the request.

        Raises:
            InvalidResponseError: not exactly one finite score for each document.
            RerankError: as the table in ``status.py`` says, from the provider's status and words.
        """
        query = request.query.decode()
        documents = [document.decode() for document in request.documents]
        size = self.dialect.max_documents
        parts = [documents[start : start + size] for start in range(0, len(documents), size)]
        most = request.max_document_tokens or request.max_length
        answers = await self._ask_all(query, parts, most, call)
        return Scored(
            model=answers[0].model,
            served_by=self.name,
            logits=None,
            scores=np.concatenate([answer.scores for answer in answers]),  # (n,)
            truncated=np.zeros(len(documents), np.bool_),
            token_count=sum(answer.token_count for answer in answers),
            requests=len(parts),
        )

    async def is_ready(self, call: Call) -> bool:
        """True if the host answers at all; costs nothing, and does not try the key."""
        probe = HttpRequest("HEAD", self.base_url, {}, b"", who=self._who)
        try:
            await self._channel.send(probe, call)
        except RerankError:
            return False
        return True

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._channel.close()

    async def aclose(self) -> None:
        """Close the connections; a later call opens new ones."""
        await asyncio.get_running_loop().run_in_executor(None, self._channel.close)

    @property
    def _who(self) -> str:
        return f"{self.model!r} at {self.base_url}{self._through}"

    async def _ask_all(
        self, query: str, parts: Sequence[Sequence[str]], most: int | None, call: Call
    ) -> list[Relevance]:
        failures: list[RerankError] = []

        async def ask(documents: Sequence[str]) -> Relevance | None:
            """Ask for one part; after a failure the others are not asked for."""
            if failures:  # the whole call has failed: spend no more on it
                return None
            try:
                return await self._ask(query, documents, most, call)
            except RerankError as exc:
                failures.append(exc)
                return None

        answers = await call.runtime.gather([partial(ask, part) for part in parts], concurrency=_CONCURRENCY)
        if failures:
            raise failures[0]
        return [answer for answer in answers if answer is not None]

    async def _ask(self, query: str, documents: Sequence[str], most: int | None, call: Call) -> Relevance:
        body = self.dialect.body(self.model, query, documents, most)
        request_id = uuid.uuid4().hex
        headers = {
            "Authorization": Secret(f"Bearer {self._api_key}"),
            "Content-Type": "application/json",
            "X-Request-Id": request_id,
        }
        url = self.base_url + self.dialect.path
        request = HttpRequest("POST", url, headers, body, self._who, request_id)
        reply = await self._post(request, (query, *documents), call)
        try:
            return read_answer(self.dialect, reply.body, n_documents=len(documents), model=self.model)
        except InvalidResponseError as exc:
            raise InvalidResponseError(f"{self._who}: {exc}", request_id=request_id) from exc

    async def _post(self, request: HttpRequest, texts: Sequence[str], call: Call) -> HttpReply:
        attempt = 0
        while True:
            asked_s: float | None = None
            try:
                reply = await self._channel.send(request, call)
                asked_s = retry_after_s(reply.headers.get("Retry-After"), now=time.time())
                if 200 <= reply.status < 300:
                    self._budget.earn()
                    return reply
                raise error_for(
                    reply.status,
                    reply.body,
                    who=self._who,
                    secret=self._api_key,
                    texts=texts,
                    retry_after_s=asked_s,
                    request_id=request.request_id,
                )
            except RerankError as exc:
                wait_s = backoff_s(attempt) + (asked_s or 0.0)
                if not exc.retryable or attempt >= self.retries or not self._may_retry(wait_s, call):
                    raise
            attempt += 1
            await call.runtime.sleep(wait_s)

    def _may_retry(self, wait_s: float, call: Call) -> bool:
        # the fault is told rather than slept on: another scorer may still answer in the time that is left
        return call.deadline.elapsed_s() + wait_s < call.deadline.timeout_s and self._budget.spend()


def _make_client(proxy: str | None, ssl_context: ssl.SSLContext | None) -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(
        # answers are small; unpacked ones would be a way around the bound on their size
        headers={"User-Agent": "triton-rerank", "Accept": "application/json", "Accept-Encoding": "identity"},
        timeout=None,  # noqa: S113 - the channel bounds the whole exchange; these would bound single reads
        trust_env=False,  # see the class: nothing in the environment may reroute the key and the documents
        proxy=proxy,
        verify=True if ssl_context is None else ssl_context,
    )


def _require_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError as exc:
        raise ConfigurationError("hosted scorers need httpx: pip install 'triton-rerank[hosted]'") from exc


def _checked_key(api_key: str | None, dialect: Dialect) -> Secret:
    source = "api_key" if api_key is not None else dialect.key_variable
    key = (os.environ.get(dialect.key_variable, "") if api_key is None else api_key).strip()
    if not key:
        raise ConfigurationError(f"no API key for {dialect.provider}: give api_key or set {dialect.key_variable}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError(f"{source} cannot be sent in a header: it must be printable ASCII without spaces")
    return Secret(key)


def _without_user(url: str) -> str:
    import httpx

    return str(httpx.URL(url).copy_with(userinfo=b""))


def _checked_url(argument: str, url: str, *, may_have_user: bool = False) -> str:
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        # the address itself is shown nowhere, nor the cause, which quotes it: there may be a password in it
        raise ConfigurationError(f"{argument} is no address: it must look like https://host:port/path") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(
            f"{argument} has scheme {parsed.scheme!r}: it must begin with http:// or https:// and a host"
        )
    if parsed.query or parsed.fragment or (parsed.userinfo and not may_have_user):
        raise ConfigurationError(f"{argument} must have no query, fragment or user name in it")
    return url.rstrip("/")
