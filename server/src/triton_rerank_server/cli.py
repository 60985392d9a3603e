"""``triton-rerank-serve``: start Triton on a model repository and stay until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from triton_rerank.console import drop_output, use_utf8
from triton_rerank.repository import exported_models
from triton_rerank_server.errors import ServerStartError
from triton_rerank_server.models import check_repository, idle_gpu, public_names
from triton_rerank_server.process import TritonServer
from triton_rerank_server.settings import ServerConfig

_log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 after SIGTERM or SIGINT and a clean drain, 1 if Triton did not start, died, or no longer scored. With
        ``--check`` 0 if there is something to serve, else 1.
    """
    use_utf8()
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="triton-rerank-serve: %(message)s", stream=sys.stderr)
    if options.check:
        return _check(_config(options))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    server = TritonServer(_config(options), on_progress=_progress)
    try:
        for restarts_left in range(options.restarts, -1, -1):
            server.start()
            _announce(server)
            print(f"triton-rerank-serve: {server.watch()}\n{server.explanation()}", file=sys.stderr, flush=True)
            server.stop()
            if restarts_left:
                server = TritonServer(server.as_bound(), on_progress=_progress)
        return 1
    except ServerStartError as exc:
        print(f"triton-rerank-serve: {exc}", file=sys.stderr)
        return 1
    except _Stop as stop:
        _say(f"triton-rerank-serve: {stop}, letting running requests finish")
        return 0
    finally:
        _ignore_further_terms()
        server.stop()


def _check(config: ServerConfig) -> int:
    try:
        check_repository(config.model_repository, config.extra_args)
        idle = idle_gpu(config.model_repository)
    except ServerStartError as exc:
        print(f"triton-rerank-serve: {exc}", file=sys.stderr)
        return 1
    print(f"{config.model_repository}: {', '.join(public_names(config.model_repository))}")
    if idle:
        print(idle)
    return 0


class _Stop(BaseException):
    """SIGTERM or SIGINT arrived."""


def _say(text: str) -> None:
    """A server does not end because nobody can read what it says: a pipe whose reader went away, a full disk."""
    try:
        print(text, flush=True)
    except OSError as exc:
        drop_output()
        _log.warning("standard output cannot be written (%s); nothing more is said there, and serving goes on", exc)


def _raise_stop(number: int, _frame: object) -> None:
    raise _Stop(signal.Signals(number).name)


def _ignore_further_terms() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the drain has a bound of its own (--exit-timeout-s)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _progress(step: str) -> None:
    _say(f"triton-rerank-serve: {step}")


def _announce(server: TritonServer) -> None:
    models = exported_models(server.config.model_repository)
    _say(
        f"""
serving {", ".join(models) or "the repository"}  (Ctrl-C stops it)
  gRPC     {server.grpc_target}
  HTTP     http://{server.http_target}/v2
  metrics  http://{server.metrics_target}/metrics
  log      {server.log_file}

call it:
  printf 'gzip shrinks files\\na file cabinet\\n' | {_client_command()} rerank --target {server.grpc_target} \\
    --model {models[0] if models else "MODEL"} --query 'how do I compress a file?' --documents -
"""
    )


def _client_command() -> str:
    """The client's command as this shell can run it."""
    command = Path(sys.executable).parent / "triton-rerank"
    if not command.is_file():
        return "triton-rerank"
    try:
        return os.path.relpath(command)
    except FileNotFoundError:  # the folder that this was started in is gone
        return str(command)


def _config(options: argparse.Namespace) -> ServerConfig:
    return ServerConfig(
        model_repository=options.model_repository,
        address=options.address,
        http_address=options.http_address,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        exit_timeout_s=options.exit_timeout_s,
        start_timeout_s=options.start_timeout_s,
        stall_timeout_s=options.stall_timeout_s,
        connection_age_s=options.connection_age_s,
        log_file=options.log_file,
        extra_args=tuple(options.extra_args),
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    defaults = ServerConfig(Path())
    parser = argparse.ArgumentParser(prog="triton-rerank-serve", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-server')}")
    parser.add_argument("--model-repository", type=Path, required=True, help="folder written by triton-rerank-export")
    parser.add_argument(
        "--address", default=defaults.address, help="address to bind (default %(default)s: this machine)"
    )
    parser.add_argument("--http-address", help="address that HTTP binds, if another; it must be on")
    for service in ("grpc", "http", "metrics"):
        port = getattr(defaults, f"{service}_port")
        parser.add_argument(f"--{service}-port", type=int, default=port, help="default %(default)s; 0 takes a free one")
    parser.add_argument(
        "--exit-timeout-s", type=int, default=defaults.exit_timeout_s, help="seconds that running requests get"
    )
    parser.add_argument(
        "--start-timeout-s", type=float, default=defaults.start_timeout_s, help="seconds until it must be ready"
    )
    parser.add_argument(
        "--stall-timeout-s",
        type=float,
        default=defaults.stall_timeout_s,
        help="seconds without a score and without anything that computes, after which it has failed",
    )
    parser.add_argument(
        "--connection-age-s",
        type=float,
        default=defaults.connection_age_s,
        help="after which a gRPC connection is made anew, so that clients find servers that were added (default "
        "%(default)g; 0: never)",
    )
    parser.add_argument(
        "--restarts",
        type=_count,
        metavar="N",
        default=0,
        help="how often to start Triton again after it died or failed (default 0)",
    )
    parser.add_argument("--check", action="store_true", help="start nothing; say whether there is something to serve")
    parser.add_argument("--log-file", type=Path, help="Triton's output; - for this one; else a temporary file")
    parser.add_argument("extra_args", nargs="*", help="after --, passed to tritonserver as they are; absolute paths")
    return parser


if __name__ == "__main__":
    sys.exit(main())
