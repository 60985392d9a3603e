"""Real clients, unchanged, through a gateway to a real Triton: order, top_n, documents, and each kind of error.

Each runs in a process of its environment (`support/sdk_clients.py` and `.mjs` say how it is called), and every outcome
is a test.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cohere
import pytest
import voyageai
import voyageai.error
from support import sdk_clients
from support.gateways import Running, fake, running, wait_for

from triton_rerank import RerankClient
from triton_rerank_gateway import Settings
from triton_rerank_gateway.admission.keys import Key, read_key
from triton_rerank_server import TritonServer

pytestmark = pytest.mark.timeout(900)  # most of it is LiteLLM's import, which busy cores make ten times as long

ROOT = Path(__file__).parents[2]
DEMO = "minilm-l6-demo"
KEY = "sdk-key"
QUERY = "how do I make a file smaller?"
DOCUMENTS = [
    "A file cabinet with four drawers holds about a hundred kilograms of paper.",
    "gzip makes archives take less room on disk.",
    "Compression stockings press the legs.",
]
SDKS = ROOT / ".venv-sdks"
NODE = (
    "cohere-ai v1",
    "cohere-ai v2",
    "vercel-ai",
    "voyageai-ts",
    "voyageai-ts, documents",
    "langchain-js cohere",
    "llamaindex-ts cohere",
)


@dataclass(frozen=True)
class Environment:
    """Where some clients are, and the program that runs them."""

    program: tuple[str, ...]
    is_there: bool
    clients: tuple[str, ...]


# The first has newer releases of the two that are in both of Python's.
OURS = tuple(name for name in sdk_clients.CLIENTS if name.startswith(("cohere", "voyageai")))
SCRIPT = sdk_clients.__file__
NODE_SCRIPT = Path(SCRIPT).with_suffix(".mjs").read_text(encoding="utf-8")  # as text, so that it imports from SDKS
ENVIRONMENTS = {
    "venv": Environment((sys.executable, SCRIPT), True, OURS),
    "sdks": Environment((str(SDKS / "bin" / "python"), SCRIPT), (SDKS / "bin").exists(), tuple(sdk_clients.CLIENTS)),
    "node": Environment(
        ("node", "--input-type=module", "--eval", NODE_SCRIPT),
        (SDKS / "node_modules").exists() and shutil.which("node") is not None,
        NODE,
    ),
}
EVERY = [(where, name) for where, environment in ENVIRONMENTS.items() for name in environment.clients]
CHECKS: dict[str, dict[str, Any]] = {
    "all": {},
    "top_n": {"top_n": 1},
    "top_n above": {"top_n": 50},
    "empty": {"documents": []},
    "wrong key": {"key": "wrong"},
    "unknown model": {"model": "nobody"},
    "overload": {"key": "slow", "at_once": True},
}
WORDS = {
    "empty": "is empty: give at least one text to rank",
    "wrong key": "the key is not known here",
    "unknown model": "is not served here",
    "overload": "come again in",
}
NOTHING, RANKED = "an empty list, without asking", "the ranking"
UNREAD = ("AssertionError", "IndexError", "KeyError", "TypeError")  # of clients that look for results in an error


@dataclass(frozen=True)
class Wanted:
    """What comes of what is wrong: the class that the client raises, `NOTHING` or `RANKED`.

    Attributes:
        empty, wrong_key, unknown_model: of the request.
        overload: `RANKED` for clients that wait as Retry-After says, and ask again.
    """

    empty: str
    wrong_key: str
    unknown_model: str
    overload: str


COHERE = Wanted("BadRequestError", "UnauthorizedError", "NotFoundError", RANKED)
COHERE_UNASKED = Wanted(NOTHING, "UnauthorizedError", "NotFoundError", RANKED)
VOYAGE = Wanted("InvalidRequestError", "AuthenticationError", "InvalidRequestError", "RateLimitError")
LITELLM = Wanted("BadRequestError", "AuthenticationError", "NotFoundError", "RateLimitError")
RUNTIME = Wanted(NOTHING, "RuntimeError", "RuntimeError", "RuntimeError")
WANTED: dict[str, Wanted] = {
    "cohere": COHERE,
    "voyageai": VOYAGE,
    "litellm": LITELLM,
    "litellm huggingface": Wanted("BadRequestError", "AuthenticationError", RANKED, "RateLimitError"),  # sends no model
    "litellm infinity": Wanted("BadRequestError", "AuthenticationError", "BadRequestError", "RateLimitError"),
    "langchain-cohere": COHERE_UNASKED,
    "langchain-voyageai": Wanted(NOTHING, "AuthenticationError", "InvalidRequestError", "RateLimitError"),
    "langchain-nvidia": Wanted(NOTHING, "Exception", "Exception", "Exception"),
    "llama-index cohere": COHERE_UNASKED,
    "llama-index jina": RUNTIME,
    "llama-index tei": Wanted(NOTHING, "AssertionError", RANKED, "AssertionError"),
    "haystack cohere": COHERE,
    "haystack jina": RUNTIME,
    "haystack tei": Wanted(NOTHING, "RuntimeError", RANKED, "RuntimeError"),
    "rerankers": Wanted("IndexError", "KeyError", "KeyError", "KeyError"),
    "cohere-ai": COHERE,
    "vercel-ai": Wanted(NOTHING, "AI_APICallError", "AI_APICallError", RANKED),
    "voyageai-ts": Wanted("VoyageAIError", "VoyageAIError", "VoyageAIError", RANKED),
    "langchain-js": COHERE_UNASKED,
    # Its cohere-ai 7.14 asks again after one and two seconds, whatever Retry-After says.
    "llamaindex-ts": Wanted(NOTHING, "UnauthorizedError", "NotFoundError", "TooManyRequestsError"),
    "rerankers tei": Wanted("IndexError", "TypeError", "TypeError", "TypeError"),
}


def wanted_of(name: str) -> Wanted:
    """The row of the client itself, else of its family."""
    return WANTED.get(name) or WANTED[re.split("[ ,]", name)[0]]


def key(secret: str, **limits: Any) -> Key:
    """A key whose name is its secret, in the letters that a name has."""
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    return read_key({"name": re.sub(r"\W+", "-", secret), "hash": hashed, **limits})


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[Running]:
    """With a key for each client that may send three pairs in ten seconds."""
    settings = Settings(port=0, target=server.grpc_target, model=(DEMO,), timeout_s=60.0, max_timeout_s=60.0)
    slow = [key(f"slow {where} {name}", pairs_per_s=0.3, burst=len(DOCUMENTS)) for where, name in EVERY]
    with running(settings, keys=[key(KEY), *slow]) as found:
        wait_for(lambda: found.get("/health/ready").status_code == 200, 60)
        yield found


@pytest.fixture(scope="module")
def order(server: TritonServer) -> list[int]:
    """The order of our own client."""
    with RerankClient(server.grpc_target, model=DEMO, timeout_s=60.0) as client:
        found = [ranked.index for ranked in client.rerank(QUERY, DOCUMENTS)]
    assert found[0] == 1
    return found


Outcomes = Mapping[str, Mapping[str, Mapping[str, Any]]]


@pytest.fixture(scope="module")
def outcomes(gateway: Running) -> dict[str, Outcomes]:
    """What came of every check of every client, by environment; absent where that is."""

    def ask(where: str) -> Outcomes:
        checks = {**CHECKS, "overload": {**CHECKS["overload"], "key": f"slow {where}"}}
        names = ENVIRONMENTS[where].clients
        plan = {"url": gateway.url, "clients": names, "checks": checks, "query": QUERY, "documents": DOCUMENTS}
        done = subprocess.run(
            ENVIRONMENTS[where].program,
            cwd=SDKS if where == "node" else None,
            input=json.dumps({**plan, "key": KEY, "model": "rerank-v3.5"}),
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: Outcomes = json.loads(done.stdout)
        return found

    there = [where for where, environment in ENVIRONMENTS.items() if environment.is_there]
    with ThreadPoolExecutor(len(there)) as pool:
        return dict(zip(there, pool.map(ask, there), strict=True))


@pytest.fixture(params=EVERY, ids=" ".join)
def asked(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Environment and client."""
    where, name = request.param
    if not ENVIRONMENTS[where].is_there:
        pytest.skip(f"{name} is not installed: `make gateway-sdks` does it{', where npm is' * (where == 'node')}")
    return where, name


