from __future__ import annotations

import logging
from pathlib import Path

import pytest

from triton_rerank_server import ServerConfig, ServerStartError, TritonServer
from triton_rerank_server.launch.restriction import headers, restrictions

NONE = "--model-control-mode=none"
HTTP, GRPC = "--http-restricted-api=", "--grpc-restricted-protocol="
OURS = "model-repository:triton-rerank=s"


@pytest.mark.parametrize(
    ("given", "added", "sent"),
    [
        ([], [], {}),
        (["--model-control-mode=explicit"], [], {}),
        ([NONE], [HTTP + OURS, GRPC + OURS], {"triton-rerank": "s"}),
        ([NONE, HTTP + "model-repository:k=a=b"], [GRPC + OURS], {"k": "a=b"}),
        ([NONE, HTTP + "health:k=v", GRPC + "model-repository:k=v"], [HTTP + OURS], {"triton-rerank": "s", "k": "v"}),
        ([HTTP + "health,inference:k=v", HTTP + "model-repository:l=w"], [], {"k": "v", "l": "w"}),
    ],
)
def test_who_may_load_models(given: list[str], added: list[str], sent: dict[str, str]) -> None:
    assert restrictions(given, "s") == added
    assert headers([*added, *given]) == sent


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (("--model-control-mode=poll",), False),
        (("--model-control-mode=poll", "--repository-poll-secs=30"), True),
        (("--model-control-mode=explicit", "--repository-poll-secs=30"), False),
    ],
)
def test_a_poll_that_is_too_slow_for_a_stop_is_told(
    arguments: tuple[str, ...], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(tmp_path, grpc_port=1, http_port=1, extra_args=arguments)
    with caplog.at_level(logging.WARNING), pytest.raises(ServerStartError, match="port"):
        TritonServer(config).start()
    line = "--repository-poll-secs=30 is not below --exit-timeout-s=30: a stop may lose requests between two steps"
    assert (line in caplog.text) == warned
    assert ("activate --target" in caplog.text) == warned
