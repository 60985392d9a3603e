"""Targets, and what is asked of gRPC for them."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.load import BusyClock

from triton_rerank import AsyncRerankClient, ConfigurationError, DeadlineExceededError, RerankClient, Tls, TritonOptions
from triton_rerank.triton.channel import (
    channel_arguments,
    credentials,
    open_channel,
)
from triton_rerank.triton.targets import check_target, grpc_target, has_names, needs_lookup


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("reranker.svc:8001", "reranker.svc:8001"),
        ("dns:///reranker.svc:8001", "dns:///reranker.svc:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("10.0.0.1:8001,10.0.0.2:8002", "ipv4:10.0.0.1:8001,10.0.0.2:8002"),
        ("10.0.0.1:8001, 10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("[::1]:8001,[::2]:8001", "ipv6:[::1]:8001,[::2]:8001"),
        ("localhost:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
    ],
)
def test_a_target_becomes_what_grpc_resolves(target: str, resolved: str) -> None:
    assert grpc_target(check_target(target)) == resolved
    assert needs_lookup(target) == target.startswith("localhost")
    assert has_names(target) == ("svc" in target or "localhost" in target)


@pytest.mark.parametrize(
    "target",
    ["", "host", "host:", ":8001", "host:0", "host:65536", "http://host:8001", "a:1,b", "::1:8001", "a:1,,b:2"],
)
def test_a_target_of_another_form_is_refused(target: str) -> None:
    with pytest.raises(ConfigurationError, match="target is"):
        check_target(target)


def test_families_do_not_mix() -> None:
    with pytest.raises(ConfigurationError, match="all IPv4 or all IPv6"):
        grpc_target("127.0.0.1:1,[::1]:2")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_name_server_that_hangs_does_not_outlast_the_deadline(
    monkeypatch: pytest.MonkeyPatch, kind: str, busy: BusyClock
) -> None:
    def hang(*_: Any, **__: Any) -> Any:
        time.sleep(1.5)
        raise socket.gaierror("never")

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def ask() -> Any:
        async with AsyncRerankClient("a.invalid:1,b.invalid:2", model="m") as client:
            begin = time.monotonic()
            with pytest.raises(DeadlineExceededError, match="looked up"):
                await client.score("q", ["d"], timeout_s=0.3)
            assert busy.own_s(begin) < 0.6
            return time.monotonic() - begin

    if kind == "async":
        took = asyncio.run(ask())
    else:
        with RerankClient("a.invalid:1,b.invalid:2", model="m") as client:
            begin = time.monotonic()
            with pytest.raises(DeadlineExceededError, match="looked up"):
                client.score("q", ["d"], timeout_s=0.3)
            took = time.monotonic() - begin
            assert busy.own_s(begin) < 0.6
    assert took >= 0.3


def test_the_message_limits_of_tritonclient_survive() -> None:
    arguments = dict(channel_arguments("h:1", TritonOptions()))
    assert arguments["grpc.max_receive_message_length"] == arguments["grpc.max_send_message_length"] == 2**31 - 1


@pytest.mark.parametrize(
    ("retries", "listed", "attempts"), [(0, 1, None), (None, 1, 2), (None, 2, 3), (1, 2, 2), (4, 1, 5)]
)
def test_retries_are_grpcs_own_and_throttled(retries: int | None, listed: int, attempts: int | None) -> None:
    arguments = channel_arguments("h:1", TritonOptions(retries=retries), listed)
    config = json.loads(str(dict(arguments)["grpc.service_config"]))
    policy = config["methodConfig"][0].get("retryPolicy")
    assert (policy and policy["maxAttempts"]) == attempts
    assert config["retryThrottling"]["tokenRatio"] < 1


@pytest.mark.parametrize(
    ("address", "least"), [("h:1", 2), ("ipv4:127.0.0.1:1,127.0.0.1:1", 2), ("ipv4:127.0.0.1:1,127.0.0.1:2", 1)]
)
def test_a_lone_address_is_never_left_out(address: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may lose one of its servers by a single failed call, since there is another."""
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda _, options: seen.append(dict(options)))
    open_channel(grpc, address, "h:1", TritonOptions())
    balancing = json.loads(str(seen[0]["grpc.service_config"]))["loadBalancingConfig"][0]
    assert balancing["outlier_detection_experimental"]["failurePercentageEjection"]["minimumHosts"] == least


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retries", 5),
        ("retries", -1),
        ("retries", True),
        ("concurrency", 0),
        ("keepalive_s", 0),
        ("keepalive_timeout_s", float("nan")),
        ("max_reconnect_s", "1"),
        ("compression", "zip"),
        ("headers", {"a b": "c"}),
        ("tls", True),
    ],
)
def test_an_option_out_of_bounds_is_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        TritonOptions(**{option: value})


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.pem: the certificate cannot be read"):
        credentials(Tls(root_certificates=tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match="go together"):
        credentials(Tls(private_key=tmp_path / "key.pem"))
    assert credentials(None) is None