def test_a_client_gets_the_order_the_scores_and_its_documents(
    asked: tuple[str, str], outcomes: dict[str, Outcomes], order: list[int]
) -> None:
    where, name = asked
    rows = outcomes[where][name]["all"]["rows"]
    assert [text for text, _ in rows] == [DOCUMENTS[index] for index in order]
    scores = [score for _, score in rows]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert "nvidia" in name or all(0 <= score <= 1 for score in scores)  # NIM tells logits


def test_a_client_gets_as_many_as_it_asks_for(
    asked: tuple[str, str], outcomes: dict[str, Outcomes], order: list[int]
) -> None:
    where, name = asked
    told = outcomes[where][name]
    assert [text for text, _ in told["top_n"]["rows"]] == [DOCUMENTS[order[0]]]
    assert [text for text, _ in told["top_n above"]["rows"]] == [DOCUMENTS[index] for index in order]


@pytest.mark.parametrize("check", ["empty", "wrong key", "unknown model"])
def test_a_client_raises_its_own_class_with_our_words(
    asked: tuple[str, str], outcomes: dict[str, Outcomes], check: str
) -> None:
    where, name = asked
    expect(outcomes[where][name][check], getattr(wanted_of(name), check.replace(" ", "_")), WORDS[check])


def test_a_client_that_is_refused_comes_again_when_retry_after_says_or_raises_its_class(
    asked: tuple[str, str], outcomes: dict[str, Outcomes], gateway: Running
) -> None:
    where, name = asked
    wanted = wanted_of(name).overload
    expect(outcomes[where][name]["overload"], wanted, WORDS["overload"])
    refused, answered = (requests(gateway, key(f"slow {where} {name}").name, status) for status in (429, 200))
    if wanted is RANKED:  # one that came sooner, as its own backoff of one and two seconds, was refused again
        assert (refused, answered) == (1, 2)
    else:
        assert refused >= 1 and answered == 1


