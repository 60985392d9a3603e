"""What comes of each wrong request over real HTTP, and of callers that are slow, many, or gone. No Triton is needed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateways import DOCUMENTS, QUERY, Running, fake, model, running, wait_for
from support.tls import Authority

from triton_rerank import (
    AllScorersFailedError,
    ConfigurationError,
    FallbackScorer,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RerankError,
    ServerUnavailableError,
)
from triton_rerank.testing import shared_words
from triton_rerank_gateway import Gateway, Settings
from triton_rerank_gateway.admission.keys import read_key
from triton_rerank_gateway.models.models import Models

BODY = {"query": QUERY, "documents": DOCUMENTS}
JSON = "content-type: application/json\r\n"
SMALL = Settings(
    port=0,
    max_body_bytes=100_000,
    max_documents=500,
    max_header_bytes=4096,
    head_timeout_s=0.5,
    body_timeout_s=0.5,
    max_timeout_s=20.0,
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    with running(SMALL, fake()) as found:
        yield found


@pytest.fixture(autouse=True)
def _still_answers(gateway: Running) -> Iterator[None]:
    """Whatever was sent, the next right request is answered."""
    yield
    assert [row["index"] for row in gateway.post("/v1/rerank", BODY).json()["results"]] == [1, 2, 0]


def request(body: bytes, *, path: str = "/v1/rerank", headers: str = JSON, version: str = "1.1") -> bytes:
    length = f"content-length: {len(body)}\r\n"
    return f"POST {path} HTTP/{version}\r\nhost: h\r\n{headers}{length}\r\n".encode() + body


ENCODED = json.dumps(BODY).encode()
DEEP = b'{"query": "q", "documents": ' + b"[" * 5000 + b"]" * 5000 + b"}"
BAD_BODIES: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no body": (b"", {}, 400, "the body is empty"),
    "no JSON": (b"query=cats", {}, 400, "the body is no JSON"),
    "half a JSON": (ENCODED[:30], {}, 400, "the body is no JSON"),
    "not UTF-8": (b'{"query": "\xff"}', {}, 400, "the body is no JSON"),
    "JSON of another type: a list": (b"[1, 2]", {}, 400, "the body is a list: it must be a JSON object"),
    "JSON of another type: a text": (b'"cats"', {}, 400, "the body is a string"),
    "JSON of another type: null": (b"null", {}, 400, "the body is absent or null"),
    "depth": (DEEP, {}, 400, "the body is no JSON"),
    "a lone surrogate": (b'{"query": "\\ud800", "documents": ["a"]}', {}, 400, "the body is no JSON"),
    "NaN as top_n": (b'{"query": "a", "documents": ["a"], "top_n": NaN}', {}, 400, "the body is no JSON"),
    "a top_n of 400 digits": (b'{"query": "a", "top_n": ' + b"9" * 400 + b"}", {}, 400, "the body is no JSON"),
    "top_n -1": (b'{"query": "a", "documents": ["a"], "top_n": -1}', {}, 400, "top_n is a number (-1)"),
    "wrong content type": (ENCODED, {"content-type": "text/plain"}, 415, "it must be application/json"),
    "a form": (ENCODED, {"content-type": "application/x-www-form-urlencoded"}, 415, "it must be application/json"),
    "gzip": (gzip.compress(ENCODED), {"content-encoding": "gzip"}, 415, "the encoding 'gzip': send it without"),
    "no documents": (b'{"query": "a", "documents": []}', {}, 400, "documents is empty"),
    "null documents": (b'{"query": "a", "documents": [null]}', {}, 400, "documents[0] is absent or null"),
    "numbers as documents": (b'{"query": "a", "documents": [5]}', {}, 400, "documents[0] is a number (5)"),
    "a query of spaces": (b'{"query": " \\t ", "documents": ["a"]}', {}, 400, "query is blank"),
    "unknown model": (b'{"query": "a", "documents": ["a"], "model": "nobody"}', {}, 404, "'nobody' is not served"),
    "too many documents": (
        json.dumps({"query": "a", "documents": ["x"] * 10_000}).encode(),
        {},
        400,
        "10000 documents: the bound is 500",
    ),
    "a body over its bound": (b" " * 100_001, {}, 400, "the body is larger than 100000 bytes"),
    "a timeout that is none": (ENCODED, {"x-request-timeout-ms": "soon"}, 400, "X-Request-Timeout-Ms must be"),
    "a timeout of 0": (ENCODED, {"x-request-timeout-ms": "0"}, 400, "X-Request-Timeout-Ms must be"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_told_what_is_wrong_in_json(gateway: Running, case: str) -> None:
    content, headers, status, said = BAD_BODIES[case]
    headers = {"content-type": "application/json", **headers}
    found = httpx.post(f"{gateway.url}/v1/rerank", content=content, headers=headers, timeout=30)
    told = found.json()
    assert (found.status_code, found.headers["content-type"]) == (status, "application/json")
    assert told["message"] == told["detail"] == told["error"]["message"]
    assert said in told["message"] and len(told["message"]) < 300
    assert found.headers["x-request-id"]


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"])
@pytest.mark.parametrize("encodings", ["identity", "gzip, br"])
def test_json_by_any_of_its_names_is_read_and_answered_as_it_is(
    gateway: Running, kind: str | None, encodings: str
) -> None:
    headers = {"accept-encoding": encodings, **({} if kind is None else {"content-type": kind})}
    found = gateway.http.post("/v1/rerank", content=ENCODED, headers=headers)
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert "content-encoding" not in found.headers


def test_empty_documents_are_scored_and_keep_their_places(gateway: Running) -> None:
    found = gateway.post("/v1/rerank", {"query": QUERY, "documents": ["", "", "cats"]}).json()["results"]
    assert sorted(row["index"] for row in found) == [0, 1, 2]
    assert len(gateway.post("/v1/rerank", {"query": QUERY, "documents": [""] * 5}).json()["results"]) == 5


def test_100_megabytes_are_refused_before_they_are_read(gateway: Running) -> None:
    head = request(b"").replace(b"content-length: 0", b"content-length: 100000000")
    found = gateway.raw(head, until_closed=False)
    assert found.startswith(b"HTTP/1.1 400")
    assert b"the body is larger than 100000 bytes" in found


def test_a_chunked_body_over_the_bound_is_refused_though_no_length_was_told(gateway: Running) -> None:
    found = httpx.post(
        f"{gateway.url}/tei/rerank",
        content=(b" " * 10_000 for _ in range(20)),
        headers={"content-type": "application/json"},
        timeout=30,
    )
    assert (found.status_code, found.json()["error_type"]) == (413, "Validation")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("close", [True, False], ids=["close", "keep-alive"])
def test_who_sends_on_for_seconds_sees_the_answer_to_a_body_over_the_bound(
    gateway: Running, version: str, close: bool
) -> None:
    """Longer than the gateway waits for headers, and without reading meanwhile."""
    head = request(b"", version=version, headers=f"{JSON}connection: {'close' if close else 'keep-alive'}\r\n")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as caller:
        caller.sendall(head.replace(b"length: 0", b"length: 64000000"))
        for _ in range(30):
            caller.sendall(b" " * 2_000_000)
            time.sleep(0.1)
        found = caller.recv(65536)
    assert found.startswith(b"HTTP/1.1 400") and b"the body is larger than 100000 bytes" in found


@pytest.mark.parametrize("client", ["httpx", "curl", "curl 1.0"])
def test_clients_that_send_64_mebibytes_and_want_to_close_see_the_status(
    gateway: Running, client: str, tmp_path: Path
) -> None:
    large, url, headers = b" " * 2**26, f"{gateway.url}/v1/rerank", {"content-type": "application/json"}
    if client == "httpx":
        found = httpx.post(url, content=large, headers={**headers, "connection": "close"}, timeout=60)
        assert (found.status_code, found.headers["connection"]) == (400, "close")
        return
    if (curl := shutil.which("curl")) is None:
        pytest.skip("there is no curl")
    (tmp_path / "body").write_bytes(large)
    flags = ["--http1.0"] if client == "curl 1.0" else ["-H", "connection: close"]
    command = [curl, "-sS", *flags, "-H", "content-type: application/json", "-H", "expect:", "-w", "%{http_code}"]
    done = subprocess.run([*command, "--data-binary", f"@{tmp_path / 'body'}", url], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout[-3:], done.stderr) == (0, b"400", b"")


def test_a_body_over_the_bound_is_answered_though_its_connection_is_to_be_closed(gateway: Running) -> None:
    large = request(b" " * 8_000_000, headers=f"{JSON}connection: close\r\n")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as caller:
            sender = threading.Thread(target=lambda caller=caller: _send_what_is_taken(caller, large))
            sender.start()
            found = b""
            while chunk := caller.recv(65536):
                found += chunk
            assert found.startswith(b"HTTP/1.1 400") and b"the body is larger than 100000 bytes" in found
            assert found.lower().count(b"connection: close") == 1
            sender.join(20)


def test_who_expects_to_be_asked_for_a_body_that_is_too_large_gets_its_answer_and_the_end(gateway: Running) -> None:
    head = request(b"", headers=f"{JSON}expect: 100-continue\r\n").replace(b"length: 0", b"length: 200000")
    found = gateway.raw(head)
    assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1 4") == 1


def test_a_chunk_that_is_none_is_answered_once(gateway: Running) -> None:
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: h\r\n{JSON}transfer-encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as caller:
        caller.sendall(head + b'5\r\n{"que')
        time.sleep(0.3)  # near the end of the time for a body
        caller.sendall(b"\r\nno chunk\r\n")
        found = b""
        while chunk := caller.recv(65536):
            found += chunk
    assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1 4") == 1


def test_a_bound_on_all_bodies_below_that_on_one_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_bodies_bytes is 99, less than one body may have"):
        Gateway(replace(SMALL, max_bodies_bytes=99), Models([model(fake())]))


def _send_what_is_taken(caller: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):  # the gateway ends the connection before all is sent
        caller.sendall(content)


def test_all_bodies_together_have_a_bound_and_what_ended_makes_room() -> None:
    large = json.dumps({"query": QUERY, "documents": ["x" * 60_000]}).encode()
    with running(replace(SMALL, max_bodies_bytes=100_000, body_timeout_s=30.0), fake()) as gateway:
        room = gateway.gateway.room
        with socket.create_connection(("127.0.0.1", gateway.port)) as slow_sender:
            slow_sender.sendall(request(large)[:-1])
            wait_for(lambda: room.used_bytes > 60_000)
            refused = gateway.raw(request(large), until_closed=False)
            assert refused.startswith(b"HTTP/1.1 429") and b"retry-after: " in refused
            assert b"requests under way hold 60" in refused and b"bytes of at most 100000" in refused
            assert gateway.post("/v1/rerank", BODY).status_code == 200
            assert "triton_rerank_gateway_bodies_bytes 60" in gateway.get("/metrics").text
        wait_for(lambda: room.used_bytes == 0)
        assert gateway.raw(request(large), until_closed=False).startswith(b"HTTP/1.1 200")
        assert room.used_bytes == 0


def test_a_body_that_stops_half_way_times_out_and_is_told_so(gateway: Running) -> None:
    found = gateway.raw(request(ENCODED)[:-10])
    assert found.startswith(b"HTTP/1.1 408") and b"connection: close" in found.lower()
    assert b"the body was not there after 0.5 s" in found


def test_headers_that_do_not_come_close_the_connection(gateway: Running) -> None:
    began = time.monotonic()
    assert gateway.raw(b"POST /v1/rerank HTTP/1.1\r\nhost: h\r\n") == b""
    assert gateway.raw(b"") == b""
    assert time.monotonic() - began < 20


def test_headers_that_are_too_large_are_refused(gateway: Running) -> None:
    found = gateway.raw(b"GET /health HTTP/1.1\r\nhost: h\r\nx-a: " + b"a" * 10_000 + b"\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 431") and b"larger than 4096 bytes" in found


def test_what_is_no_http_is_refused_in_json(gateway: Running) -> None:
    found = gateway.raw(b"\x16\x03\x01 hello\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400") and b'{"message": "this is no HTTP/1.1' in found


H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("cut", [0, 1, 30, 150, len(ENCODED)])
def test_who_wishes_for_http_2_as_javas_client_does_is_answered_by_http_1_1(gateway: Running, cut: int) -> None:
    """On a connection that stays open, its bytes in two pieces."""
    asked = request(ENCODED, headers=JSON + H2C) * 2 + request(b"", path="/health", headers=H2C).replace(
        b"POST", b"GET"
    )
    last = request(ENCODED, headers=f"{JSON}connection: close\r\n")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(asked[:cut])
        time.sleep(0.05)
        connection.sendall(asked[cut:] + last)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
    assert found.count(b"HTTP/1.1 200") == 4 and found.count(b'"results"') == 3


def test_a_thousand_wishes_in_one_piece_are_all_answered(gateway: Running) -> None:
    """More than Python may call itself."""
    wish = b"GET /health/live HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"
    found = gateway.raw(wish * 1_500 + b"GET /health/live HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    assert found.count(b"HTTP/1.1 200") == 1_501


def test_a_refusal_waits_for_the_answers_before_it(gateway: Running) -> None:
    found = gateway.raw(request(ENCODED) * 2 + b"what is this?\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+) ", found) == [b"200", b"200", b"400"]


def test_what_stands_behind_a_body_is_no_header(gateway: Running) -> None:
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: h\r\n{JSON}transfer-encoding: chunked\r\n\r\n".encode()
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(ENCODED), ENCODED)
    trailer = b"x-request-timeout-ms: never\r\n\r\n"
    found = gateway.raw(head + chunks + trailer, until_closed=False)
    assert found.startswith(b"HTTP/1.1 200")
    many = b"".join(b"x-%d: %b\r\n" % (number, b"a" * 500) for number in range(10))
    found = gateway.raw(head + chunks + many + b"\r\n")
    assert found.startswith(b"HTTP/1.1 431") and found.count(b"HTTP/1.1") == 1


def test_connect_is_refused(gateway: Running) -> None:
    assert gateway.raw(b"CONNECT h:80 HTTP/1.1\r\nhost: h\r\n\r\n").startswith(b"HTTP/1.1 405")


def test_http_1_0_is_answered_and_closed(gateway: Running) -> None:
    found = gateway.raw(request(ENCODED, version="1.0"))
    assert found.startswith(b"HTTP/1.1 200") and b'"results"' in found


@pytest.mark.parametrize("behind", ["whole", "half", "head"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_what_is_pipelined_behind_a_last_request_is_left_out(
    gateway: Running, version: str, behind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first answer closes: of what was sent behind it, nothing is scored, and nothing fails."""
    last = {"1.1": "close", "1.0": "keep-alive"}[version]
    one = request(ENCODED, version=version, headers=f"{JSON}connection: {last}\r\n")
    other = request(ENCODED, version=version, headers=f"{JSON}connection: keep-alive\r\n")
    cut = {"whole": len(other), "half": len(other) - 10, "head": 40}[behind]
    with caplog.at_level("INFO"):
        found = gateway.raw(one + other + other[:cut])
    assert found.count(b"HTTP/1.1") == 1
    assert found.startswith(b"HTTP/1.1 200") and b"connection: close" in found
    assert [record.name for record in caplog.records if record.exc_info] == []
    assert [record.message for record in caplog.records if record.name == "triton_rerank_gateway"] == ["request"]


