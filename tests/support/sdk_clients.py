"""Real clients of rerank APIs, each as a function of one call: run by the python that has them, in one process.

It imports nothing of ours and nothing of theirs before a client is asked for, so that a test can read `CLIENTS` without
them. As a program it reads a plan from standard input and writes what came of each call, both JSON:

    {"url": …, "clients": ["cohere v2"], "documents": […], "query": …, "checks": {"top_n": {"top_n": 1}, …}}
    {"cohere v2": {"top_n": {"rows": [["text", 0.9]]}, …}}       or {"error": class, "said": text} in place of rows

A check is the fields of `Case` that differ from a plain call. ``"at_once": true`` beside them runs it for all clients
together, after a first request of the same key was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

Row = tuple[str, float]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        url: of the gateway, without a path.
        query, documents: texts; the documents are all different.
        key, model: as a user of the client gives them.
        top_n: None asks for all.
    """

    url: str
    query: str
    documents: Sequence[str]
    key: str
    model: str
    top_n: int | None = None

    def row(self, index: int, score: float) -> Row:
        """A result of a client that tells the place of a document only."""
        return self.documents[index], score

    @property
    def most(self) -> int:
        """For clients that want a number."""
        return self.top_n or 100


Client = Callable[[Case], list[Row]]


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _awaited(found: Any) -> Any:
    if not asyncio.iscoroutine(found):
        return found

    async def wait() -> Any:
        return await found

    return asyncio.run(wait())


def _cohere_v1(case: Case, kind: str) -> list[Row]:
    """Documents as objects, which come back whole."""
    documents = [{"text": text, "page": index} for index, text in enumerate(case.documents)]
    client = _load("cohere", kind)(case.key, base_url=case.url)
    found = _awaited(
        client.rerank(model=case.model, query=case.query, documents=documents, top_n=case.top_n, return_documents=True)
    )
    assert found.id and found.meta.api_version.version == "1"
    assert all(row.document.page == row.index for row in found.results)
    return [(row.document.text, row.relevance_score) for row in found.results]


def _cohere_v2(case: Case, kind: str) -> list[Row]:
    client = _load("cohere", kind)(case.key, base_url=case.url)
    found = _awaited(client.rerank(model=case.model, query=case.query, documents=case.documents, top_n=case.top_n))
    assert found.id and found.meta.api_version.version == "2"
    return [case.row(row.index, row.relevance_score) for row in found.results]


def _voyage(case: Case, kind: str) -> list[Row]:
    client = _load("voyageai", kind)(api_key=case.key, base_url=f"{case.url}/v1", max_retries=0)
    found = _awaited(client.rerank(case.query, list(case.documents), case.model, top_k=case.top_n))
    assert found.total_tokens > 0
    return [(row.document, row.relevance_score) for row in found.results]


def _litellm(case: Case, provider: str, path: str = "", function: str = "rerank") -> list[Row]:
    """It asks for documents by itself, and reads an object or a string, each provider its own."""
    found = _awaited(
        _load("litellm", function)(
            model=f"{provider}/{case.model}",
            query=case.query,
            documents=list(case.documents),
            top_n=case.top_n,
            api_key=case.key,
            api_base=case.url + path,
        )
    )
    return [
        (row["document"]["text"] if "document" in row else case.documents[row["index"]], row["relevance_score"])
        for row in found.results
    ]


def _langchain(case: Case, module: str, name: str, path: str = "", **named: str) -> list[Row]:
    """A document compressor; ``named`` says what it calls key and number."""
    ranker = _load(module, name)(
        **{"base_url": case.url + path, "model": case.model, named["key"]: case.key, named["top"]: case.most}
    )
    document = _load("langchain_core.documents", "Document")
    found = ranker.compress_documents([document(page_content=text) for text in case.documents], case.query)
    return [(row.page_content, row.metadata["relevance_score"]) for row in found]


def _llama_index(case: Case, module: str, name: str, path: str = "", **more: str) -> list[Row]:
    """A node postprocessor; ``more`` are its arguments, KEY and MODEL standing for those of the case."""
    told = {"KEY": case.key, "MODEL": case.model}
    ranker = _load(f"llama_index.postprocessor.{module}", name)(
        base_url=case.url + path, top_n=case.most, **{argument: told[value] for argument, value in more.items()}
    )
    schema = importlib.import_module("llama_index.core.schema")
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in case.documents]
    found = ranker.postprocess_nodes(nodes, query_str=case.query)
    return [(row.node.text, row.score) for row in found]


def _haystack(case: Case, module: str, name: str, place: str, path: str = "", **more: str) -> list[Row]:
    """A ranker component; ``place`` is what it calls its base URL, ``more`` as for `_llama_index`."""
    told = {"KEY": _load("haystack.utils", "Secret").from_token(case.key), "MODEL": case.model}
    ranker = _load(f"haystack_integrations.components.rankers.{module}", name)(
        **{place: case.url + path}, **{argument: told[value] for argument, value in more.items()}
    )
    document = _load("haystack", "Document")
    found = ranker.run(case.query, [document(content=text) for text in case.documents], top_k=case.most)
    return [(row.content, row.score) for row in found["documents"]]


