"""Keys: who may ask, for what, how fast; and that none is told to anybody."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from triton_rerank import ConfigurationError
from triton_rerank_gateway.admission.keys import Key, Keys, Rates, new_key, read_key
from triton_rerank_gateway.failures import GatewayError

SECRET = "trk-secret"
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
TABLE = {"name": "team", "hash": f"sha256:{HASH}"}


@pytest.mark.parametrize("header", [f"Bearer {SECRET}", f"bearer  {SECRET} ", SECRET])
def test_a_key_is_known_with_and_without_the_word_bearer(header: str) -> None:
    assert Keys([read_key(TABLE)]).check(header).name == "team"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic abc", f"Bearer {HASH}", "Bearer é"]
)
def test_anything_else_is_unauthorized_and_not_repeated(header: str | None) -> None:
    with pytest.raises(GatewayError) as raised:
        Keys([read_key(TABLE)]).check(header)
    assert raised.value.kind == "unauthorized"
    assert "wrong" not in raised.value.message and HASH not in raised.value.message


def test_without_keys_everybody_is_anonymous() -> None:
    assert Keys([]).check(None).name == "anonymous"


def test_a_new_key_is_admitted_by_the_lines_that_come_with_it() -> None:
    secret, lines = new_key("team")
    name, digest = lines.split('"')[1::2]
    assert secret not in lines
    assert Keys([read_key({"name": name, "hash": digest})]).check(f"Bearer {secret}").name == "team"


def test_a_key_may_use_its_models_only() -> None:
    key = read_key({**TABLE, "models": ["a"], "priority": 2})
    assert (key.may_use("a"), key.may_use("b"), key.weight) == (True, False, 0.25)
    assert Key("any").may_use("b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "letters, digits"),
        ({"name": "a b"}, "letters, digits"),
        ({"hash": "secret"}, "64 hex digits"),
        ({"priority": -1}, "priority is -1"),
        ({"pairs_per_s": "fast"}, "pairs_per_s is 'fast'"),
        ({"pairs_per_s": 0}, "pairs_per_s is 0"),
        ({"colour": 1}, "'colour'"),
    ],
)
def test_a_key_that_cannot_be_is_refused_when_it_is_read(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_key({**TABLE, **change})


def test_two_keys_need_two_names() -> None:
    with pytest.raises(ConfigurationError, match="each needs its own"):
        Keys([read_key(TABLE), read_key(TABLE)])


def test_a_rate_lets_a_burst_through_and_then_its_pairs_a_second() -> None:
    now = [100.0]
    rates = Rates(lambda: now[0])
    key = read_key({**TABLE, "pairs_per_s": 10, "burst": 50})
    rates.take(key, 50)
    with pytest.raises(GatewayError) as raised:
        rates.take(key, 25)
    assert (raised.value.kind, raised.value.retry_after_s) == ("overloaded", 3)
    now[0] += 3
    rates.take(key, 25)
    with pytest.raises(GatewayError) as raised:
        rates.take(key, 51)
    assert (raised.value.kind, raised.value.retry_after_s) == ("too_large", None)
    rates.take(Key("without"), 10**6)