def test_pipelined_requests_are_answered_in_order(gateway: Running) -> None:
    bodies = [json.dumps({**BODY, "top_n": n}).encode() for n in (1, 2, 3)]
    found = gateway.raw(b"".join(map(request, bodies)), until_closed=False)
    assert [part.count(b'"index"') for part in found.split(b"HTTP/1.1 200")[1:]] == [1, 2, 3]


@pytest.mark.parametrize("path", ["//v1/rerank", "/v1//rerank", "/v1/rerank/", "/v1/rerank//", "/v1/v1/rerank"])
def test_slashes_and_a_doubled_version_are_answered_in_place(gateway: Running, path: str) -> None:
    assert gateway.raw(request(ENCODED, path=path), until_closed=False).startswith(b"HTTP/1.1 200")


def test_an_unknown_path_says_where_to_ask(gateway: Running) -> None:
    found = gateway.post("/v3/rerank", BODY)
    assert found.status_code == 404 and "base URL without /v1" in found.json()["message"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/tei/rerank", "/v1/ranking"])
def test_get_on_a_path_for_post_is_405(gateway: Running, path: str) -> None:
    found = gateway.get(path)
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    assert "it wants POST" in found.json()["message"]


@pytest.mark.parametrize("path", ["/health/ready", "/v1/models", "/metrics", "/", "/page/main.js"])
def test_post_on_a_path_for_get_is_405_and_says_what_it_wants(gateway: Running, path: str) -> None:
    found = gateway.post(path, BODY)
    assert found.status_code == 405 and "POST" not in found.headers["allow"]
    assert found.json()["message"] == f"POST is not for {path!r}: it wants {found.headers['allow']}"


@pytest.mark.parametrize("host", ["[", "a b", "x" * 300])
def test_a_host_that_is_none_is_answered_as_any(gateway: Running, host: str) -> None:
    found = gateway.raw(f"GET /nothing HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 404") and b"nothing is at '/nothing'" in found


def test_a_timeout_in_digits_that_are_none_is_refused(gateway: Running) -> None:
    asked = request(ENCODED, headers=f"{JSON}connection: close\r\nx-request-timeout-ms: ?\r\n").replace(b"?", b"\xb2")
    found = gateway.raw(asked)  # ², in Latin-1
    assert found.startswith(b"HTTP/1.1 400") and b"X-Request-Timeout-Ms must be a whole number" in found


def test_the_request_id_is_echoed_if_it_is_one(gateway: Running) -> None:
    assert gateway.post("/v1/rerank", BODY, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = gateway.post("/v1/rerank", BODY, headers={"x-request-id": "two words"}).headers["x-request-id"]
    assert len(made) == 32


def test_probes_get_what_they_look_for(gateway: Running) -> None:
    wait_for(lambda: gateway.get("/health").status_code == 200)
    assert httpx.head(f"{gateway.url}/health").status_code == 200
    assert gateway.get("/health/ready").json() == {"status": "ready", "models": {"fake-model": "ready"}}
    assert gateway.get("/health/live").status_code == 200
    assert [row["id"] for row in gateway.get("/v1/models").json()["data"]] == ["fake-model"]
    assert gateway.get("/v1/models/fake-model").json()["model_type"] == "rerank"
    assert gateway.get("/v1/models/nobody").status_code == 404
    info = gateway.get("/info").json()
    assert (list(info["model_type"]), info["max_input_length"], info["max_client_batch_size"]) == (
        ["reranker"],
        512,
        500,
    )


FAILURES: list[tuple[RerankError, int, str]] = [
    (ServerUnavailableError("10.0.0.5:8001 is gone"), 503, "no reranker can be reached"),
    (OverloadedError("queue"), 429, "the reranker's queue is full"),
    (InferenceError("10.0.0.5: CUDA"), 502, "the model failed"),
    (AllScorersFailedError("10.0.0.5 failed"), 503, "no reranker of this chain answered"),
    (InvalidRequestError("'m' at 10.0.0.5: blank", said="instruction is blank"), 400, "instruction is blank"),
    (ConfigurationError("unknown model at 10.0.0.5:8001"), 500, "the gateway is not configured"),
]


@pytest.mark.parametrize(("error", "status", "said"), FAILURES)
def test_a_failure_behind_the_gateway_is_told_without_addresses(error: RerankError, status: int, said: str) -> None:
    with running(models=fake(error=error)) as broken:
        found = broken.post("/v1/rerank", BODY)
        assert broken.get("/health/ready").status_code == 503
        assert broken.get("/health/live").status_code == 200
    assert found.status_code == status and said in found.json()["message"]
    assert "10.0.0.5" not in found.text
    assert ("retry-after" in found.headers) is (status == 429)


def test_a_fault_of_the_gateway_shows_no_traceback() -> None:
    with running(models=fake(logits=lambda *_: 1 / 0, error=None)) as broken:
        found = broken.post("/v1/rerank", BODY)
    assert (found.status_code, found.json()["error"]["type"]) == (500, "internal")
    assert "Traceback" not in found.text and "division" not in found.text


def test_a_fallback_is_told_in_body_and_headers() -> None:
    dead = fake(name="first", error=ServerUnavailableError("gone"))
    with running(models=FallbackScorer([dead, fake(name="second")])) as gateway:
        found = gateway.post("/rerank", {"query": QUERY, "texts": DOCUMENTS})
        plain = gateway.post("/v1/rerank", BODY).json()
    assert [row["index"] for row in found.json()] == [1, 2, 0]
    assert (found.headers["x-rerank-degraded"], found.headers["x-rerank-served-by"]) == ("true", "second")
    assert found.headers["x-rerank-reason"].startswith("first: ServerUnavailableError")
    assert (plain["degraded"], plain["served_by"]) == (True, "second")


def test_only_the_right_order_makes_a_gateway_ready() -> None:
    wrong = fake(logits=lambda _, document: 1.0 if document == "a dog" else 0.0)
    open_chain = FallbackScorer([fake(error=ServerUnavailableError("gone"))])
    for scorer, said in ((wrong, "ordered wrongly"), (open_chain, "no model scored")):
        with running(models=scorer) as gateway:
            wait_for(lambda gateway=gateway, said=said: said in gateway.get("/health").text)  # type: ignore[misc]
            assert gateway.get("/health").status_code == 503


def test_a_model_that_stops_answering_is_not_ready_until_it_does_again() -> None:
    scorer = fake()
    settings = Settings(port=0, canary_interval_s=0.05, canary_max_age_s=0.5)
    with running(settings, scorer) as gateway:
        wait_for(lambda: gateway.get("/health/ready").status_code == 200)
        scorer.error = ServerUnavailableError("gone")
        wait_for(lambda: gateway.get("/health/ready").status_code == 503)
        assert gateway.get("/health/ready").json()["models"] == {"fake-model": "ServerUnavailableError"}
        scorer.error = None
        wait_for(lambda: gateway.get("/health/ready").status_code == 200)


@pytest.mark.parametrize(
    ("body", "headers"), [({"timeout_ms": 100}, {}), ({}, {"x-request-timeout-ms": "100"}), ({"timeout_ms": 1}, {})]
)
def test_a_deadline_that_passes_is_504(body: dict[str, Any], headers: dict[str, str]) -> None:
    with running(models=fake(delay_s=30)) as slow:
        began = time.monotonic()
        found = slow.post("/v1/rerank", {**BODY, **body}, headers=headers)
        took_s = time.monotonic() - began
    assert (found.status_code, found.json()["error"]["type"]) == (504, "deadline")
    assert took_s < 10


class Slow:
    """A gateway whose model takes until it is told to go on."""

    def __init__(self, **settings: Any) -> None:
        self.scorer = fake(delay_s=60)
        self.settings = Settings(
            **{"port": 0, "timeout_s": 30.0, "max_wait_s": 20.0, "canary_interval_s": 3600.0, **settings}
        )

    def asked(self) -> int:
        return len([each for each in self.scorer.requests if each.query == QUERY.encode() and len(each.documents) == 3])


def test_a_caller_that_hangs_up_cancels_its_work() -> None:
    slow = Slow(pairs_in_flight=3)
    with running(slow.settings, slow.scorer) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as running_caller:
            running_caller.sendall(request(ENCODED))
            wait_for(lambda: slow.asked() == 1)
            with socket.create_connection(("127.0.0.1", gateway.port)) as waiting_caller:
                waiting_caller.sendall(request(ENCODED))
                wait_for(lambda: gateway.gateway.admission.queue.waiting.pairs == 3)
            wait_for(lambda: gateway.gateway.admission.queue.waiting.pairs == 0)
            assert gateway.gateway.admission.queue.in_flight.pairs == 3
        wait_for(lambda: gateway.gateway.admission.queue.in_flight.pairs == 0)
        assert slow.asked() == 1
        wait_for(lambda: 'event="cancelled",model="fake-model"} 2.0' in gateway.get("/metrics").text)


def test_what_is_too_much_is_refused_at_once_and_says_when_to_come_again() -> None:
    slow = Slow(pairs_in_flight=3, pairs_waiting=6)
    with running(slow.settings, slow.scorer) as gateway, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(gateway.post, "/v1/rerank", {**BODY, "timeout_ms": 3000}) for _ in range(3)]
        wait_for(lambda: gateway.gateway.admission.queue.waiting.pairs == 6)
        for path, body in (
            ("/v1/rerank", BODY),
            ("/rerank", {"query": QUERY, "texts": DOCUMENTS}),
            ("/v1/rerank", {**BODY, "top_k": 1}),
        ):
            refused = gateway.post(path, body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        too_large = gateway.post("/v1/rerank", {**BODY, "documents": ["a"] * 7})
        assert (too_large.status_code, gateway.post("/tei/rerank", {"query": "a", "texts": ["a"] * 7}).status_code) == (
            400,
            413,
        )
        assert "the bound for one request is 3 pairs" in too_large.json()["message"]
        assert [call.result().status_code for call in calls] == [504, 504, 504]


def test_who_waits_too_long_for_its_turn_is_told_to_come_again() -> None:
    slow = Slow(pairs_in_flight=3, max_wait_s=0.2)
    with running(slow.settings, slow.scorer) as gateway, ThreadPoolExecutor(1) as pool:
        first = pool.submit(gateway.post, "/v1/rerank", {**BODY, "timeout_ms": 5000})
        wait_for(lambda: slow.asked() == 1)
        assert gateway.post("/v1/rerank", BODY).status_code == 429
        assert gateway.post("/v1/rerank", {**BODY, "timeout_ms": 50}).status_code == 504
        assert first.result().status_code == 504


def test_a_key_that_floods_does_not_starve_another() -> None:
    flood, calm = (read_key({"name": name, "hash": _hash(name)}) for name in ("flood", "calm"))
    scorer = fake(delay_s=0.05)
    settings = Settings(port=0, pairs_in_flight=3, pairs_waiting=60, canary_interval_s=3600.0)
    stop = threading.Event()

    def ask(gateway: Running, name: str) -> list[int]:
        statuses = []
        while not stop.is_set():
            found = gateway.post("/v1/rerank", BODY, headers={"authorization": f"Bearer {name}"})
            statuses.append(found.status_code)
        return statuses

    with running(settings, scorer, [flood, calm]) as gateway, ThreadPoolExecutor(32) as pool:
        flooding = [pool.submit(ask, gateway, "flood") for _ in range(24)]
        wait_for(lambda: gateway.gateway.admission.queue.waiting.pairs == 60)
        calm_statuses = [
            gateway.post("/v1/rerank", BODY, headers={"authorization": "Bearer calm"}).status_code for _ in range(10)
        ]
        stop.set()
        flooded = [status for each in flooding for status in each.result()]
    assert calm_statuses == [200] * 10
    assert flooded.count(429) > 0 and flooded.count(200) > 0


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    keys = [
        read_key({"name": "team", "hash": _hash("secret"), "models": ["fake-model"]}),
        read_key({"name": "slow", "hash": _hash("slow-secret"), "pairs_per_s": 0.1, "burst": 4}),
    ]
    models = Models([model(fake()), model(fake(model="other"), "other")])
    with running(Settings(port=0), models, keys) as found:
        yield found


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/rerank", BODY, "message"),
        ("/v2/rerank", BODY, "message"),
        ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, "error_type"),
        ("/v1/rerank", {**BODY, "top_k": 1}, "detail"),
        ("/rerank", {**BODY, "raw_scores": True}, "detail"),
        ("/v1/ranking", {}, "detail"),
        ("/vllm/rerank", BODY, "error"),
    ],
)
def test_without_its_key_nothing_is_answered_but_in_the_dialects_words(
    guarded: Running, path: str, body: dict[str, Any], field: str, headers: dict[str, str]
) -> None:
    found = guarded.post(path, body, headers=headers)
    assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
    assert field in found.json() and "wrong" not in found.text


