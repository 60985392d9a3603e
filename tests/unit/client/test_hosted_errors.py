"""Hosted scorers against a provider that answers with an error, or with nonsense."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.hosted import KEY, Fault, HostedServer
from support.hosted_calls import Form, both_forms, failure, score

from triton_rerank.errors import (
    ConfigurationError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
    OverloadedError,
    RequestTooLargeError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.hosted import CohereScorer
from triton_rerank.hosted.channel import MAX_ANSWER_BYTES
from triton_rerank.hosted.status import TABLE, error_for, quote


@pytest.fixture
def server() -> Iterator[HostedServer]:
    with HostedServer("cohere") as running:
        yield running


@pytest.fixture
def scorer(server: HostedServer) -> Iterator[CohereScorer]:
    made = CohereScorer(KEY, model="rerank-v3.5", base_url=server.url)
    yield made
    made.close()


@both_forms
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, ConfigurationError),
        (400, InvalidRequestError),
        (401, ConfigurationError),
        (402, InferenceError),
        (403, ConfigurationError),
        (404, ConfigurationError),
        (408, ServerUnavailableError),
        (413, RequestTooLargeError),
        (418, InferenceError),
        (422, InvalidRequestError),
        (429, OverloadedError),
        (498, InferenceError),
        (500, ServerUnavailableError),
        (501, InferenceError),
        (502, ServerUnavailableError),
        (503, ServerUnavailableError),
        (504, ServerUnavailableError),
        (522, ServerUnavailableError),
        (529, OverloadedError),
    ],
)
def test_a_status_gives_its_error(
    form: Form, status: int, expected: type[RerankError], server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault(status=status, body=b'{"message": "said so"}', headers={"Location": "http://127.0.0.1:1/"})
    error = failure(form, scorer)
    assert type(error) is expected
    assert f"'rerank-v3.5' at {server.url}: said so [HTTP {status}]" in str(error)
    assert error.request_id == server.received[-1].headers["X-Request-Id"]
    assert len(server.received) == (2 if expected.retryable else 1)


def test_the_table_names_each_status_once_and_ends_with_all_of_them() -> None:
    listed = [status for first, last, _, _ in TABLE[:-1] for status in range(first, last + 1)]
    assert len(listed) == len(set(listed))
    assert TABLE[-1][:2] == (0, 999)


def test_a_wrong_key_is_a_configuration_error_that_does_not_tell_it(server: HostedServer) -> None:
    scorer = CohereScorer("wrong-key-77", model="m", base_url=server.url)
    error = failure("sync", scorer)
    scorer.close()
    assert type(error) is ConfigurationError
    assert "invalid api token Bearer …" in str(error)
    assert "wrong-key-77" not in f"{error!r}{scorer!r}"


def test_the_key_is_in_no_log(server: HostedServer, scorer: CohereScorer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        score("sync", scorer)
        score("async", scorer)
    assert caplog.records  # httpx and httpcore did log
    assert KEY not in caplog.text


def _first(**changes: Any) -> Callable[[dict[str, Any]], object]:
    def change(answer: dict[str, Any]) -> object:
        row = answer["results"][0]
        row.update(changes)
        answer["results"][0] = {key: value for key, value in row.items() if value is not ...}
        return answer

    return change


@both_forms
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_first(index=4), "index 4: a whole number from 0 to 3"),
        (_first(index=-1), "index -1"),
        (_first(index=1.0), "index 1.0"),
        (_first(index=True), "index true"),
        (_first(index="0"), "index of type str"),
        (_first(index=...), "index null"),
        (_first(relevance_score=...), "relevance_score null"),
        (_first(relevance_score=None), "relevance_score null"),
        (_first(relevance_score="0.5"), "relevance_score of type str"),
        (_first(relevance_score=True), "relevance_score true"),
        (_first(relevance_score=float("nan")), "relevance_score NaN"),
        (_first(relevance_score=float("-inf")), "relevance_score -Infinity"),
        (_first(relevance_score=10**400), "relevance_score 1000"),
        (lambda a: {**a, "results": [a["results"][0]] * 4}, "which another result has too"),
        (lambda a: {**a, "results": a["results"][:3]}, "3 results: one for each of 4 documents"),
        (lambda a: {**a, "results": a["results"] + a["results"][:1]}, "5 results"),
        (lambda a: {**a, "results": [1, 2, 3, 4]}, "index null"),
        (lambda a: {**a, "results": {}}, "no list of results"),
        (lambda a: {"data": a["results"]}, "no list of results"),
        (lambda a: a["results"], "JSON list"),
        (lambda a: None, "JSON NoneType"),
    ],
)
def test_an_answer_that_is_not_one_score_a_document_is_refused(
    form: Form, change: Callable[[dict[str, Any]], object], message: str, server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault("change", change=change)
    error = failure(form, scorer)
    assert type(error) is InvalidResponseError
    assert message in str(error)
    assert len(server.received) == 1


@both_forms
@pytest.mark.parametrize(
    "body", [b"", b"<html>login</html>", b"\xff\xfe", b"[" * 100_000, b'{"results": [' + b"9" * 5000 + b"]}"]
)
def test_an_answer_that_is_no_json_is_refused(
    form: Form, body: bytes, server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault(body=body)
    assert type(failure(form, scorer)) is InvalidResponseError


@both_forms
def test_an_answer_without_end_is_cut_off(form: Form, server: HostedServer, scorer: CohereScorer) -> None:
    server.always = Fault(body=b" " * (MAX_ANSWER_BYTES + 1))
    error = failure(form, scorer)
    assert type(error) is InvalidResponseError
    assert str(MAX_ANSWER_BYTES) in str(error)


@both_forms
def test_a_broken_content_encoding_is_an_invalid_response(
    form: Form, server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault(body=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert type(failure(form, scorer)) is InvalidResponseError


@both_forms
@pytest.mark.parametrize(
    "tokens", [None, {}, {"input_tokens": "9"}, {"input_tokens": -1}, {"input_tokens": float("nan")}, 3]
)
def test_a_count_of_tokens_that_is_missing_or_nonsense_is_zero(
    form: Form, tokens: object, server: HostedServer, scorer: CohereScorer
) -> None:
    server.always = Fault("change", change=lambda answer: {**answer, "meta": {"tokens": tokens}})
    assert score(form, scorer).token_count == 0


# Words of a provider


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"message": "too many"}', "too many"),
        (b'{"detail": "too many"}', "too many"),
        (b'{"error": {"message": "too many"}}', "too many"),
        (b'{"error": "too many"}', "too many"),
        (b'{"detail": [{"msg": "too short", "input": "secret"}, {"msg": "no list"}]}', "too short; no list"),
        (b"plain\n\twords \x1b[31m", "plain words ?[31m"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"", "no message"),
        (b"{}", "no message"),
        (b"[1]", "no message"),
        (b"[" * 100_000, "[" * 199 + "…"),
    ],
)
def test_the_message_of_a_body_is_found_in_every_dialect(body: bytes, words: str) -> None:
    error = error_for(418, body, who="m at u", secret=KEY, texts=("query", "document"))
    assert str(error) == f"m at u: {words} [HTTP 418]; see the provider's status page"


def test_a_message_is_cut_at_200_characters() -> None:
    assert quote("word " * 100, ("text",)) == ("word " * 40)[:199] + "…"
    assert quote("x" * 200, ("text",)) == "x" * 200


@pytest.mark.parametrize("before", range(0, 120, 7))
def test_of_a_document_that_is_echoed_no_more_than_80_characters_are_quoted(before: int) -> None:
    document = "\n ".join(f"word{index}" for index in range(100))
    flat = " ".join(document.split())
    said = quote(f"{'.' * before}{flat[:400]}", ("unlike", document))
    assert not any(flat[start : start + 81] in said for start in range(len(flat) - 80))


def test_a_document_of_81_characters_is_not_quoted_whole() -> None:
    document = "".join(chr(97 + index % 26) + str(index) for index in range(40))[:81]
    assert len(document) == 81
    for before in range(119):
        assert document not in quote(f"{'.' * before}{document}{'.' * 40}", (document,))
