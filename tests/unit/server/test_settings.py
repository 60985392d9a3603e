"""Settings that nothing can be started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triton_rerank_server import ServerConfig, ServerStartError, TritonServer
from triton_rerank_server.cli import main

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exit_timeout_s": -5}, "--exit-timeout-s is -5: it must be a number of seconds, 0 or more"),
        ({"start_timeout_s": NAN}, "--start-timeout-s is nan: it must be a number of seconds, above 0"),
        ({"stall_timeout_s": 0.0}, "--stall-timeout-s is 0: it must be a number of seconds, above 0"),
        ({"connection_age_s": INF}, "--connection-age-s is inf"),
        ({"connection_age_s": -3.0}, "--connection-age-s is -3"),
        ({"extra_args": ("--exit-timeout-secs=abc",)}, "--exit-timeout-secs=abc: it must be a whole number, 0 or more"),
        ({"extra_args": ("--repository-poll-secs", "-1")}, "--repository-poll-secs=-1: it must be a whole number"),
        (
            {"extra_args": ("--model-control-mode=nome",)},
            "--model-control-mode=nome: it must be one of explicit, poll, none",
        ),
    ],
)
def test_it_is_refused_by_name_value_and_bound(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").touch()
    with pytest.raises(ServerStartError) as raised:
        TritonServer(ServerConfig(tmp_path, **settings)).start()
    assert str(raised.value).startswith(said)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-repository", str(tmp_path), "--connection-age-s", "nan"]) == 1
    assert capsys.readouterr().err.startswith("triton-rerank-serve: --connection-age-s is nan")
    with pytest.raises(SystemExit, match="2"):
        main(["--model-repository", str(tmp_path), "--restarts", "-1"])
    assert "'-1' is not a whole number from 0" in capsys.readouterr().err