def test_reads_want_a_key_too_but_health_does_not(guarded: Running) -> None:
    for path in ("/v1/models", "/info", "/metrics", "/v1/models/fake-model"):
        assert guarded.get(path).status_code == 401
        assert guarded.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert guarded.get("/health/live").status_code == 200


def test_a_key_sees_and_uses_its_models_only(guarded: Running) -> None:
    headers = {"authorization": "Bearer secret"}
    assert [row["id"] for row in guarded.get("/v1/models", headers=headers).json()["data"]] == ["fake-model"]
    assert guarded.get("/v1/models/other", headers=headers).status_code == 403
    forbidden = guarded.post("/v2/rerank", {**BODY, "model": "other"}, headers=headers)
    assert (forbidden.status_code, list(forbidden.json())) == (403, ["message"])
    assert guarded.post("/v2/rerank", {**BODY, "model": "fake-model"}, headers=headers).status_code == 200


def test_a_key_over_its_rate_is_told_when_to_come_again(guarded: Running) -> None:
    headers = {"authorization": "slow-secret"}  # without "Bearer", as LlamaIndex's TEI sends it
    assert guarded.post("/v1/rerank", BODY, headers=headers).status_code == 200
    refused = guarded.post("/v1/rerank", BODY, headers=headers)
    assert refused.status_code == 429 and 15 <= int(refused.headers["retry-after"]) <= 20
    assert guarded.post("/v1/rerank", {**BODY, "documents": ["a"] * 5}, headers=headers).status_code == 400