def expect(outcome: Mapping[str, Any], wanted: str, words: str) -> None:
    """An outcome is what it must be."""
    if wanted in (NOTHING, RANKED):
        assert "rows" in outcome, outcome
        assert len(outcome["rows"]) == (0 if wanted is NOTHING else len(DOCUMENTS))
        return
    assert outcome.get("error") == wanted, outcome
    assert wanted in UNREAD or words in outcome["said"], outcome


def requests(gateway: Running, name: str, status: int) -> float:
    """Requests of a key that had a status, whatever their dialect."""
    text = gateway.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    line = rf'requests_total{{dialect="[\w-]+",key="{name}",model="[\w-]+",status="{status}"}} ([\d.]+)$'
    return sum(map(float, re.findall(line, text, re.MULTILINE)))


@pytest.fixture
def busy() -> Iterator[Running]:
    """A gateway without a waiting room, which one request fills until another is refused; then its caller hangs up."""
    settings = Settings(
        port=0,
        pairs_in_flight=3,
        pairs_waiting=3,
        max_wait_s=0.05,
        timeout_s=300.0,
        max_timeout_s=300.0,
        canary_interval_s=3600.0,
    )
    scorer = fake()
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n"
    with running(settings, scorer) as found, ThreadPoolExecutor(1) as pool:
        wait_for(lambda: found.get("/health/ready").status_code == 200)
        scorer.delay_s = 300.0
        first = socket.create_connection(("127.0.0.1", found.port))
        first.sendall(head.encode() + body)
        wait_for(lambda: found.gateway.admission.queue.in_flight.pairs == 3)
        scorer.delay_s = 0.0

        def leave() -> None:
            with first:
                wait_for(lambda: refusals(found) > 0, 120.0)

        leaving = pool.submit(leave)
        yield found
        leaving.result()


def refusals(gateway: Running) -> float:
    labels = {"event": "refused", "model": "fake-model"}
    return gateway.gateway.metrics.registry.get_sample_value("triton_rerank_gateway_events_total", labels) or 0.0


def test_cohere_waits_for_a_busy_gateway_and_is_answered(busy: Running) -> None:
    client = cohere.ClientV2("any", base_url=busy.url)
    assert len(client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS).results) == 3
    assert refusals(busy) > 0


def test_voyage_raises_its_class_for_a_busy_gateway(busy: Running) -> None:
    client = voyageai.Client(api_key="any", base_url=f"{busy.url}/v1", max_retries=1)  # type: ignore[attr-defined]
    with pytest.raises(voyageai.error.RateLimitError, match="come again in"):
        client.rerank(QUERY, DOCUMENTS, "rerank-2.5")


