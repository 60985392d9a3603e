"""What goes wrong in a user's hands, one case for each row of the last table of docs/errors.md."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from triton_rerank import AsyncRerankClient, InvalidRequestError, RerankResult, Tls, TritonOptions, errors

MODEL = "tiny-bert"
HEADER = "triton-grpc-protocol-key"  # what the restricted server wants, with the value "value"
LONG = "a binary heap " * 71_429  # a million characters
FIVE_THOUSAND = [f"document number {number}" for number in range(5000)]

Client = Any  # RerankClient or AsyncRerankClient: the same methods, whose results `settled` awaits if they must be


@dataclass(frozen=True)
class Case:
    """One wrong thing.

    Attributes:
        ask: does it, with a client of either kind; what it returns may be awaitable.
        right: says whether the answer is right; None where an error is the answer.
        at: which server, a key of the fixture ``places``, or a target as it stands.
        connected: a right call on the same client is answered.
        timeout_s: of the client.
        model: name of the model.
        tls: certificates, given the folder in which they lie.
        settings: more arguments of `TritonOptions`.
        arguments: more arguments of the client.
    """

    ask: Callable[[Client], Any] = lambda client: client.rerank("q", ["a"])
    right: Callable[[Any], bool] | None = None
    at: str = "server"
    connected: bool = True
    timeout_s: float = 5.0
    model: Any = MODEL
    tls: Callable[[Path], Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def client(self, kind: type, places: Mapping[str, str], certificates: Path) -> Client:
        """Make the client; constructing it may be what is wrong."""
        tls = None if self.tls is None else self.tls(certificates)
        options = TritonOptions(tls=tls, **self.settings)
        target = places.get(self.at, self.at)
        return kind(target, model=self.model, timeout_s=self.timeout_s, options=options, **self.arguments)


async def settled(value: Any) -> Any:
    """The value, awaited if it must be."""
    return await value if inspect.isawaitable(value) else value


def query(text: Any, **case: Any) -> Case:
    return Case(lambda client: client.rerank(text, ["a", "b"]), **case)


def documents(made: Callable[[], Any], **case: Any) -> Case:
    return Case(lambda client: client.rerank("a heap", made()), **case)


def argument(**arguments: Any) -> Case:
    return Case(lambda client: client.rerank("q", ["a", "b"], **arguments))


def unreachable(at: str, **case: Any) -> Case:
    return Case(at=at, connected=False, **case)


def encrypted(tls: Callable[[Path], Any], *, at: str = "tls", **case: Any) -> Case:
    return Case(at=at, tls=tls, connected=case.get("right") is not None, **case)


def many(queries: Any, lists: Any, **case: Any) -> Case:
    return Case(lambda client: client.rerank_many(queries, lists() if callable(lists) else lists), **case)


def indexes(result: RerankResult[Any]) -> list[int]:
    return sorted(ranked.index for ranked in result)


def holds(count: int) -> Callable[[RerankResult[Any]], bool]:
    return lambda result: indexes(result) == list(range(count))


def fails() -> Iterator[str]:
    yield "a"
    raise OSError("the disk is gone")


async def never() -> AsyncIterator[str]:
    yield "a"


async def closed(client: Client) -> Any:
    await settled(client.aclose() if isinstance(client, AsyncRerankClient) else client.close())
    return await settled(client.rerank("q", ["a"]))


async def closed_under_way(client: Client) -> Any:
    if isinstance(client, AsyncRerankClient):
        closing = asyncio.ensure_future(_later(client))
        try:
            return await client.rerank("q", ["a"])
        finally:
            await closing
    threading.Timer(0.3, client.close).start()
    return client.rerank("q", ["a"])


async def _later(client: AsyncRerankClient) -> None:
    await asyncio.sleep(0.3)
    await client.aclose()


async def two_loops(client: Client) -> Any:
    async def ask() -> Any:
        return await settled(client.rerank("q", ["a", "b"]))

    await asyncio.to_thread(asyncio.run, ask())
    return await asyncio.to_thread(asyncio.run, ask())


_FORK = """
import asyncio, os, sys
import triton_rerank
from triton_rerank.core.runtime import run_sync

kind, target, model = sys.argv[1:]
client = getattr(triton_rerank, kind)(target, model=model)
loop = asyncio.new_event_loop()

def ask():
    asked = client.rerank("q", ["a"])
    return loop.run_until_complete(asked) if kind.startswith("Async") else asked

ask()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    ask()
except Exception as exc:
    print(type(exc).__name__, exc, flush=True)