def test_connections_over_the_bound_are_refused_and_the_others_live() -> None:
    with running(replace(SMALL, max_connections=3, head_timeout_s=20.0), fake()) as gateway:
        held = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(3)]
        wait_for(lambda: gateway.gateway.metrics.connections._value.get() == 3)
        refused = gateway.raw(request(ENCODED))
        held[0].sendall(request(ENCODED))
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200")
        for each in held:
            each.close()
        wait_for(lambda: gateway.gateway.metrics.connections._value.get() == 0)
        assert gateway.post("/v1/rerank", BODY).status_code == 200
    assert refused.startswith(b"HTTP/1.1 503") and b"too many connections" in refused


def test_a_caller_that_does_not_take_its_answer_is_cut_off_and_one_that_takes_its_time_is_not() -> None:
    settings = Settings(port=0, send_timeout_s=0.5, max_wait_s=20.0, canary_interval_s=3600.0)
    body = json.dumps({"query": QUERY, "documents": ["cats " * 400_000] * 6, "return_documents": True}).encode()
    with running(settings, fake()) as gateway, ThreadPoolExecutor(1) as pool:
        connections = gateway.gateway.metrics.connections
        with socket.create_connection(("127.0.0.1", gateway.port)) as idle:
            idle.sendall(request(body))
            wait_for(lambda: connections._value.get() == 1)
            wait_for(lambda: connections._value.get() == 0)

        def slowly() -> int:
            size = 0
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as patient:
                patient.sendall(request(body, headers=f"{JSON}connection: close\r\n"))
                while chunk := patient.recv(1_000_000):
                    size += len(chunk)
                    time.sleep(0.05)
            return size

        assert pool.submit(slowly).result() > 12_000_000


