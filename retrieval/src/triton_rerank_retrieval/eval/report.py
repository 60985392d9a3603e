"""What was measured, as JSON, Markdown and one HTML page without any request outside; run files in TREC's form."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from triton_rerank_retrieval.eval import plots
from triton_rerank_retrieval.eval.data import Collection
from triton_rerank_retrieval.eval.evaluate import Ran
from triton_rerank_retrieval.eval.measures import Difference, corrected, difference, means
from triton_rerank_retrieval.eval.plan import SystemSpec
from triton_rerank_retrieval.eval.sweeps import MAIN, Calibration, KPoint, knee
from triton_rerank_retrieval.files import write_atomically

SHOWN = 5  # of the largest wins and losses
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)


@dataclass
class CollectionReport:
    """Everything that was found on one collection.

    Attributes:
        collection: what was searched.
        ran: system -> its results.
        specs: system -> what it is made of; a tuned one has two.
        ceiling: system -> share of the relevant documents that its reranker is given.
        seconds: system -> median seconds a query; empty where nothing was timed.
        baseline: system that the others are compared with.
        tuned: system that is compared with each of the others; "" means none.
        sweep: depth against quality, of ``swept``.
        swept: name of that system.
        calibration: of the reranker of ``swept``.
    """

    collection: Collection
    ran: dict[str, Ran] = field(default_factory=dict)
    specs: dict[str, Mapping[str, SystemSpec]] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    baseline: str = ""
    tuned: str = ""
    sweep: Sequence[KPoint] = ()
    swept: str = ""
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """In Markdown."""
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns)), *map(_row, self.rows)]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """In HTML."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<h3>{html.escape(self.title)}</h3><table><tr>{head}</tr>{body}</table>"


def write(folder: Path, reports: Sequence[CollectionReport], about: Mapping[str, Any]) -> None:
    """Write report.json, report.md, report.html and the run files. Times apart, equal inputs give equal bytes.

    Args:
        folder: made if it is not there.
        reports: one a collection.
        about: what was asked for: command, versions, machine.
    """
    content = {"about": about, "collections": [_json(report) for report in reports]}
    write_atomically(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "report.md", markdown(reports, about))
    write_atomically(folder / "report.html", page(reports, about))
    for report in reports:
        for number, (name, ran) in enumerate(report.ran.items(), 1):
            slug = "".join(sign if sign.isalnum() else "-" for sign in name)
            write_atomically(folder / "runs" / f"{report.collection.name}-{number:02}-{slug}.trec", _trec(name, ran))


