"""``triton-rerank``: rerank the documents of a file from the shell, or ask servers whether they can."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triton_rerank import errors
from triton_rerank._health import check_health
from triton_rerank.client import RerankClient
from triton_rerank.console import BROKEN_PIPE, drop_output, use_utf8
from triton_rerank.contract import DEFAULT_GRPC_TARGET, DEFAULT_TIMEOUT_S
from triton_rerank.errors import ConfigurationError, InvalidRequestError, RerankError
from triton_rerank.scorers.channel import Tls, TritonOptions
from triton_rerank.types import RerankResult

_CANNOT_WRITE, _INTERRUPTED = 1, 130  # the second as shells tell SIGINT
_JSONL = (".jsonl", ".ndjson")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or the ``exit_code`` of the error; `exit_codes` lists them.
    """
    use_utf8()
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except RerankError as exc:
        return _complain(f"{type(exc).__name__}: {exc}", exc.exit_code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return BROKEN_PIPE
    except OSError as exc:
        drop_output()
        return _complain(f"cannot write: {exc}", _CANNOT_WRITE)


def exit_codes() -> str:
    """A line for each exit code, made from the error classes."""
    lines = {0: "done", _CANNOT_WRITE: "standard output cannot be written"}
    for name, error in vars(errors).items():
        own = isinstance(error, type) and issubclass(error, RerankError) and "exit_code" in vars(error)
        if own and error is not RerankError:
            lines[error.exit_code] = f"{name}: {(error.__doc__ or name).splitlines()[0].replace('`', '')}"
    lines |= {_INTERRUPTED: "interrupted (Ctrl-C)", BROKEN_PIPE: "the reader of the output went away"}
    return "\n".join(["exit codes:", *(f"  {code:<4} {meaning}" for code, meaning in lines.items())])


def read_documents(source: str, *, form: str = "auto", text_key: str = "text") -> list[Any]:
    """Read one document a line.

    Args:
        source: path, or ``-`` for standard input.
        form: "text"; "jsonl", each line an object with a text, or a string; "auto" goes by the name, so standard input
            is text.
        text_key: key of an object's text.

    Returns:
        Strings and objects, as they stand there. Empty lines of a text are documents too.

    Raises:
        InvalidRequestError: not there, not UTF-8, or a line that is not of the form; the line is named, from 1.
    """
    try:
        text = _read(source).decode("utf-8-sig")
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(f"--documents {source}: cannot be read ({exc}); give a UTF-8 file, or -") from exc
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    if form == "jsonl" or (form == "auto" and source.endswith(_JSONL)):
        return [_parse_line(f"{source}:{number}", line, text_key) for number, line in enumerate(lines, 1)]
    return lines


def format_ranking(result: RerankResult[Any], *, width: int | None = None, text_key: str = "text") -> str:
    """A table: rank, score, index before, text cut to the terminal; below it what it took, and whether it is degraded.

    Args:
        result: what `RerankClient.rerank` returned for strings or mappings.
        width: columns; None asks the terminal.
        text_key: key of a mapping's text.
    """
    columns = width or shutil.get_terminal_size().columns
    head = f"{'rank':>4} {'score':>8} {'before':>6}  "
    lines = [f"{head}document"]
    for rank, ranked in enumerate(result, 1):
        text = ranked.document if isinstance(ranked.document, str) else ranked.document[text_key]
        score = "-" if ranked.score is None else f"{ranked.score:.3f}"
        lines.append(f"{rank:>4} {score:>8} {ranked.index:>6}  {_one_line(text, columns - len(head))}")
    timings, usage = result.timings, result.usage
    lines.append(
        f"{usage.pairs} pairs, {usage.token_count} tokens in {timings.total_s * 1e3:.1f} ms "
        f"({timings.requests} request{'s' * (timings.requests != 1)} to {result.model})"
    )
    return "\n".join([*lines, f"degraded, served by {result.served_by}: {result.reason}"] if result.degraded else lines)


def _rerank(options: argparse.Namespace) -> int:
    documents = read_documents(options.documents, form=options.format, text_key=options.text_key)
    with RerankClient(
        options.target,
        model=options.model,
        timeout_s=options.timeout_s,
        text_key=options.text_key,
        options=_triton_options(options),
    ) as client:
        result = client.rerank(
            options.query,
            documents,
            top_k=options.top_k,
            min_score=options.min_score,
            max_length=options.max_length,
            max_query_tokens=options.max_query_tokens,
        )
    _print(_to_json(asdict(result)) if options.json else format_ranking(result, text_key=options.text_key))
    return 0


def _health(options: argparse.Namespace) -> int:
    triton_options, code = _triton_options(options), 0
    for target in options.target.split(","):
        health = check_health(target.strip(), options.model, timeout_s=options.timeout_s, options=triton_options)
        _print(_to_json(health.fields()) if options.json else health.line())
        code = code or (health.error.exit_code if health.error else 0)
    return code


def _read(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return sys.stdin.buffer.read()


def _parse_line(place: str, line: str, text_key: str) -> Any:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"{place}: not JSON ({exc}); for one text a line say --format text") from exc
    text = document.get(text_key) if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"{place}: neither a string nor an object with a string under the key {text_key!r} (see --text-key)"
        )
    return document