@pytest.mark.parametrize("header", ["connection: close\r\n", ""])
def test_an_answer_that_is_never_taken_ends_the_connection_whatever_its_size(header: str) -> None:
    """What is left may be so little that nobody is asked to pause."""
    settings = Settings(port=0, send_timeout_s=0.5, keep_alive_s=1, canary_interval_s=3600.0)
    with running(settings, fake()) as gateway, contextlib.ExitStack() as callers:
        connections = gateway.gateway.metrics.connections
        for size in range(15_000, 420_000, 9_000):
            caller = callers.enter_context(socket.socket())
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", gateway.port))
            body = {"query": QUERY, "documents": ["w" * size] * 10, "return_documents": True}
            caller.sendall(request(json.dumps(body).encode(), headers=f"{JSON}{header}"))
        wait_for(lambda: connections._value.get() == 0)


def test_metrics_and_logs_tell_of_a_request_and_not_of_its_texts(
    guarded: Running, caplog: pytest.LogCaptureFixture
) -> None:
    secret_text = "do not tell anybody of this"
    with caplog.at_level("INFO"):
        guarded.post(
            "/v1/rerank",
            {"query": secret_text, "documents": [secret_text]},
            headers={"authorization": "Bearer secret", "x-request-id": "seen-1"},
        )
        wait_for(lambda: any(getattr(each, "request_id", "") == "seen-1" for each in caplog.records))
    line = next(each for each in caplog.records if getattr(each, "request_id", "") == "seen-1")
    told = vars(line)
    assert {name: told[name] for name in ("dialect", "model", "key", "status", "pairs")} == {
        "dialect": "v1-rerank",
        "model": "fake-model",
        "key": "team",
        "status": 200,
        "pairs": 1,
    }
    metrics = guarded.get("/metrics", headers={"authorization": "Bearer secret"}).text
    assert 'requests_total{dialect="v1-rerank",key="team",model="fake-model",status="200"}' in metrics
    assert 'request_seconds_bucket{le="0.001",model="fake-model"}' in metrics
    for told_text in (metrics, caplog.text, repr(told)):
        assert secret_text not in told_text and "Bearer secret" not in told_text


