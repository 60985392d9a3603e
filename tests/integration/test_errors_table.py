"""docs/errors.md, row by row: its tables are the code's, and each wrong thing is done to a real Triton, both ways."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.odd_servers import silent, start_unchecked, write_certificates
from support.tritons import only_bert
from support.wrong_things import CASES, Case, settled

from triton_rerank import AsyncRerankClient, RerankClient, RerankError, errors
from triton_rerank.triton.status import TABLE
from triton_rerank_server import TritonServer

GRACE_S = 0.5  # after the deadline, on busy cores; test_deadlines.py holds how soon most calls end
RIGHT = "right answer"
PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the one table under a heading, without its two head lines."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(heading))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def classes() -> dict[str, type[RerankError]]:
    return {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, RerankError)}


WRONG = {thing: outcome.strip("`") for thing, outcome, _ in rows("Wrong things")}


def test_the_pages_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/errors.md", "exec"), {})
    assert capsys.readouterr().out.startswith("InvalidRequestError: top_k is 0")


def test_the_table_of_classes_is_the_classes() -> None:
    told = {row[0].strip("`"): row[2:6] for row in rows("Classes")}
    word = {True: "yes", False: "no"}
    assert told == {
        name: [word[error.retryable], word[error.falls_back], str(error.http_status), str(error.exit_code)]
        for name, error in classes().items()
    }


def test_the_table_of_statuses_is_the_codes_table_in_its_order() -> None:
    told = [(status, "" if fragment == "any" else fragment, name.strip("`")) for status, fragment, name in rows("From")]
    assert told == [(status, fragment, error.__name__) for status, fragment, error, _ in TABLE]


def test_every_wrong_thing_has_a_case_and_every_case_a_row() -> None:
    assert [thing for thing, *_ in rows("Wrong things")] == list(CASES)
    assert set(WRONG.values()) <= {RIGHT, *classes()}
    for thing, case in CASES.items():
        assert (WRONG[thing] == RIGHT) == (case.right is not None), thing


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def places(
    server: TritonServer, tiny_repository: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Targets by name."""
    repository = only_bert(tiny_repository, tmp_path_factory.mktemp("bert"))
    with (
        start_unchecked(repository, *write_certificates(certificates)) as encrypted,
        start_unchecked(repository, "--grpc-restricted-protocol=inference:key=value") as restricted,
        silent(greets=False) as mute,
        silent(greets=True) as still,
    ):
        yield {
            "server": server.grpc_target,
            "http": f"127.0.0.1:{server.http_port}",
            "metrics": f"127.0.0.1:{server.metrics_port}",
            "tls": encrypted.grpc_target,
            "restricted": restricted.grpc_target,
            "mute": mute,
            "still": still,
        }


async def outcome(case: Case, client: Any) -> Any:
    """The answer, or whatever was raised."""
    try:
        return await settled(case.ask(client))
    except Exception as exc:  # noqa: BLE001 - an untyped one too: that is what this looks for
        return exc


async def outcomes(case: Case, kind: type, places: dict[str, str], certificates: Path) -> tuple[Any, Any, float]:
    """What came of it, what comes of the next right call on the same client (None: no client), and seconds."""
    begin = time.monotonic()
    try:
        client = case.client(kind, places, certificates)
    except Exception as exc:  # noqa: BLE001
        return exc, None, time.monotonic() - begin
    first = await outcome(case, client)
    elapsed_s = time.monotonic() - begin
    timeout_s = 10.0 if case.connected else 1.0
    after = await outcome(Case(lambda client: client.rerank("q", ["a", "b"], timeout_s=timeout_s)), client)
    await settled(client.aclose() if isinstance(client, AsyncRerankClient) else client.close())
    return first, after, elapsed_s


@pytest.mark.parametrize("kind", [RerankClient, AsyncRerankClient], ids=["sync", "async"])
@pytest.mark.parametrize("thing", CASES)
def test_a_wrong_thing_has_the_outcome_that_the_page_tells(
    thing: str, kind: type, places: dict[str, str], certificates: Path
) -> None:
    case = CASES[thing]
    first, after, elapsed_s = asyncio.run(outcomes(case, kind, places, certificates))
    if case.right is None:
        assert type(first).__name__ == WRONG[thing], repr(first)
        assert elapsed_s <= case.timeout_s + GRACE_S
        assert "\n" not in str(first) and len(str(first)) < 600
        assert case.connected or after is None or type(after) is type(first), repr(after)
    else:
        assert not isinstance(first, Exception), repr(first)
        assert case.right(first)
    if case.connected and after is not None:
        assert not isinstance(after, Exception), repr(after)
        assert len(after) == 2