def _triton_options(options: argparse.Namespace) -> TritonOptions:
    files = {"root_certificates": options.tls_ca, "private_key": options.tls_key, "certificate_chain": options.tls_cert}
    wanted = options.tls or options.tls_name or any(files.values())
    tls = Tls(**files, server_name=options.tls_name) if wanted else None
    return TritonOptions(tls=tls, headers=dict(_header(pair) for pair in options.header))


def _header(pair: str) -> tuple[str, str]:
    name, found, value = pair.partition("=")
    if not found:  # what was given is not shown: it may be the value, a secret
        raise ConfigurationError("--header has no '=': it must be NAME=VALUE")
    return name, value


def _to_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _one_line(text: str, width: int) -> str:
    flat = "".join(character if character.isprintable() else "�" for character in _flat(text))
    return flat if len(flat) <= width else f"{flat[: max(width - 1, 0)]}…"


def _print(text: str) -> None:
    print(text, flush=True)  # a reader that went away shows here, not when Python exits


def _complain(text: str, code: int) -> int:
    print(f"triton-rerank: {_flat(text)}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": exit_codes()}
    parser = argparse.ArgumentParser(prog="triton-rerank", **layout)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rerank = commands.add_parser("rerank", help="order the documents of a file by a query", **layout)
    rerank.set_defaults(command=_rerank)
    rerank.add_argument("--query", required=True)
    rerank.add_argument("--documents", required=True, metavar="FILE", help="one a line; - is standard input")
    rerank.add_argument(
        "--format",
        choices=["auto", "text", "jsonl"],
        default="auto",
        help="jsonl: each line an object with a text, or a string; auto: jsonl if FILE ends with .jsonl or .ndjson, "
        "else text, standard input too",
    )
    rerank.add_argument("--text-key", default="text", metavar="KEY", help="of an object's text, default %(default)s")
    rerank.add_argument("--top-k", type=int, metavar="N", help="default: all")
    rerank.add_argument("--min-score", type=float, metavar="X", help="leave out documents that score less")
    rerank.add_argument("--max-length", type=int, metavar="TOKENS", help="of a pair; default: the model's own")
    rerank.add_argument("--max-query-tokens", type=int, metavar="TOKENS", help="most that are kept of the query")
    _add_server_arguments(rerank, DEFAULT_TIMEOUT_S, targets="several with commas between share the work")
    health = commands.add_parser("health", help="ask servers what they are, and let each score a pair", **layout)
    health.set_defaults(command=_health)
    _add_server_arguments(health, 5.0, targets="several with commas between are asked each by itself")
    return parser


def _add_server_arguments(parser: argparse.ArgumentParser, timeout_s: float, *, targets: str) -> None:
    parser.add_argument(
        "--target", default=DEFAULT_GRPC_TARGET, metavar="HOST:PORT", help=f"default %(default)s; {targets}"
    )
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--timeout-s", type=float, default=timeout_s, metavar="S", help="in all, default %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.add_argument("--tls", action="store_true", help="encrypt, and trust the usual authorities")
    parser.add_argument("--tls-ca", metavar="PEM", help="encrypt, and trust these")
    parser.add_argument("--tls-key", metavar="PEM", help="the client's key, for mutual TLS")
    parser.add_argument("--tls-cert", metavar="PEM", help="the client's certificates, for mutual TLS")
    parser.add_argument("--tls-name", metavar="NAME", help="in the server's certificate, where it is not HOST")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="gRPC metadata; may repeat")


if __name__ == "__main__":
    sys.exit(main())