def test_pages_of_other_origins_may_ask_only_where_that_is_configured() -> None:
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    for origins, allowed in (((), None), (("https://app.example",), "https://app.example")):
        with running(Settings(port=0, cors_origin=origins), fake()) as gateway:
            found = httpx.options(f"{gateway.url}/v1/rerank", headers=headers)
            assert found.headers.get("access-control-allow-origin") == allowed


def test_a_gateway_that_is_told_to_stop_answers_what_it_took() -> None:
    slow = Slow(pairs_in_flight=3)
    slow.scorer.delay_s = 1.0
    with running(slow.settings, slow.scorer) as gateway, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(gateway.post, "/v1/rerank", BODY) for _ in range(3)]
        wait_for(lambda: gateway.gateway.admission.queue.waiting.pairs == 6)
        gateway.server.should_exit = True
        assert [call.result().status_code for call in calls] == [200, 200, 200]


def test_a_long_document_is_scored_by_its_best_chunk_where_that_is_asked_for() -> None:
    filler = "nothing of use stands here. " * 60
    body = {"query": QUERY, "documents": [filler + "cats sleep all day. " + filler, "cats run"]}
    with running(models=fake(max_length=120, logits=first_words)) as gateway:
        cut = gateway.post("/v1/rerank", body).json()["results"]
        chunked = {**body, "max_chunks_per_doc": 100, "overlap_tokens": 10, "return_details": True}
        found = gateway.post("/v1/rerank", chunked).json()["results"]
    assert [row["index"] for row in cut] == [1, 0]
    assert [row["index"] for row in found] == [0, 1]
    start, end = found[0]["best_chunk"]
    assert "cats sleep all day." in str(body["documents"][0])[start:end]
    assert (found[0]["truncated"], found[1]["best_chunk"]) == (False, None)


