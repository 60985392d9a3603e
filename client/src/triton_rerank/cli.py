"""``triton-rerank``: rerank the documents of a file from the shell, or ask servers whether they can."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import triton_rerank
from triton_rerank import errors
from triton_rerank.client import RerankClient
from triton_rerank.console import BROKEN_PIPE, drop_output, use_utf8, written
from triton_rerank.contract import DEFAULT_GRPC_TARGET, DEFAULT_TIMEOUT_S
from triton_rerank.documents import FORMS, read_documents
from triton_rerank.errors import ConfigurationError, RerankError, one_line
from triton_rerank.observability.health import check_health
from triton_rerank.triton.channel import Tls, TritonOptions
from triton_rerank.types import RerankResult

_CANNOT_WRITE, _INTERRUPTED = 1, 130  # the second as shells tell SIGINT
_TARGET, _MODEL = "TRITON_RERANK_TARGET", "TRITON_RERANK_MODEL"  # of the environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or the ``exit_code`` of the error; `exit_codes` lists them.
    """
    use_utf8()
    options = _parser().parse_args(argv)
    try:
        return written(int(options.command(options)))
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
        lines.append(f"{rank:>4} {score:>8} {ranked.index:>6}  {_shortened(text, columns - len(head))}")
    timings, usage = result.timings, result.usage
    lines.append(
        f"{usage.pairs} pairs, {usage.token_count} tokens in {timings.total_s * 1e3:.1f} ms "
        f"({timings.requests} request{'s' * (timings.requests != 1)} to {result.model})"
    )
    return "\n".join(
        [*lines, f"degraded, served by {result.served_by}: {one_line(result.reason or '')}"]
        if result.degraded
        else lines
    )


def _rerank(options: argparse.Namespace) -> int:
    documents = read_documents(options.documents, form=options.format, text_key=options.text_key, say=_say)
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
            max_document_tokens=options.max_document_tokens,
            instruction=options.instruction,
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


def _shortened(text: str, width: int) -> str:
    flat = one_line(" ".join(text.split()))
    return flat if len(flat) <= width else f"{flat[: max(width - 1, 0)]}…"


def _print(text: str) -> None:
    print(text, flush=True)  # a reader that went away shows here, not when Python exits


def _complain(text: str, code: int) -> int:
    _say(text)
    return code


def _say(text: str) -> None:
    print(f"triton-rerank: {one_line(text)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": exit_codes()}
    parser = argparse.ArgumentParser(prog="triton-rerank", **layout)
    parser.add_argument("--version", action="version", version=f"%(prog)s {triton_rerank.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rerank = commands.add_parser("rerank", help="order the documents of a file by a query", **layout)
    rerank.set_defaults(command=_rerank)
    rerank.add_argument("--query", required=True)
    rerank.add_argument("--documents", required=True, metavar="FILE", help="of documents; - is standard input")
    rerank.add_argument(
        "--format",
        choices=FORMS,
        default="auto",
        help="jsonl: each line an object with a text, or a string; json: an array of them; csv, tsv: with a head line; "
        "auto goes by FILE's ending and content, gzipped or not",
    )
    rerank.add_argument(
        "--text-key", default="text", metavar="KEY", help="of an object's text, or a column; default %(default)s"
    )
    rerank.add_argument("--top-k", type=int, metavar="N", help="default: all")
    rerank.add_argument("--min-score", type=float, metavar="X", help="leave out documents that score less")
    rerank.add_argument("--max-length", type=int, metavar="TOKENS", help="of a pair; default: the model's own")
    rerank.add_argument("--max-query-tokens", type=int, metavar="TOKENS", help="most that are kept of the query")
    rerank.add_argument("--max-document-tokens", type=int, metavar="TOKENS", help="most that are kept of a document")
    rerank.add_argument("--instruction", metavar="TEXT", help="for a model with a prompt; default: the model's own")
    _add_server_arguments(rerank, DEFAULT_TIMEOUT_S, targets="several with commas between share the work")
    health = commands.add_parser("health", help="ask servers what they are, and let each score a pair", **layout)
    health.set_defaults(command=_health)
    _add_server_arguments(health, 5.0, targets="several with commas between are asked each by itself")
    return parser


def _add_server_arguments(parser: argparse.ArgumentParser, timeout_s: float, *, targets: str) -> None:
    parser.add_argument(
        "--target",
        default=os.environ.get(_TARGET) or DEFAULT_GRPC_TARGET,
        metavar="HOST:PORT",
        help=f"default ${_TARGET}, or {DEFAULT_GRPC_TARGET}; {targets}",
    )
    model = os.environ.get(_MODEL) or None
    parser.add_argument("--model", default=model, required=model is None, metavar="NAME", help=f"default ${_MODEL}")
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
