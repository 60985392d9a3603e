"""Headers, keys and passwords stand in no repr, no message and no traceback with the values of its variables."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hosted import KEY, Fault, HostedServer
from support.tls import Authority

from triton_rerank import CohereScorer, ConfigurationError, RerankClient, RerankError, Tls, TritonOptions, TritonScorer
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import SyncRuntime
from triton_rerank.core.scorer import Call
from triton_rerank.hosted.channel import HttpRequest
from triton_rerank.triton.transport import InferRequest

SECRET = "s3cret-5f2c9a"
HEADERS = {"authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    "shown",
    [
        TritonOptions(headers=HEADERS),
        TritonOptions(headers=HEADERS).headers,
        TritonScorer("127.0.0.1:1", "m", options=TritonOptions(headers=HEADERS)),
        RerankClient("127.0.0.1:1", model="m", options=TritonOptions(headers=HEADERS)),
        Call(Deadline(1.0), SyncRuntime(), HEADERS),
        InferRequest(None, Deadline(1.0), "x", tuple(HEADERS.items()), None),
        HttpRequest("POST", "http://127.0.0.1", HEADERS, b"", "who"),
        CohereScorer(SECRET, model="m"),
        CohereScorer("key", model="m", proxy=f"http://user:{SECRET}@127.0.0.1:1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_repr_shows_a_secret(shown: object) -> None:
    assert SECRET not in repr(shown)
    assert SECRET not in repr(vars(shown) if hasattr(shown, "__dict__") else shown)


def told(ask: Callable[[], object]) -> str:
    """The traceback of what was raised, with every variable of our frames, and the error itself as it is pickled."""
    with pytest.raises(RerankError) as caught:
        ask()
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [line for line in frames.format() if "/triton_rerank/" in line]
    assert ours
    return "".join(ours) + repr(pickle.dumps(caught.value)) + str(caught.value)


def test_a_traceback_with_variables_shows_no_header() -> None:
    client = RerankClient("127.0.0.1:1", model="m", options=TritonOptions(headers=HEADERS), timeout_s=5.0)
    assert SECRET not in told(lambda: client.rerank("q", ["a"]))


def test_a_traceback_with_variables_shows_no_key() -> None:
    with HostedServer("cohere") as server:
        server.always = Fault(status=401, body=f'{{"message": "bad key {KEY}"}}'.encode())
        with RerankClient(scorer=CohereScorer(KEY, model="m", base_url=server.url)) as client:
            assert KEY not in told(lambda: client.rerank("q", ["a"]))


def test_a_key_in_place_of_its_files_path_is_not_shown(tmp_path: Path) -> None:
    authority = Authority.write(tmp_path / "tls", "localhost")
    pem = Path(authority.client_key).read_text()
    for name in ("root_certificates", "private_key", "certificate_chain"):
        for content in (pem, pem.encode()):
            with pytest.raises(ConfigurationError, match=f"{name} must be the path of a PEM file") as caught:
                Tls(**{name: content})  # type: ignore[arg-type]
            assert "BEGIN" not in str(caught.value)
    assert Tls(authority.root).root_certificates == authority.root