def first_words(query: str, document: str) -> float:
    """What a model says that reads 118 words of a document."""
    return shared_words(query, " ".join(document.split()[:118]))


def test_https_is_served_by_certificate_flags(tmp_path: Path) -> None:
    authority = Authority.write(tmp_path / "tls", "localhost", "127.0.0.1")
    settings = Settings(port=0, tls_certificate=str(authority.server_chain), tls_key=str(authority.server_key))
    trust = ssl.create_default_context(cafile=str(authority.root))
    with running(settings, fake()) as gateway:
        found = httpx.post(f"https://127.0.0.1:{gateway.port}/v1/rerank", json=BODY, verify=trust, timeout=30)
    assert found.status_code == 200


@pytest.mark.parametrize("why", ["close", "keep-alive", "half a body", "over the bound"])
def test_a_connection_with_tls_ends_though_its_caller_never_says_goodbye(tmp_path: Path, why: str) -> None:
    """TLS waits for the caller's own close_notify, half a minute where nobody bounds it."""
    authority = Authority.write(tmp_path / "tls", "localhost", "127.0.0.1")
    secured = replace(SMALL, tls_certificate=str(authority.server_chain), tls_key=str(authority.server_key))
    settings = replace(secured, keep_alive_s=1, canary_interval_s=3600.0)
    asked, answer = {
        "close": (request(ENCODED, headers=f"{JSON}connection: close\r\n"), b"HTTP/1.1 200"),
        "keep-alive": (request(ENCODED), b"HTTP/1.1 200"),
        "half a body": (request(ENCODED)[:-10], b"HTTP/1.1 408"),
        "over the bound": (
            request(b" " * 2_000_000, headers=f"{JSON}connection: close\r\n")[:-10],
            b"HTTP/1.1 400",
        ),
    }[why]
    trust = ssl.create_default_context(cafile=str(authority.root))
    with running(settings, fake()) as gateway:
        connections = gateway.gateway.metrics.connections
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as plain:
            caller = trust.wrap_socket(plain, server_hostname="localhost")
            caller.sendall(asked)
            assert caller.recv(65536).startswith(answer)
            wait_for(lambda: connections._value.get() == 0, 12)
            caller.close()