os._exit(0)
"""


def forked(client: Client) -> Any:
    """In a process of its own: this one has too many threads to fork."""
    command = [sys.executable, "-c", _FORK, type(client).__name__, client.scorer.target, client.scorer.model]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=True)
    name, _, message = child.stdout.strip().partition(" ")
    raise getattr(errors, name)(message)


CASES: dict[str, Case] = {
    # query
    "a blank query": query(" \n\t "),
    "a query that is `None`": query(None),
    "a query of bytes": query(b"heap"),
    "a lone surrogate in the query": query("a \ud800"),
    "NUL in the query": query("a\0b", right=holds(2)),
    "a query of 10,000 words": query(
        "heap " * 10_000, right=lambda result: len(result) == 2 and all(ranked.truncated for ranked in result)
    ),
    "a query longer than half of `max_length`, where the pair fits": query(
        "heap " * 100, right=lambda result: len(result) == 2 and not any(ranked.truncated for ranked in result)
    ),
    "a query of more than 16 MiB": query("x" * (2**24 + 1)),
    # documents
    "an empty list": documents(list, right=lambda result: len(result) == 0 and result.timings.requests == 0),
    "`None` for the documents": documents(lambda: None),
    "one text for the documents": documents(lambda: "a heap"),
    "a mapping for the documents": documents(lambda: {"a heap": 1}),
    "an asynchronous generator": documents(never),
    "a generator": documents(lambda: (text for text in ("a", "b")), right=holds(2)),
    "a generator that raises": documents(fails),
    "a generator that does not end": documents(lambda: map(str, itertools.count())),
    "`None` among the documents": documents(lambda: ["a", None]),
    "bytes among the documents": documents(lambda: ["a", b"b"]),
    "a number among the documents": documents(lambda: ["a", 5]),
    "mixed types, all with a text": documents(lambda: ["a", {"text": "b"}, SimpleNamespace(text="c")], right=holds(3)),
    "a mapping without the key": documents(lambda: [{"body": "a"}]),
    "a mapping with `None` under the key": documents(lambda: [{"text": None}]),
    "a `text_key` function that raises": documents(
        lambda: [{"body": "a"}], arguments={"text_key": lambda document: document["text"]}
    ),
    "an empty text": documents(lambda: ["", "a", ""], right=holds(3)),
    "the same text twice": documents(
        lambda: ["a", "b", "a"],
        right=lambda result: (
            indexes(result) == [0, 1, 2] and len({ranked.score for ranked in result if ranked.document == "a"}) == 1
        ),
    ),
    "a document of 10⁶ characters": documents(
        lambda: ["a", LONG],
        right=lambda result: {ranked.index: ranked.truncated for ranked in result} == {0: False, 1: True},
    ),
    "a document of 16 MiB": documents(
        lambda: ["a", "x " * 2**23],
        timeout_s=60.0,
        right=lambda result: {ranked.index: ranked.truncated for ranked in result} == {0: False, 1: True},
    ),
    "a document of more than 16 MiB": documents(lambda: ["a", "x" * (2**24 + 1)]),
    "a lone surrogate in a document": documents(lambda: ["a", "b \udfff"]),
    "NUL in a document": documents(lambda: ["a\0b", "\0", "plain"], right=holds(3)),
    "special tokens in a document": documents(lambda: ["a [SEP] b [CLS]", "</s>", "a"], right=holds(3)),
    "5,000 documents": documents(lambda: FIVE_THOUSAND, right=holds(5000), timeout_s=120.0),
    # arguments
    "`top_k` 0": argument(top_k=0),
    "`top_k` −1": argument(top_k=-1),
    "`top_k` 10⁹": Case(lambda client: client.rerank("q", ["a", "b"], top_k=10**9), holds(2)),
    "`top_k` 1.5": argument(top_k=1.5),
    "`top_k` −10⁵⁰⁰⁰": argument(top_k=-(10**5000)),
    "`min_score` NaN": argument(min_score=float("nan")),
    "`min_score` above every score": Case(
        lambda client: client.rerank("q", ["a", "b"], min_score=10**300), lambda result: len(result) == 0
    ),
    "`min_score` 10⁴⁰⁰": argument(min_score=10**400),
    "`timeout_s` 0": argument(timeout_s=0),
    "`timeout_s` infinite": argument(timeout_s=float("inf")),
    "`timeout_s` 10¹³": argument(timeout_s=1e13),
    "a `timeout_s` that is too short": Case(lambda client: client.rerank("q", FIVE_THOUSAND), timeout_s=0.1),
    "`max_length` 0": argument(max_length=0),
    "`max_length` larger than the model's": argument(max_length=4096),
    "`max_length` that leaves no token": argument(max_length=3),
    "`max_length` 10²⁰": argument(max_length=10**20),
    "`max_query_tokens` 0": argument(max_query_tokens=0),
    "`max_query_tokens` that leaves the document no token": argument(max_query_tokens=4096),
    "`max_document_tokens` 0": argument(max_document_tokens=0),
    "`max_document_tokens` that leaves the query no token": argument(max_document_tokens=4096),
    "`instruction` for a model without a prompt": argument(instruction="find code"),
    "`text_key` that is a number": Case(arguments={"text_key": 5}),
    "a header's name with a space": argument(headers={"a b": "c"}),
    "a header's value with a new line": argument(headers={"a": "b\nc: d"}),
    "100 kB of headers": argument(headers={"a": "b" * 100_000}),
    "queries and lists of documents that do not pair": many(["a", "b"], [["a"]]),
    "a wrong query among good ones": many(
        ["a", None, "b"],
        lambda: [["a"], ["b"], fails()],
        right=lambda results: (
            [type(one) for one in results] == [RerankResult, InvalidRequestError, InvalidRequestError]
        ),
    ),
    # target, model
    "a target with a scheme": unreachable("http://127.0.0.1:8001"),
    "a target without a port": unreachable("127.0.0.1"),
    "port 0": unreachable("127.0.0.1:0"),
    "a port of 5,000 digits": unreachable("127.0.0.1:" + "1" * 5000),
    "an IPv6 address without brackets": unreachable("::1:8001"),
    "a target that is not ASCII": unreachable("hôte:8001"),
    "an address that gRPC cannot read": unreachable("ipv4:nonsense"),
    "a name that nobody knows": unreachable("no-such-host.invalid:8001"),
    "a name that nobody knows, in a list": unreachable("127.0.0.1:8001,no-such-host.invalid:8001"),
    "a name that is none, in a list": unreachable("127.0.0.1:8001,a..b:8001"),
    "wrong port: nobody listens": unreachable("127.0.0.1:1"),
    "HTTP port instead of gRPC": unreachable("http"),
    "metrics port instead of gRPC": unreachable("metrics"),
    "a server that accepts and says nothing": unreachable("mute"),
    "a server that stands still": unreachable("still", timeout_s=1.0),
    "unknown model": Case(model="no-such-model", connected=False),
    "a step of the ensemble": Case(model=f"{MODEL}-encoder", connected=False),
    "a model's name that is no text": Case(model=5, connected=False),
    "a model's name with a lone surrogate": Case(model="a\ud800", connected=False),
    "model and scorer": Case(arguments={"scorer": object()}, connected=False),
    # TLS, restricted protocols
    "TLS to plain": encrypted(lambda folder: Tls(folder / "ca.pem"), at="server"),
    "plain to TLS": unreachable("tls"),
    "mutual TLS with all it needs": encrypted(
        lambda folder: Tls(folder / "ca.pem", folder / "client.key.pem", folder / "client.pem"), right=lambda _: True
    ),
    "mutual TLS without the client's certificate": encrypted(lambda folder: Tls(folder / "ca.pem")),
    "a key without its certificate": encrypted(lambda folder: Tls(folder / "ca.pem", folder / "client.key.pem")),
    "a server's certificate of another authority": encrypted(lambda folder: Tls(folder / "other.pem")),
    "a server's certificate of another name": encrypted(
        lambda folder: Tls(folder / "ca.pem", server_name="other.example")
    ),
    "a certificate's file that is not there": encrypted(lambda folder: Tls(folder / "no-such.pem")),
    "a certificate's file that is no PEM": encrypted(lambda folder: Tls(folder / "garbage.pem")),
    "`tls=True`": encrypted(lambda _: True),
    "a restricted protocol without its header": unreachable("restricted"),
    "a restricted protocol with a wrong value": unreachable("restricted", settings={"headers": {HEADER: "x"}}),
    "a restricted protocol with its header": Case(
        at="restricted", settings={"headers": {HEADER: "value"}}, right=lambda _: True
    ),
    # the client's life
    "a closed client": Case(closed, connected=False),
    "a client that is closed while it is asked": Case(closed_under_way, at="still", connected=False, timeout_s=30.0),
    "a forked client": Case(forked),
    "one client in two event loops": Case(two_loops, right=holds(2)),
}