def _rerankers(case: Case, provider: str, path: str) -> list[Row]:
    """It always asks for all, and the caller takes the first of them."""
    kind = _load("rerankers.models.api_rankers", "APIRanker")
    found = kind(case.model, case.key, provider, url=case.url + path).rank(case.query, list(case.documents))
    return [(row.document.text, row.score) for row in found.top_k(case.most)]


CLIENTS: dict[str, Client] = {
    "cohere v1": partial(_cohere_v1, kind="Client"),
    "cohere v1, async": partial(_cohere_v1, kind="AsyncClient"),
    "cohere v2": partial(_cohere_v2, kind="ClientV2"),
    "cohere v2, async": partial(_cohere_v2, kind="AsyncClientV2"),
    "voyageai": partial(_voyage, kind="Client"),
    "voyageai, async": partial(_voyage, kind="AsyncClient"),
    "litellm cohere": partial(_litellm, provider="cohere"),
    "litellm cohere, async": partial(_litellm, provider="cohere", function="arerank"),
    "litellm jina_ai": partial(_litellm, provider="jina_ai"),
    "litellm voyage": partial(_litellm, provider="voyage"),
    "litellm huggingface": partial(_litellm, provider="huggingface"),
    "litellm hosted_vllm": partial(_litellm, provider="hosted_vllm"),
    "litellm together_ai": partial(_litellm, provider="together_ai", path="/v1"),
    "litellm infinity": partial(_litellm, provider="infinity", path="/infinity"),
    "litellm nvidia_nim": partial(_litellm, provider="nvidia_nim"),
    "langchain-cohere": partial(
        _langchain, module="langchain_cohere", name="CohereRerank", key="cohere_api_key", top="top_n"
    ),
    "langchain-voyageai": partial(
        _langchain, module="langchain_voyageai", name="VoyageAIRerank", path="/v1", key="api_key", top="top_k"
    ),
    "langchain-nvidia": partial(
        _langchain, module="langchain_nvidia_ai_endpoints", name="NVIDIARerank", path="/v1", key="api_key", top="top_n"
    ),
    "llama-index cohere": partial(
        _llama_index, module="cohere_rerank", name="CohereRerank", api_key="KEY", model="MODEL"
    ),
    "llama-index jina": partial(
        _llama_index, module="jinaai_rerank", name="JinaRerank", path="/v1", api_key="KEY", model="MODEL"
    ),
    "llama-index tei": partial(_llama_index, module="tei_rerank", name="TextEmbeddingInference", auth_token="KEY"),
    "haystack cohere": partial(
        _haystack, module="cohere", name="CohereRanker", place="api_base_url", api_key="KEY", model="MODEL"
    ),
    "haystack jina": partial(
        _haystack, module="jina", name="JinaRanker", place="base_url", path="/v1/rerank", api_key="KEY", model="MODEL"
    ),
    "haystack tei": partial(_haystack, module="huggingface_api", name="HuggingFaceTEIRanker", place="url", token="KEY"),
    "rerankers cohere": partial(_rerankers, provider="cohere", path="/v1/rerank"),
    "rerankers jina": partial(_rerankers, provider="jina", path="/v1/rerank"),
    "rerankers voyage": partial(_rerankers, provider="voyage", path="/v1/rerank"),
    "rerankers tei": partial(_rerankers, provider="text-embeddings-inference", path="/rerank"),
}


def call(name: str, case: Case) -> dict[str, Any]:
    """What came of one call: rows, or the class and the words of an error."""
    try:
        return {"rows": CLIENTS[name](case)}
    except Exception as exc:  # noqa: BLE001 - each class is a result here
        return {"error": type(exc).__name__, "said": str(exc)}


def _first(case: Case) -> None:
    body = json.dumps({"query": case.query, "documents": list(case.documents)}).encode()
    headers = {"authorization": f"Bearer {case.key}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{case.url}/v1/rerank", body, headers), timeout=60) as found:
        assert found.status == 200


def _second(name: str, case: Case) -> dict[str, Any]:
    _first(case)
    return call(name, case)


def run(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every check of every client; those ``at_once`` at the end."""
    names, checks = plan["clients"], plan["checks"]
    plain = Case(plan["url"], plan["query"], plan["documents"], plan["key"], plan["model"])
    outcomes: dict[str, dict[str, Any]] = {name: {} for name in names}
    for check, told in checks.items():
        changes = {field: value for field, value in told.items() if field != "at_once"}
        if not told.get("at_once"):
            for name in names:
                outcomes[name][check] = call(name, replace(plain, **changes))
            continue
        with ThreadPoolExecutor(len(names)) as pool:
            cases = [replace(plain, **{**changes, "key": f"{changes['key']} {name}"}) for name in names]
            for name, found in zip(names, pool.map(_second, names, cases), strict=True):
                outcomes[name][check] = found
    return outcomes


if __name__ == "__main__":
    os.environ |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LANGSMITH_TRACING": "false",
        "NO_PROXY": "127.0.0.1",
    }
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # LiteLLM prints advice
        told = run(json.load(sys.stdin))
    json.dump(told, answers)