def test_a_handshake_with_tls_that_never_ends_is_ended(tmp_path: Path) -> None:
    authority = Authority.write(tmp_path / "tls", "localhost", "127.0.0.1")
    secured = replace(SMALL, tls_certificate=str(authority.server_chain), tls_key=str(authority.server_key))
    with running(secured, fake()) as gateway:
        for said in (b"", b"\x16\x03\x01\x02\x00\x01"):  # nothing, and the first bytes of a ClientHello
            began_s = time.monotonic()
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as caller:
                caller.sendall(said)
                with contextlib.suppress(ConnectionResetError):
                    assert caller.recv(65536) == b""
            assert 0.4 < time.monotonic() - began_s < 10


LONG = "cats sleep " * 10
PASSAGES = {"query": {"text": QUERY}, "passages": [{"text": "cats"}, {"text": LONG}]}
WHOLE: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("/v1/rerank", {"query": QUERY, "documents": ["cats", LONG], "top_k": 2}, {"truncation": False}, 400),
    ("/rerank", {"query": QUERY, "texts": ["cats", LONG]}, {"truncate": False}, 422),
    ("/rerank", {"query": QUERY, "texts": ["cats", LONG]}, {"truncation_direction": "Left"}, 422),
    ("/predict", {"inputs": [[QUERY, "cats"], [QUERY, LONG]]}, {"truncate": False}, 422),
    ("/v1/ranking", PASSAGES, {"truncate": "NONE"}, 400),
    ("/v1/rerank", {"query": QUERY, "documents": ["cats", LONG]}, {"truncation_side": "left"}, 400),
]


@pytest.mark.parametrize(("path", "body", "wish", "status"), WHOLE)
def test_a_request_that_forbids_cutting_is_refused_where_something_would_be_cut(
    path: str, body: dict[str, Any], wish: dict[str, Any], status: int
) -> None:
    with running(models=fake(max_length=10)) as short:
        wait_for(lambda: short.get("/health").status_code == 200)
        assert short.post(path, body).status_code == 200
        found = short.post(path, {**body, **wish})
    assert found.status_code == status
    assert "text 1 does not fit with the query into the 10 tokens that 'fake-model' reads" in found.text
    with running(models=fake()) as long:
        assert long.post(path, {**body, **wish}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", BODY),
        ("/v2/rerank", BODY),
        ("/tei/rerank", {"query": QUERY, "texts": ["cats"]}),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": "cats"}]}),
        ("/v1/score", {"text_1": QUERY, "text_2": ["cats", "dogs"]}),
    ],
)
def test_an_instruction_reaches_the_model_in_every_dialect(path: str, body: dict[str, Any]) -> None:
    scorer = fake()
    with running(Settings(port=0), scorer) as gateway:
        assert gateway.post(path, {**body, "instruction": "find code"}).status_code == 200
        assert gateway.post(path, {**body, "instruction": None}).status_code == 200
        assert [request.instruction for request in scorer.requests[-2:]] == ["find code", None]
        for wrong, words in ((7, "instruction is a number (7): it must be a string"), (" ", "instruction is blank")):
            refused = gateway.post(path, {**body, "instruction": wrong})
            assert refused.status_code in (400, 422) and words in refused.text


LENGTHS = [
    ({}, (None, None)),
    ({"max_tokens_per_query": 3, "max_tokens_per_doc": 2}, (3, 2)),
    ({"max_tokens_per_query": 4096, "max_tokens_per_doc": 4096}, (507, None)),  # Cohere's default; the model reads 512
    ({"max_tokens_per_query": None, "max_tokens_per_doc": 0}, (None, None)),
]


@pytest.mark.parametrize(("lengths", "asked"), LENGTHS)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/cohere/v2/rerank"])
def test_the_lengths_of_texts_that_a_caller_names_reach_the_model(
    path: str, lengths: dict[str, Any], asked: tuple[int | None, int | None]
) -> None:
    scorer = fake(max_length=512)
    with running(Settings(port=0), scorer) as gateway:
        found = gateway.post(path, {**BODY, **lengths, "return_details": True}).json()
        last = scorer.requests[-1]
        assert (last.max_query_tokens, last.max_document_tokens) == asked
        cut = {row["index"] for row in found["results"] if row["truncated"]}
    assert cut == ({0} if asked[1] == 2 else set())  # the document of three words
