"""Both clients, one table: whatever a call gives, sync and async give the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest

from triton_rerank import AsyncRerankClient, ConfigurationError, InvalidRequestError, RerankClient, RerankResult
from triton_rerank_server import TritonServer

QUERY = "how do I make a file smaller?"
LONG = " ".join(["compression"] * 900)


@dataclass(frozen=True)
class Note:
    """A document that is an object of the caller's own."""

    text: str
    number: int


NOTES = [
    Note("gzip makes files smaller", 1),
    Note("a drawer for files", 2),
    Note("", 3),
    Note("gzip makes files smaller", 4),
]
MAPPINGS = [{"body": note.text, "id": note.number} for note in NOTES]
MANY = [" ".join(["file"] * (1 + i * 7 % 120)) + f" number {i}" for i in range(700)]

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "all": ("rerank", (QUERY, [note.text for note in NOTES]), {}),
    "top_k": ("rerank", (QUERY, [note.text for note in NOTES]), {"top_k": 2}),
    "more than there are": ("rerank", (QUERY, ["a", "b"]), {"top_k": 10**9}),
    "min_score": ("rerank", (QUERY, [note.text for note in NOTES]), {"min_score": 0.85}),
    "objects": ("rerank", (QUERY, NOTES), {}),
    "generator": ("rerank", (QUERY, iter(["a", "b"])), {}),
    "max_length": ("rerank", (QUERY, [LONG, "short"]), {"max_length": 32}),
    "max_query_tokens": ("rerank", (LONG, ["a", "b"]), {"max_query_tokens": np.int64(5)}),
    "max_query_tokens too large": ("rerank", (QUERY, ["a"]), {"max_query_tokens": 10**6}),
    "max_document_tokens": ("rerank", (QUERY, [LONG, "b"]), {"max_document_tokens": np.int64(5)}),
    "max_document_tokens too large": ("rerank", (QUERY, ["a"]), {"max_document_tokens": 10**6}),
    "instruction": ("rerank", (QUERY, ["a"]), {"instruction": "find code"}),
    "blank instruction": ("rerank", (QUERY, ["a"]), {"instruction": " "}),
    "split": ("rerank", (QUERY, MANY), {"timeout_s": 60.0}),
    "nothing": ("rerank", (QUERY, []), {}),
    "blank query": ("rerank", ("  ", ["a"]), {}),
    "bad top_k": ("rerank", (QUERY, ["a"]), {"top_k": 0}),
    "bad document": ("rerank", (QUERY, ["a", 7]), {}),
    "no such key": ("rerank", (QUERY, MAPPINGS), {}),
    "max_length too large": ("rerank", (QUERY, ["a"]), {"max_length": 10**6}),
    "bad timeout": ("rerank", (QUERY, ["a"]), {"timeout_s": -1}),
    "bad header": ("rerank", (QUERY, ["a"]), {"headers": {"a b": "c"}}),
    "header": ("rerank", (QUERY, ["a"]), {"headers": {"Traceparent": "00-1-2-01"}}),
    "scores": ("score", (QUERY, NOTES), {}),
    "no scores": ("score", (QUERY, []), {}),
    "many": ("rerank_many", ([QUERY, "", "b"], [["a", "b"], ["c"], [None]]), {"top_k": 1}),
    "many, not as many lists": ("rerank_many", ([QUERY], []), {}),
    "many, no concurrency": ("rerank_many", ([QUERY], [["a"]]), {"concurrency": 0}),
    "no queries": ("rerank_many", ([], []), {}),
    "model": ("model_info", (), {}),
    "ready": ("is_ready", (), {}),
}


def comparable(outcome: Any) -> Any:
    """All of an outcome but its times."""
    if isinstance(outcome, list):
        return [comparable(each) for each in outcome]
    if isinstance(outcome, Exception):
        return type(outcome), str(outcome)
    if isinstance(outcome, RerankResult):
        return replace(outcome, timings=replace(outcome.timings, total_s=0.0, scoring_s=0.0))
    return outcome


def outcome_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - what it is gets compared
        return exc


@pytest.fixture(scope="module")
def sync_client(server: TritonServer) -> Iterator[RerankClient]:
    with RerankClient(server.grpc_target, model="tiny-bert", timeout_s=60.0) as client:
        yield client