Read = Callable[[Any], list[tuple[int, str | None]]]


def rows_of(field: str | None, text: Callable[[Any], str] | None = None) -> Read:
    """Reads index and text of each result as a client does."""

    def read(answer: Any) -> list[tuple[int, str | None]]:
        return [(row["index"], None if text is None else text(row)) for row in (answer[field] if field else answer)]

    return read


RESULTS = rows_of("results")
WITH_OBJECTS = rows_of("results", lambda row: str(row["document"]["text"]))
TEXTS, PASSAGES = {"texts": DOCUMENTS}, {"passages": [{"text": text} for text in DOCUMENTS], "query": {"text": QUERY}}
# What clients send that are not run here, read in their sources: path, body beside query and documents, what is read.
SENT: dict[str, tuple[str, dict[str, Any], Read]] = {
    "cohere 5.2.6: Dify, RAGFlow": ("/rerank", {"top_n": 3, "return_documents": True}, WITH_OBJECTS),
    "cohere 5.2.6, base URL with /v1": ("/v1/rerank", {"top_n": 3, "return_documents": False}, RESULTS),
    "Dify voyage": (
        "/v1/rerank",
        {"top_k": None, "return_documents": True},
        rows_of("data", lambda row: str(row["document"])),
    ),
    "Dify jina": ("/v1/rerank", {"top_n": None, "return_documents": False}, RESULTS),
    "Dify siliconflow": ("/v1/rerank", {"top_n": None, "return_documents": True}, WITH_OBJECTS),
    "Dify localai": ("/rerank", {"top_n": None}, RESULTS),
    "Dify gpustack": ("/v1/rerank", {"top_n": None}, RESULTS),
    "Dify openai-compatible, Open WebUI, RAGFlow": ("/v1/rerank", {"top_n": 3}, RESULTS),
    "Dify tei": ("/rerank", {**TEXTS, "return_text": True}, rows_of(None, lambda row: str(row["text"]))),
    "Dify xinference": (
        "/v1/rerank",
        {"top_n": None, "max_chunks_per_doc": None, "return_documents": True},
        WITH_OBJECTS,
    ),
    "LlamaIndex SiliconFlow": (
        "/v1/rerank",
        {"return_documents": True, "max_chunks_per_doc": 1024, "overlap_tokens": 80},
        WITH_OBJECTS,
    ),
    "RAGFlow xinference": ("/v1/rerank", {"return_documents": "true", "return_len": "true"}, WITH_OBJECTS),
    "RAGFlow huggingface": ("/rerank", {**TEXTS, "truncate": True}, rows_of(None)),
    "RAGFlow nvidia": ("/v1/reranking", {**PASSAGES, "truncate": "END", "top_n": 3}, rows_of("rankings")),
    "LlamaIndex and Haystack NVIDIA, aiperf nim": ("/v1/ranking", PASSAGES, rows_of("rankings")),
    "LlamaIndex Xinference": ("/v1/rerank", {"model": DEMO}, RESULTS),
    "LightRAG": ("/v1/rerank", {"return_documents": False}, RESULTS),
    "LibreChat": (
        "/v1/rerank",
        {"model": "jina-reranker-v2-base-multilingual", "top_n": 5, "return_documents": True},
        WITH_OBJECTS,
    ),
    "infinity_client": (
        "/infinity/rerank",
        {"model": "default/not-specified", "raw_scores": False, "return_documents": True},
        rows_of("results", lambda row: str(row["document"])),
    ),
    "aiperf cohere": ("/v2/rerank", {"model": DEMO}, RESULTS),
    "aiperf tei": ("/rerank", TEXTS, rows_of(None)),
}


@pytest.mark.parametrize("client", SENT)
def test_what_other_clients_send_is_answered_as_they_read_it(client: str, gateway: Running, order: list[int]) -> None:
    path, more, read = SENT[client]
    body = {"query": QUERY, **({} if {"texts", "passages"} & more.keys() else {"documents": DOCUMENTS}), **more}
    found = gateway.post(path, body, headers={"authorization": f"Bearer {KEY}"})
    assert found.status_code == 200, found.text
    told = read(found.json())
    assert [index for index, _ in told] == order
    assert all(text in (None, DOCUMENTS[index]) for index, text in told)
