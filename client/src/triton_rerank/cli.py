"""``triton-rerank``: rerank the documents of a file from the shell."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from triton_rerank.client import RerankClient
from triton_rerank.contract import DEFAULT_GRPC_TARGET, DEFAULT_TIMEOUT_S
from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.types import RerankResult


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 if the server could not answer, 2 if the request was wrong.
    """
    options = _parser().parse_args(argv)
    try:
        documents = read_documents(options.documents)
        with RerankClient(options.target, model=options.model, timeout_s=options.timeout_s) as client:
            result = client.rerank(options.query, documents, top_k=options.top_k)
    except RerankError as exc:
        print(f"triton-rerank: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, InvalidRequestError) else 1
    print(_as_json(result) if options.json else format_ranking(result))
    return 0


def read_documents(source: str) -> list[str]:
    """Read one document a line; ``-`` is standard input, and ``*.jsonl`` holds objects with a key ``text``.

    Args:
        source: path or ``-``.

    Raises:
        InvalidRequestError: not there, not UTF-8, or a line that is not of the form.
    """
    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = text.decode("utf-8").removesuffix("\n").split("\n") if text else []
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"--documents {source}: cannot be read ({exc}); give a UTF-8 file, or -") from exc
    return [_text_of(source, i, line) for i, line in enumerate(lines, 1)] if source.endswith(".jsonl") else lines


def format_ranking(result: RerankResult, *, width: int | None = None) -> str:
    """A table: rank, score, index before, text cut to the terminal.

    Args:
        result: what `RerankClient.rerank` returned.
        width: columns; None asks the terminal.
    """
    columns = width or shutil.get_terminal_size().columns
    head = f"{'rank':>4} {'score':>8} {'before':>6}  "
    rows = [
        f"{rank:>4} {ranked.score:>8.3f} {ranked.index:>6}  {_one_line(ranked.document, columns - len(head))}"
        for rank, ranked in enumerate(result, 1)
    ]
    timings, usage = result.timings, result.usage
    foot = (
        f"{usage.pairs} pairs, {usage.token_count} tokens in {timings.total_s * 1e3:.1f} ms "
        f"({timings.requests} request{'s' * (timings.requests != 1)} to {result.model})"
    )
    return "\n".join([f"{head}document", *rows, foot])


def _one_line(text: str, width: int) -> str:
    flat = " ".join(text.split())
    flat = "".join(character if character.isprintable() else "�" for character in flat)
    return flat if len(flat) <= width else f"{flat[: max(width - 1, 0)]}…"


def _text_of(source: str, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidRequestError(f'{source}:{number}: not an object with a key "text" ({exc!r})') from exc
    return text  # type: ignore[no-any-return] # the client checks its type


def _as_json(result: RerankResult) -> str:
    return json.dumps(asdict(result), ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triton-rerank", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rerank = commands.add_parser("rerank", help="order the documents of a file by a query")
    rerank.add_argument("--query", required=True)
    rerank.add_argument(
        "--documents", required=True, metavar="FILE", help="one a line; *.jsonl with key text; - is stdin"
    )
    rerank.add_argument("--top-k", type=int, metavar="N", help="default: all")
    rerank.add_argument("--target", default=DEFAULT_GRPC_TARGET, metavar="HOST:PORT", help="default %(default)s")
    rerank.add_argument("--model", required=True)
    rerank.add_argument(
        "--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="for the whole call, default %(default)s"
    )
    rerank.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
