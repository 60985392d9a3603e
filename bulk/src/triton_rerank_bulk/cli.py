"""``triton-rerank-bulk``: score every pair of a file into a folder; the same command goes on after any crash."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank import (
    ConfigurationError,
    LocalScorer,
    RerankClient,
    RerankError,
    Tls,
    TritonOptions,
)
from triton_rerank.console import use_utf8
from triton_rerank_bulk.audit import audit, export
from triton_rerank_bulk.engines import Outcomes, run_here, run_ray
from triton_rerank_bulk.job import Job, locked, open_job
from triton_rerank_bulk.pairs import find_source
from triton_rerank_bulk.scoring import Outcome, Work, reason_of, wait_for

_NOT_CLEAN, _INTERRUPTED = 1, 130
_LENGTHS = ("max_length", "max_query_tokens", "max_document_tokens")
_ASKED = (*_LENGTHS, "instruction")
_EVERY_S = 5.0  # between two lines of progress
_EXIT_CODES = """exit codes:
  0    every pair has one row, by one version of the model, and no more than --max-errors have an error
  1    the audit is not clean, there were too many errors, or the output cannot be written
  2    the arguments or the input are wrong; nothing was scored
  3    the output is of another job, or the server's model is not the job's
  4-9  the servers were gone, or refused, for --patience-s: as triton-rerank says them
  130  interrupted (Ctrl-C)
After 1, 3, 4-9 and 130, and after kill -9, the same command goes on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    use_utf8()
    options = _parser().parse_args(argv)
    try:
        with locked(options.output):
            return _score(options)
    except RerankError as exc:
        _say(f"{type(exc).__name__}: {exc}")
        return exc.exit_code
    except OSError as exc:
        _say(f"{options.output}: cannot be written ({reason_of(exc)}); the same command goes on from here")
        return _NOT_CLEAN
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return _INTERRUPTED


def _score(options: argparse.Namespace) -> int:
    source = find_source(options.input, options.collection)
    asked = {name: getattr(options, name) for name in _ASKED if getattr(options, name) is not None}
    client = _client(options)
    answer = wait_for(lambda: client.rerank("who answers?", ["a server"], **asked), options.patience_s, _say)
    facts = {
        "model": answer.model,
        "model_version": answer.model_version,
        "block_pairs": options.block_pairs,
        **{name: asked.get(name) for name in _ASKED},
    }
    job = open_job(options.output, source, facts, _say)
    work = Work(
        input=job.input.absolute(),
        output=job.folder.absolute(),
        n_pairs=job.n_pairs,
        block_pairs=options.block_pairs,
        client=client,
        model=answer.model,
        model_version=answer.model_version,
        asked=asked,
        concurrency=options.concurrency,
        patience_s=options.patience_s,
    )
    return _run(job, work, options) or _finish(work, options)


def _run(job: Job, work: Work, options: argparse.Namespace) -> int:
    done = set(job.done(work, _say))
    left = [block for block in range(work.n_blocks) if block not in done]
    progress = Progress(work.n_pairs, sum(len(work.rows(block)) for block in done))
    if done:
        _say(f"goes on: {progress.done:,} of {work.n_pairs:,} pairs are there")
    with closing(_engine(work, left, options)) as outcomes:
        for outcome in outcomes:
            progress.add(outcome)
            if outcome.failure:
                kept = f"{progress.done:,} of {work.n_pairs:,} pairs are kept, and the same command goes on from there"
                _say(f"{outcome.failure}; {kept}")
                return outcome.exit_code
            if progress.errors > options.max_errors:
                _say(_too_many(progress.errors, options.max_errors, outcome.example))
                return _NOT_CLEAN
    return 0


def _engine(work: Work, left: Sequence[int], options: argparse.Namespace) -> Outcomes:
    if options.ray is None or not left:
        return run_here(work, left, options.workers[1])
    return run_ray(work, left, options.workers, options.ray, 1.0 if options.local else 0.25)


def _finish(work: Work, options: argparse.Namespace) -> int:
    found = audit(work)
    _say(found.line())
    print(found.json(), flush=True)
    if not found.is_clean:
        return _NOT_CLEAN
    if found.errors > options.max_errors:
        _say(_too_many(found.errors, options.max_errors, "see the column error"))
        return _NOT_CLEAN
    if options.to:
        _say(f"wrote {export(work, options.to)}")
    return 0