def ask_async(target: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    async def ask() -> Any:
        async with AsyncRerankClient(target, model="tiny-bert", timeout_s=60.0) as client:
            return await getattr(client, name)(*arguments, **options)

    return outcome_of(lambda: asyncio.run(ask()))


@pytest.mark.parametrize("case", list(CALLS))
def test_sync_and_async_give_the_same(server: TritonServer, sync_client: RerankClient, case: str) -> None:
    name, arguments, options = CALLS[case]
    if case == "generator":  # each client needs one of its own
        arguments = (QUERY, ["a", "b"])
    blocking = outcome_of(lambda: getattr(sync_client, name)(*arguments, **options))
    awaited = ask_async(server.grpc_target, name, arguments, options)
    assert comparable(blocking) == comparable(awaited)


def test_the_callers_own_objects_come_back_untouched(sync_client: RerankClient) -> None:
    result = sync_client.rerank(QUERY, NOTES)
    assert {id(ranked.document) for ranked in result} == {id(note) for note in NOTES}
    assert all(ranked.document is NOTES[ranked.index] for ranked in result)


def test_a_text_key_names_the_key_or_is_a_function(server: TritonServer) -> None:
    texts = [note.text for note in NOTES]
    with RerankClient(server.grpc_target, model="tiny-bert") as plain:
        expected = plain.score(QUERY, texts)
    for text_key, documents in (("body", MAPPINGS), (lambda note: note.text, NOTES)):
        with RerankClient(server.grpc_target, model="tiny-bert", text_key=text_key) as client:
            assert client.score(QUERY, documents) == expected
            assert client.score(QUERY, texts) == expected  # strings need no key


def test_duplicates_are_scored_once_and_keep_their_places(sync_client: RerankClient) -> None:
    once = sync_client.rerank(QUERY, ["a b c", "d e f"])
    result = sync_client.rerank(QUERY, ["a b c", "d e f"] * 50)
    assert result.usage.token_count == once.usage.token_count == sum(ranked.token_count or 0 for ranked in once)
    assert result.usage.pairs == 100
    best = once[0].index
    assert [ranked.index for ranked in result][:50] == list(range(best, 100, 2))


def logits_of(result: RerankResult[str]) -> dict[int, float]:
    return {ranked.index: cast("float", ranked.logit) for ranked in result}


def test_a_split_list_gives_the_logits_of_an_unsplit_one(sync_client: RerankClient) -> None:
    split = sync_client.rerank(QUERY, MANY)
    assert split.timings.requests > 1
    logits = logits_of(split)
    assert sorted(logits) == list(range(len(MANY)))
    for start in range(0, len(MANY), 100):
        whole = sync_client.rerank(QUERY, MANY[start : start + 100])
        assert all(np.isclose(logits[start + i], logit, atol=1e-4) for i, logit in logits_of(whole).items())


def test_a_min_score_is_on_the_scale_of_the_activation(demo_client: RerankClient, passages: list[str]) -> None:
    everything = demo_client.rerank(QUERY, passages)
    bound = everything[4].score
    assert bound is not None
    kept = demo_client.rerank(QUERY, passages, min_score=bound)
    assert [ranked.index for ranked in kept][:5] == [ranked.index for ranked in everything][:5]
    assert all(ranked.score is not None and ranked.score >= bound - 1e-3 for ranked in kept)


def test_a_result_says_who_answered(sync_client: RerankClient, server: TritonServer) -> None:
    result = sync_client.rerank(QUERY, ["a", "b"])
    assert result.served_by == f"triton({server.grpc_target})"
    assert (result.model, result.model_version) == ("tiny-bert", "1")
    assert (result.degraded, result.reason, result.attempts) == (False, None, ())
    assert result.timings.total_s >= result.timings.scoring_s > 0


def test_a_closed_client_says_so(server: TritonServer) -> None:
    client = RerankClient(server.grpc_target, model="tiny-bert")
    client.score("q", ["d"])
    client.close()
    client.close()
    with pytest.raises(ConfigurationError, match="the client is closed"):
        client.score("q", ["d"])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((), {}), (("127.0.0.1:1",), {}), ((), {"model": "m", "scorer": object()}), (("a:1",), {"scorer": object()})],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for client in (RerankClient, AsyncRerankClient):
        with pytest.raises(ConfigurationError):
            client(*arguments, **options)


def test_a_scorer_of_the_callers_own_will_do_for_both_clients(server: TritonServer) -> None:
    from triton_rerank import TritonScorer

    scorer = TritonScorer(server.grpc_target, "tiny-bert", name="mine")
    blocking = RerankClient(scorer=scorer).rerank(QUERY, ["a", "b"])

    async def ask() -> RerankResult[str]:
        async with AsyncRerankClient(scorer=scorer) as client:
            return await client.rerank(QUERY, ["a", "b"])

    awaited = asyncio.run(ask())
    assert comparable(blocking) == comparable(awaited)
    assert blocking.served_by == "mine"


def test_a_text_key_that_is_neither_name_nor_function_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="text_key is 3"):
        RerankClient("127.0.0.1:1", model="m", text_key=3)  # type: ignore[arg-type]
