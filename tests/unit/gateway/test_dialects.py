"""Each dialect beside its golden answers: what a client of it sends, and every byte that it reads of the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from support.gateways import DOCUMENTS, QUERY, fake

from triton_rerank import CascadeScorer, FallbackScorer, RerankClient, Scorer, ServerUnavailableError
from triton_rerank_gateway.answered import Answered
from triton_rerank_gateway.dialects.base import Dialect
from triton_rerank_gateway.dialects.cohere import COHERE_V1, COHERE_V2
from triton_rerank_gateway.dialects.infinity import INFINITY
from triton_rerank_gateway.dialects.jina import JINA
from triton_rerank_gateway.dialects.nim import NIM
from triton_rerank_gateway.dialects.routes import ROUTES
from triton_rerank_gateway.dialects.tei import TEI, TEI_PREDICT
from triton_rerank_gateway.dialects.v1_rerank import V1_RERANK
from triton_rerank_gateway.dialects.vllm import VLLM, VLLM_SCORE
from triton_rerank_gateway.dialects.voyage import JINA_OR_VOYAGE, VOYAGE
from triton_rerank_gateway.dialects.xinference import XINFERENCE
from triton_rerank_gateway.failures import GatewayError, Kind
from triton_rerank_gateway.fields import Fields

Json = dict[str, Any]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


TWO, ONE, NONE = sigmoid(2), sigmoid(1), sigmoid(0)  # scores of the documents, by shared words
TOKENS = 13
USAGE = {"prompt_tokens": TOKENS, "total_tokens": TOKENS}
META = {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": TOKENS, "output_tokens": 0}}
META_1 = {"api_version": {"version": "1"}, **META}
META_2 = {"api_version": {"version": "2"}, **META}
ORDER: list[Json] = [{"index": index, "relevance_score": score} for index, score in ((1, TWO), (2, ONE), (0, NONE))]
BODY: Json = {"query": QUERY, "documents": DOCUMENTS}


def with_objects(rows: list[Json]) -> list[Json]:
    return [{**row, "document": {"text": DOCUMENTS[row["index"]]}} for row in rows]


def with_texts(rows: list[Json]) -> list[Json]:
    return [{**row, "document": DOCUMENTS[row["index"]]} for row in rows]


def answered(dialect: Dialect, body: Mapping[str, Any], scorer: Scorer | None = None) -> Answered:
    question = dialect.question(Fields(dict(body)))
    with RerankClient(scorer=scorer or fake()) as client:
        results = tuple(client.rerank(part.query, part.documents) for part in question.parts)
    return Answered(question, results, "public", "the-id", 1_700_000_000, waited_s=0.002, total_s=0.01)


def answer(dialect: Dialect, body: Mapping[str, Any], scorer: Scorer | None = None) -> Any:
    return dialect.answer(answered(dialect, body, scorer))


GOLDEN: dict[str, tuple[Dialect, Json, Any]] = {
    "cohere v1": (COHERE_V1, BODY, {"id": "the-id", "results": ORDER, "meta": META_1}),
    "cohere v1, documents": (
        COHERE_V1,
        {**BODY, "top_n": 2, "return_documents": True, "model": None, "max_chunks_per_doc": None, "rank_fields": None},
        {"id": "the-id", "results": with_objects(ORDER[:2]), "meta": META_1},
    ),
    "cohere v2": (
        COHERE_V2,
        {**BODY, "model": "rerank-v3.5", "top_n": 1, "max_tokens_per_doc": 4096, "priority": 3},
        {"id": "the-id", "results": ORDER[:1], "meta": META_2},
    ),
    "cohere v2, with nulls": (
        COHERE_V2,
        {**BODY, "top_n": None, "max_tokens_per_doc": None},
        {"id": "the-id", "results": ORDER, "meta": META_2},
    ),
    "v1-rerank": (
        V1_RERANK,
        {**BODY, "top_n": 5, "user": "me", "unknown": [1]},
        {"id": "the-id", "model": "public", "results": ORDER, "usage": USAGE, "meta": META_1},
    ),
    "v1-rerank, RAGFlow's strings for booleans": (
        V1_RERANK,
        {**BODY, "return_documents": "true", "return_len": "true"},
        {"id": "the-id", "model": "public", "results": with_objects(ORDER), "usage": USAGE, "meta": META_1},
    ),
    "jina": (
        JINA,
        {**BODY, "return_documents": True},
        {"model": "public", "object": "list", "usage": USAGE, "results": with_objects(ORDER)},
    ),
    "voyage": (
        VOYAGE,
        {**BODY, "model": "rerank-2.5", "top_k": None, "truncation": True},
        {"object": "list", "data": ORDER, "model": "public", "usage": USAGE},
    ),
    "voyage, documents": (
        VOYAGE,
        {**BODY, "top_k": 1, "return_documents": True},
        {"object": "list", "data": with_texts(ORDER[:1]), "model": "public", "usage": USAGE},
    ),
    "jina or voyage": (
        JINA_OR_VOYAGE,
        {**BODY, "return_documents": True},
        {
            "id": "the-id",
            "model": "public",
            "results": with_objects(ORDER),
            "data": with_texts(ORDER),
            "usage": USAGE,
            "meta": META_1,
        },
    ),
    "infinity": (
        INFINITY,
        {**BODY, "return_documents": True, "raw_scores": False, "top_n": 2},
        {
            "object": "rerank",
            "results": with_texts(ORDER[:2]),
            "model": "public",
            "usage": USAGE,
            "id": "infinity-the-id",
            "created": 1_700_000_000,
        },
    ),
    "vllm": (
        VLLM,
        {**BODY, "top_n": 0, "truncate_prompt_tokens": -1},
        {
            "id": "rerank-the-id",
            "model": "public",
            "usage": USAGE,
            "results": [{**row, "document": {"text": DOCUMENTS[row["index"]], "multi_modal": None}} for row in ORDER],
        },
    ),
    "vllm, scores of one text with many": (
        VLLM_SCORE,
        {"text_1": QUERY, "text_2": DOCUMENTS},
        {
            "id": "score-the-id",
            "object": "list",
            "created": 1_700_000_000,
            "model": "public",
            "data": [{"index": n, "object": "score", "score": score} for n, score in enumerate((NONE, TWO, ONE))],
            "usage": USAGE,
        },
    ),
    "xinference": (
        XINFERENCE,
        {**BODY, "top_n": None, "return_documents": True, "return_len": True, "kwargs": "{}"},
        {"id": "the-id", "results": with_objects(ORDER), "meta": {**META_1, "warnings": None}},
    ),
    "nim": (
        NIM,
        {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS], "truncate": "END"},
        {
            "rankings": [{"index": 1, "logit": 2.0}, {"index": 2, "logit": 1.0}, {"index": 0, "logit": 0.0}],
            "usage": USAGE,
        },
    ),
    "tei": (
        TEI,
        {"query": QUERY, "texts": DOCUMENTS, "model": "any", "truncate": True, "truncation_direction": "Right"},
        [{"index": 1, "score": TWO}, {"index": 2, "score": ONE}, {"index": 0, "score": NONE}],
    ),
    "tei, raw, with texts, the best": (
        TEI,
        {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True, "top_n": 1},
        [{"index": 1, "score": 2.0, "text": DOCUMENTS[1]}],
    ),
    "tei, one pair": (TEI_PREDICT, {"inputs": [QUERY, "cats"]}, [{"score": ONE, "label": "LABEL_0"}]),
    "tei, pairs of several queries": (
        TEI_PREDICT,
        {"inputs": [[QUERY, "cats"], ["a dog", "a dog"], [QUERY, "cats sleep"]], "raw_scores": True},
        [[{"score": score, "label": "LABEL_0"}] for score in (1.0, 2.0, 2.0)],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_a_dialect_answers_as_its_clients_expect(case: str) -> None:
    dialect, body, wanted = GOLDEN[case]
    assert answer(dialect, body) == wanted


def openai(kind: str, code: int) -> Json:
    return {"message": "why", "type": kind, "param": None, "code": code}


def everywhere(kind: str, code: int) -> Json:
    return {"message": "why", "detail": "why", "error": openai(kind, code)}


INVALID_LIST = {"detail": [{"loc": ["body"], "msg": "why", "type": "value_error"}]}
MESSAGE, DETAIL = {"message": "why"}, {"detail": "why"}
ERRORS: list[tuple[Dialect, Kind, int, Json]] = [
    (V1_RERANK, "invalid", 400, everywhere("invalid", 400)),
    (V1_RERANK, "too_large", 400, everywhere("too_large", 400)),
    (V1_RERANK, "unauthorized", 401, everywhere("unauthorized", 401)),
    (V1_RERANK, "overloaded", 429, everywhere("overloaded", 429)),
    (COHERE_V2, "empty", 400, MESSAGE),
    (COHERE_V2, "unauthorized", 401, MESSAGE),
    (COHERE_V2, "forbidden", 403, MESSAGE),
    (COHERE_V1, "unknown_model", 404, MESSAGE),
    (COHERE_V1, "too_large", 400, MESSAGE),
    (COHERE_V2, "overloaded", 429, MESSAGE),
    (COHERE_V2, "unavailable", 503, MESSAGE),
    (COHERE_V2, "deadline", 504, MESSAGE),
    (JINA, "invalid", 400, DETAIL),
    (JINA, "overloaded", 429, DETAIL),
    (VOYAGE, "invalid", 400, DETAIL),
    (VOYAGE, "unauthorized", 401, DETAIL),
    (VOYAGE, "unknown_model", 400, DETAIL),
    (VOYAGE, "too_large", 400, DETAIL),
    (INFINITY, "invalid", 422, INVALID_LIST),
    (INFINITY, "too_large", 422, INVALID_LIST),
    (INFINITY, "unauthorized", 401, DETAIL),
    (INFINITY, "unknown_model", 400, {"error": openai("unknown_model", 400)}),
    (VLLM, "unknown_model", 404, {"error": openai("unknown_model", 404)}),
    (VLLM_SCORE, "too_large", 400, {"error": openai("too_large", 400)}),
    (XINFERENCE, "overloaded", 429, DETAIL),
    (NIM, "too_large", 413, DETAIL),
    (TEI, "empty", 400, {"error": "why", "error_type": "Empty"}),
    (TEI, "invalid", 422, {"error": "why", "error_type": "Validation"}),
    (TEI, "unauthorized", 401, {"error": "why", "error_type": "Unauthorized"}),
    (TEI, "overloaded", 429, {"error": "why", "error_type": "Overloaded"}),
    (TEI, "model_failed", 424, {"error": "why", "error_type": "Backend"}),
    (TEI_PREDICT, "unavailable", 503, {"error": "why", "error_type": "Unhealthy"}),
]


@pytest.mark.parametrize(("dialect", "kind", "status", "body"), ERRORS)
def test_a_dialect_words_its_errors_as_its_clients_read_them(
    dialect: Dialect, kind: Kind, status: int, body: Json
) -> None:
    error = GatewayError(kind, "why")
    assert (dialect.status(error), dialect.error(error)) == (status, body)


TOLD: list[tuple[str, Json, Dialect]] = [
    ("/rerank", BODY, V1_RERANK),
    ("/v1/rerank", {**BODY, "top_n": None, "return_documents": False}, V1_RERANK),
    ("/v1/rerank", {**BODY, "return_documents": True}, JINA_OR_VOYAGE),
    ("/v1/rerank", {**BODY, "top_k": None, "truncation": True}, VOYAGE),
    ("/v1/rerank", {**BODY, "top_k": 3}, VOYAGE),
    ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, TEI),
    ("/rerank", {**BODY, "raw_scores": True}, INFINITY),
    ("/v1/rerank", {"query": {"text": QUERY}, "passages": []}, NIM),
    ("/v2/rerank", {**BODY, "return_documents": True}, COHERE_V2),
    ("/v1/v1/rerank", BODY, V1_RERANK),
    ("/v1/v2/rerank", BODY, COHERE_V2),
    ("/tei/rerank", BODY, TEI),
    ("/voyage/v1/rerank", {**BODY, "return_documents": True}, VOYAGE),
    ("/cohere/rerank", BODY, COHERE_V1),
    ("/infinity/rerank", BODY, INFINITY),
    ("/vllm/v1/score", {}, VLLM_SCORE),
    ("/predict", {}, TEI_PREDICT),
    ("/v1/ranking", {}, NIM),
]


@pytest.mark.parametrize(("path", "body", "dialect"), TOLD)
def test_path_and_body_tell_the_dialect(path: str, body: Json, dialect: Dialect) -> None:
    route = next(route for route in ROUTES if route.path == path)
    assert route.tell(Fields(body)).name == dialect.name


def test_an_object_comes_back_whole_with_its_id() -> None:
    documents = [{"text": "cats sleep", "id": 7, "source": {"page": 3}}, "a dog"]
    found = answer(V1_RERANK, {"query": QUERY, "documents": documents, "return_documents": True})["results"]
    assert found[0] == {"index": 0, "relevance_score": TWO, "id": 7, "document": documents[0]}
    assert found[1]["document"] == {"text": "a dog"}


def test_rank_fields_choose_what_is_ranked() -> None:
    documents = [{"title": "cats", "body": "sleep"}, {"title": "cats", "body": "run"}]
    found = answer(COHERE_V1, {"query": QUERY, "documents": documents, "rank_fields": ["title", "body"]})
    assert [row["index"] for row in found["results"]] == [0, 1]


def test_a_rank_field_that_is_named_again_is_read_once() -> None:
    fields = Fields({"query": QUERY, "documents": [{"a": "cats", "b": "sleep"}], "rank_fields": ["a", "b", "a", "a"]})
    assert COHERE_V1.question(fields).parts[0].documents == ("cats\nsleep",)


def test_logits_and_details_come_only_when_asked_for() -> None:
    found = answer(V1_RERANK, {**BODY, "return_details": True, "top_n": 1})["results"]
    details = {"logit": 2.0, "truncated": False, "best_chunk": None, "token_count": 4}  # words of query and document
    assert found == [{**ORDER[0], **details}]
    assert answer(TEI, {"query": QUERY, "texts": DOCUMENTS, "return_details": True})[1]["token_count"] == 4
    assert answer(VOYAGE, {**BODY, "return_logits": True, "top_k": 1})["data"] == [{**ORDER[0], "logit": 2.0}]


def test_a_least_score_is_on_the_scale_of_the_answer() -> None:
    assert len(answer(V1_RERANK, {**BODY, "min_score": 0.7})["results"]) == 2
    assert len(answer(TEI, {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "min_score": 1.5})) == 1
    assert answer(V1_RERANK, {**BODY, "min_score": 0.99})["results"] == []


def test_scores_stay_within_0_and_1_for_a_model_without_a_sigmoid() -> None:
    found = answer(V1_RERANK, BODY, fake(activation="identity"))["results"]
    assert [row["relevance_score"] for row in found] == [TWO, ONE, NONE]


def test_the_rest_of_a_cascade_ranks_below_what_the_heavy_model_scored() -> None:
    heavy = fake(name="heavy", logits=lambda _, document: -8.0 if "cats" in document else -9.0)
    scorer = CascadeScorer(fake(name="light"), heavy, keep=1)
    rows = answered(V1_RERANK, BODY, scorer).rows()
    assert [row.index for row in rows] == [1, 2, 0]
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert rows[0].score == sigmoid(-8.0)
    assert all(0 < row.score < rows[0].score for row in rows[1:])


def test_a_fallback_is_seen_and_its_addresses_are_not() -> None:
    dead = fake(name="first", error=ServerUnavailableError("10.0.0.5:8001 cannot be reached"))
    told = answer(V1_RERANK, BODY, FallbackScorer([dead, fake(name="second")]))
    assert {name: told[name] for name in ("degraded", "served_by", "reason")} == {
        "degraded": True,
        "served_by": "second",
        "reason": "first: ServerUnavailableError",
    }
    assert [row["index"] for row in told["results"]] == [1, 2, 0]


def test_where_no_model_answered_the_callers_order_stays_and_no_score_is_made_up() -> None:
    dead = fake(error=ServerUnavailableError("gone"))
    told = answer(V1_RERANK, {**BODY, "min_score": 0.5}, FallbackScorer([dead]))
    assert [(row["index"], row["relevance_score"]) for row in told["results"]] == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert told["degraded"] is True


WRONG: list[tuple[Dialect, Json, str]] = [
    (V1_RERANK, {"documents": DOCUMENTS}, "query is absent or null: it must be a string"),
    (V1_RERANK, {**BODY, "query": "  \n"}, "query is blank"),
    (V1_RERANK, {**BODY, "query": 5}, "query is a number (5): it must be a string"),
    (V1_RERANK, {**BODY, "documents": []}, "documents is empty"),
    (V1_RERANK, {**BODY, "documents": None}, "documents is absent or null"),
    (V1_RERANK, {**BODY, "documents": "one"}, "documents is a string (one): it must be a list"),
    (
        V1_RERANK,
        {**BODY, "documents": ["a", None]},
        "documents[1] is absent or null: it must be a string, or an object",
    ),
    (V1_RERANK, {**BODY, "documents": ["a", 5]}, "documents[1] is a number (5)"),
    (V1_RERANK, {**BODY, "documents": [{"id": 1}]}, "documents[0].text is absent or null"),
    (V1_RERANK, {**BODY, "top_n": -1}, "top_n is a number (-1): it must be a whole number from 0"),
    (V1_RERANK, {**BODY, "top_n": 1.5}, "top_n is a number (1.5)"),
    (V1_RERANK, {**BODY, "top_n": True}, "top_n is a boolean (True)"),
    (V1_RERANK, {**BODY, "top_n": "3"}, "top_n is a string (3)"),
    (V1_RERANK, {**BODY, "model": 3}, "model is a number (3): it must be a string"),
    (
        V1_RERANK,
        {**BODY, "return_documents": "maybe"},
        "return_documents is a string (maybe): it must be true or false",
    ),
    (V1_RERANK, {**BODY, "timeout_ms": 0}, "timeout_ms is a number (0): it must be a whole number from 1"),
    (V1_RERANK, {**BODY, "min_score": "high"}, "min_score is a string (high): it must be a number"),
    (V1_RERANK, {**BODY, "rank_fields": "title"}, "rank_fields is a string"),
    (COHERE_V1, {**BODY, "documents": [{"a": "b"}], "rank_fields": ["title"]}, "documents[0] has no key 'title'"),
    (VOYAGE, {**BODY, "top_k": -1}, "top_k is a number (-1)"),
    (TEI, {"query": QUERY, "texts": []}, "texts is empty"),
    (TEI, {"query": QUERY, "texts": ["a"], "truncation_direction": "Up"}, "truncation_direction is a string (up)"),
    (TEI_PREDICT, {"inputs": "one"}, "inputs is a string (one): it must be a pair"),
    (TEI_PREDICT, {"inputs": [["a"]]}, "inputs[0] is a list: it must be a pair"),
    (TEI_PREDICT, {"inputs": [["", "b"]]}, "inputs[0][0] is blank"),
    (NIM, {"query": {}, "passages": [{"text": "a"}]}, "query.text is absent or null"),
    (NIM, {"query": {"text": "a"}, "passages": [{"text": "a"}], "truncate": "START"}, "truncate is a string (START)"),
    (VLLM_SCORE, {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 has 2 texts and text_2 1"),
    (VLLM_SCORE, {"text_1": "a", "text_2": [1]}, "text_2[0] is a number (1)"),
    (V1_RERANK, {**BODY, "query": [QUERY]}, "query is a list: it must be a string"),
]


@pytest.mark.parametrize(("dialect", "body", "said"), WRONG)
def test_what_is_wrong_is_said_with_its_place_value_and_bound(dialect: Dialect, body: Json, said: str) -> None:
    with pytest.raises(GatewayError) as raised:
        dialect.question(Fields(body))
    assert raised.value.message.startswith(said)
    assert raised.value.kind in ("invalid", "empty")


def test_no_more_than_80_characters_of_a_text_are_in_a_message() -> None:
    with pytest.raises(GatewayError) as raised:
        V1_RERANK.question(Fields({"query": QUERY, "documents": "secret " * 1000}))
    assert raised.value.message.count("secret") < 13


@pytest.mark.parametrize("body", [None, [], "text", 5, True])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(GatewayError, match="it must be a JSON object"):
        Fields(body)


def test_tei_tells_its_times_in_headers() -> None:
    told = TEI.headers(answered(TEI, {"query": QUERY, "texts": DOCUMENTS}))
    assert told["x-compute-tokens"] == str(TOKENS)
    assert told["x-compute-characters"] == str(len(QUERY) + sum(map(len, DOCUMENTS)))
    assert (told["x-total-time"], told["x-queue-time"], told["x-compute-type"]) == ("10", "2", "triton")