class Progress:
    """Says how far the job is, at which rate, and how long it will take, every few seconds."""

    def __init__(self, total: int, done: int) -> None:
        self.done, self.errors = done, 0
        self._total, self._before = total, done
        self._started = time.monotonic()
        self._said = self._started

    def add(self, outcome: Outcome) -> None:
        """Count a block."""
        self.done += outcome.pairs
        self.errors += outcome.errors
        now = time.monotonic()
        if outcome.pairs and (now - self._said >= _EVERY_S or self.done == self._total):
            self._said = now
            _say(self.line(now - self._started))

    def line(self, elapsed_s: float) -> str:
        """After so many seconds of this run."""
        rate = (self.done - self._before) / max(elapsed_s, 1e-9)
        left_s = round((self._total - self.done) / rate) if rate else 0
        hours, minutes = divmod(left_s // 60, 60)
        return (
            f"{self.done:,} of {self._total:,} pairs ({self.done / self._total:.1%}), {rate:,.0f} pairs/s, "
            f"{hours} h {minutes:02} min {left_s % 60:02} s left, {self.errors:,} errors"
        )


def _too_many(errors: int, most: int, example: str) -> str:
    return (
        f"{errors:,} pairs have an error, and --max-errors is {most:,}: {example}; mend them, or raise it and run the "
        "same command"
    )


def _client(options: argparse.Namespace) -> RerankClient:
    if options.local is not None:
        return RerankClient(scorer=LocalScorer(options.local, options.model), timeout_s=options.timeout_s)
    files = {"root_certificates": options.tls_ca, "private_key": options.tls_key, "certificate_chain": options.tls_cert}
    wanted = options.tls or options.tls_name or any(files.values())
    triton = TritonOptions(
        tls=Tls(**files, server_name=options.tls_name) if wanted else None, headers=dict(map(_header, options.header))
    )
    return RerankClient(options.target, model=options.model, timeout_s=options.timeout_s, options=triton)


def _header(pair: str) -> tuple[str, str]:
    name, found, value = pair.partition("=")
    if not found:  # what was given is not shown: it may be the value, a secret
        raise ConfigurationError("--header has no '=': it must be NAME=VALUE")
    return name, value


def _workers(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    try:
        found = int(least), int(most or least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not N or LEAST:MOST, from 1")
    return found


def _from(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        """Read a whole number from a command line, not below the least."""
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return found


def _say(text: str) -> None:
    print(f"triton-rerank-bulk: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EXIT_CODES}
    parser = argparse.ArgumentParser(prog="triton-rerank-bulk", **layout)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-bulk')}")
    score = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "score", help="score every pair of a file, or go on with it, and audit the output", **layout
    )
    _add_job(score)
    _add_workers(score)
    _add_bounds(score)
    _add_connection(score)
    return parser


def _add_job(score: argparse.ArgumentParser) -> None:
    add = score.add_argument
    add(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        help="RUN.trec, PAIRS.parquet, PAIRS.jsonl, or a folder with corpus.jsonl, queries.jsonl and run.trec",
    )
    add(
        "--collection",
        type=Path,
        metavar="FOLDER",
        help="corpus.jsonl and queries.jsonl (BEIR), where the input has ids only",
    )
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="empty, or this job's; with --ray on storage that all machines share",
    )
    add("--model", required=True, metavar="NAME")
    where = score.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--target", metavar="HOST:PORT", help="of Triton; several with commas between, or a DNS name, share the work"
    )
    where.add_argument("--local", type=Path, metavar="REPOSITORY", help="score in process, by the extra [local]")
    add("--to", choices=("trec", "jsonl"), help="also write scores.trec or scores.jsonl, once the audit is clean")


def _add_workers(score: argparse.ArgumentParser) -> None:
    add = score.add_argument
    add(
        "--ray",
        metavar="ADDRESS",
        help="by actors of Ray Data: of this cluster, or 'local' for one on this machine; the extra [ray]",
    )
    add(
        "--workers",
        type=_workers,
        default=(2, 2),
        metavar="N",
        help="blocks at a time; with --ray actors, LEAST:MOST where the cluster scales; default 2",
    )
    add(
        "--concurrency",
        type=_from(1),
        default=8,
        metavar="N",
        help="calls under way at a time, of each actor; default %(default)s",
    )
    add(
        "--block-pairs",
        type=_from(1),
        default=4096,
        metavar="N",
        help="pairs of a file: what a crash costs, and how often progress is told; default %(default)s",
    )


def _add_bounds(score: argparse.ArgumentParser) -> None:
    add = score.add_argument
    add(
        "--max-errors",
        type=_from(0),
        default=100,
        metavar="N",
        help="pairs that may fail by themselves, each a row with its error; default %(default)s",
    )
    add("--timeout-s", type=float, default=60.0, metavar="S", help="of a call of up to 256 pairs; default %(default)s")
    add(
        "--patience-s",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="that servers may be gone or refuse; default %(default)s",
    )
    for name in _LENGTHS:
        add(f"--{name.replace('_', '-')}", type=_from(1), metavar="TOKENS", help="default: the model's own")
    add("--instruction", metavar="TEXT", help="what a model with a prompt is told to look for; default: its own")


def _add_connection(score: argparse.ArgumentParser) -> None:
    add = score.add_argument
    add("--tls", action="store_true", help="encrypt, and trust the usual authorities")
    add("--tls-ca", metavar="PEM", help="encrypt, and trust these")
    add("--tls-key", metavar="PEM", help="the client's key, for mutual TLS")
    add("--tls-cert", metavar="PEM", help="the client's certificates, for mutual TLS")
    add("--tls-name", metavar="NAME", help="in the server's certificate, where it is not HOST")
    add("--header", action="append", default=[], metavar="NAME=VALUE", help="gRPC metadata; may repeat")


if __name__ == "__main__":
    sys.exit(main())