def markdown(reports: Sequence[CollectionReport], about: Mapping[str, Any]) -> str:
    """The report for people."""
    parts = ["# What each stage brings", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    for report in reports:
        parts += [f"## {report.collection.name}", "", *_facts(report), "", *(t.markdown() for t in tables(report))]
    return "\n".join(parts)


def page(reports: Sequence[CollectionReport], about: Mapping[str, Any]) -> str:
    """The report with its plots, in one file."""
    body = "".join(f"<li>{html.escape(f'{name}: {value}')}</li>" for name, value in about.items())
    parts = [f"<h1>What each stage brings</h1><ul>{body}</ul>"]
    for report in reports:
        facts = "".join(f"<p>{html.escape(fact)}</p>" for fact in _facts(report))
        parts.append(f"<h2>{html.escape(report.collection.name)}</h2>{facts}")
        parts += [table.html() for table in tables(report)]
        parts += [f"<figure>{drawing}</figure>" for drawing in drawings(report)]
    style = f"<meta charset=utf-8><title>What each stage brings</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{style}</head><body>{''.join(parts)}</body></html>\n"


def drawings(report: CollectionReport) -> list[str]:
    """The plots as SVG."""
    quality = {name: means(ran.values)[MAIN] for name, ran in report.ran.items()}
    drawn = [plots.pareto({name: (report.seconds[name], quality[name]) for name in report.seconds})]
    if report.sweep:
        drawn.append(plots.k_sweep(report.swept, report.sweep, knee(report.sweep)))
    if report.calibration:
        drawn.append(plots.thresholds(report.calibration))
    return [drawing for drawing in drawn if drawing]


def tables(report: CollectionReport) -> list[Table]:
    """All tables of one collection."""
    made = [_systems(report)]
    if report.baseline:
        title = f"{MAIN} against {report.baseline}"
        made += [_differences(title, comparisons(report)), _wins(report)]
    if report.tuned:
        made.insert(1, _differences(f"{MAIN} of {report.tuned} against each other system", gains(report)))
    if report.sweep:
        made.append(_sweep(report))
    if report.calibration:
        made.append(_thresholds(report.calibration))
    return made


def comparisons(report: CollectionReport) -> dict[str, Difference]:
    """Each system minus the baseline on the main measure; p-values corrected for all of them."""
    return _compared(report, report.baseline, lambda other, base: difference(other, base))


def gains(report: CollectionReport) -> dict[str, Difference]:
    """The tuned system minus each other one on the main measure; p-values corrected for all of them."""
    return _compared(report, report.tuned, lambda other, whole: difference(whole, other))


def _compared(
    report: CollectionReport, one: str, compare: Callable[[Mapping[str, float], Mapping[str, float]], Difference]
) -> dict[str, Difference]:
    others = [name for name in report.ran if name != one]
    found = [compare(report.ran[name].values[MAIN], report.ran[one].values[MAIN]) for name in others]
    p_values = corrected([each.p_value for each in found])
    return {name: replace(each, p_value=p) for name, each, p in zip(others, found, p_values, strict=True)}


def _facts(report: CollectionReport) -> list[str]:
    collection = report.collection
    facts = [
        f"{len(collection.corpus)} documents, {len(collection.queries)} judged of {collection.n_queries} queries.",
        *(f"Left out: {row}" for row in collection.bad_rows[:20]),
    ]
    if len(collection.bad_rows) > 20:
        facts.append(f"… and {len(collection.bad_rows) - 20} rows more.")
    for name, specs in report.specs.items():
        if len(specs) > 1:
            facts += [
                f"{name}: chosen on the {half} half, judged on the other: {_told(s)}." for half, s in specs.items()
            ]
    if report.sweep:
        facts.append(_knee(report))
    if report.calibration:
        high, medium = report.calibration.high, report.calibration.medium
        facts.append(f"Bands of {report.swept}'s reranker: high from {high:.4g}, medium from {medium:.4g}.")
    return facts


def _told(system: SystemSpec) -> str:
    blend = "" if system.blend is None else f", reranker's weight {system.blend:g}"
    return f"weights {system.weights}{blend}, K {system.depth}, λ {system.mmr:g}"


def _knee(report: CollectionReport) -> str:
    chosen, deepest = knee(report.sweep), report.sweep[-1]
    lost = 1 - chosen.quality / deepest.quality if deepest.quality else 0.0
    text = f"{report.swept}: K = {chosen.k} {'loses' if lost >= 0 else 'gains'} {abs(lost):.1%} of {MAIN}"
    if chosen.seconds and deepest.seconds:
        text += f" and takes {chosen.seconds / deepest.seconds:.0%} of the time"
    return f"{text}, against K = {deepest.k}."


def _systems(report: CollectionReport) -> Table:
    names = list(next(iter(report.ran.values())).values) if report.ran else []
    rows = []
    for name, ran in report.ran.items():
        mean = means(ran.values)
        ceiling = f"{report.ceiling[name]:.4f}" if name in report.ceiling else "–"
        seconds = f"{1000 * report.seconds[name]:.0f}" if name in report.seconds else "–"
        rows.append([name, *(f"{mean[measure]:.4f}" for measure in names), ceiling, seconds])
    return Table("Systems", ["system", *names, "recall ceiling", "ms a query"], rows)


def _differences(what: str, found: Mapping[str, Difference]) -> Table:
    rows = [
        [name, f"{one.mean:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", f"{one.p_value:.3g}"]
        for name, one in found.items()
    ]
    title = f"{what}: 95 % interval (paired bootstrap), p (t-test, Holm)"
    return Table(title, ["system", "difference", "interval", "p"], rows)


def _wins(report: CollectionReport) -> Table:
    best = max(report.ran, key=lambda name: means(report.ran[name].values)[MAIN])
    first, second = report.ran[best].values[MAIN], report.ran[report.baseline].values[MAIN]
    order = sorted(first, key=lambda query: second[query] - first[query])
    shown = order[:SHOWN] + [query for query in order[-SHOWN:] if query not in order[:SHOWN]]
    rows = [
        [report.collection.queries[query][:90], f"{second[query]:.3f}", f"{first[query]:.3f}",
         f"{first[query] - second[query]:+.3f}"]
        for query in shown
    ]  # fmt: skip
    return Table(f"Largest wins and losses of {best}", ["query", report.baseline, best, "difference"], rows)


def _sweep(report: CollectionReport) -> Table:
    rows = [
        [str(point.k), f"{point.quality:.4f}", "–" if point.seconds is None else f"{1000 * point.seconds:.0f}"]
        for point in report.sweep
    ]
    return Table(f"K of {report.swept}", ["K", MAIN, "ms a query"], rows)


def _thresholds(calibration: Calibration) -> Table:
    rows = [
        [f"{one.min_score:.4g}", f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.kept:.1f}"]
        for one in calibration.thresholds
    ]
    return Table("Thresholds", ["min_score", "precision", "recall", "documents a query"], rows)


def _json(report: CollectionReport) -> dict[str, Any]:
    return {
        "collection": report.collection.name,
        "documents": len(report.collection.corpus),
        "judged": len(report.collection.queries),
        "bad_rows": report.collection.bad_rows,
        "systems": {
            name: {
                "made_of": {half: asdict(spec) for half, spec in report.specs.get(name, {}).items()},
                "means": means(ran.values),
                "per_query": ran.values,
                "recall_ceiling": report.ceiling.get(name),
                "seconds": report.seconds.get(name),
            }
            for name, ran in report.ran.items()
        },
        "differences": {name: asdict(one) for name, one in comparisons(report).items()} if report.baseline else {},
        "tuned_minus": {name: asdict(one) for name, one in gains(report).items()} if report.tuned else {},
        "sweep": {"system": report.swept, "points": [asdict(point) for point in report.sweep]},
        "calibration": None if report.calibration is None else asdict(report.calibration),
    }


def _trec(name: str, ran: Ran) -> str:
    tag = "".join(sign if sign.isalnum() else "-" for sign in name)
    lines = [
        f"{query} Q0 {one.id} {rank} {len(result) - rank + 1} {tag}"  # the order is the score: no ties
        for query, result in ran.results.items()
        for rank, one in enumerate(result, 1)
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
