"""What is measured: first stages, rerankers, and systems made of them; from a TOML file or from flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from triton_rerank import ConfigurationError
from triton_rerank_retrieval.candidates import Feedback

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RetrieverKind = Literal["bm25", "dense", "run"]
RerankerKind = Literal["triton", "local", "sentence-transformers", "cohere", "jina", "voyage", "llm"]
T = TypeVar("T")


@dataclass(frozen=True)
class RetrieverSpec:
    """A first stage.

    Attributes:
        name: each its own.
        kind: "bm25", "dense", or "run", a TREC run file of somebody else's.
        model: of "dense": a sentence-transformers folder or id.
        path: of "run": the file.
        options: of "bm25": those of `Bm25Options`.
    """

    name: str
    kind: RetrieverKind
    model: str = ""
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RerankerSpec:
    """A reranker.

    Attributes:
        name: each its own.
        kind: "triton" at a ``target``, or started for this from a ``repository``; "local", the same in this process;
            "sentence-transformers"; a hosted one; or "llm", any endpoint in OpenAI's form,
            asked for each document by itself, so that scores can be kept.
        model: its public name, folder or id; "" where a repository holds a single one.
        repository: model repository.
        target: ``host:port``.
        base_url: of "llm".
    """

    name: str
    kind: RerankerKind
    model: str = ""
    repository: str = ""
    target: str = ""
    base_url: str = ""


@dataclass(frozen=True)
class SystemSpec:
    """A pipeline that is measured.

    Attributes:
        name: each its own.
        retrievers: names of first stages.
        fusion: "z" or "rrf", where there are several.
        weights: of the fusion; empty means equal.
        feedback: `Feedback.weight`, for a system with a "bm25" first stage; 0 means none.
        reranker: name of one; "" means none.
        light: name of a reranker that looks at all before ``reranker`` looks at the best ``keep``.
        keep: see ``light``.
        depth: candidates of each first stage, and reranked.
        blend: weight of the reranker beside the fused order; None means the reranker alone.
        mmr: λ of maximal marginal relevance over the first 10; 1 means none.
    """

    name: str
    retrievers: tuple[str, ...]
    fusion: Literal["z", "rrf"] = "z"
    weights: tuple[float, ...] = ()
    feedback: float = 0.0
    reranker: str = ""
    light: str = ""
    keep: int = 20
    depth: int = 100
    blend: float | None = None
    mmr: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything to measure.

    Raises:
        ConfigurationError: a name stands twice, or a system names what is not there.
    """

    retrievers: tuple[RetrieverSpec, ...]
    rerankers: tuple[RerankerSpec, ...]
    systems: tuple[SystemSpec, ...]

    def __post_init__(self) -> None:
        for what in (self.retrievers, self.rerankers, self.systems):
            names = [one.name for one in what]
            if len(set(names)) < len(names):
                raise ConfigurationError(f"the names {', '.join(names)} must differ")
        retrievers, rerankers = ({one.name for one in what} for what in (self.retrievers, self.rerankers))
        if not self.systems:
            raise ConfigurationError("no system is to be measured: give at least one [[system]]")
        for system in self.systems:
            unknown = (set(system.retrievers) - retrievers) | ({system.reranker, system.light} - rerankers - {""})
            if unknown or not system.retrievers:
                raise ConfigurationError(f"system {system.name}: no such first stage or reranker: {sorted(unknown)}")
            self._check_feedback(system)

    def _check_feedback(self, system: SystemSpec) -> None:
        if not system.feedback:
            return
        lexical = {one.name for one in self.retrievers if one.kind == "bm25"}
        if not lexical & set(system.retrievers):
            raise ConfigurationError(f"system {system.name}: feedback needs a first stage of kind bm25 among its own")
        try:
            Feedback(weight=system.feedback)
        except ConfigurationError as exc:
            raise ConfigurationError(f"system {system.name}: {exc}") from exc


def read_plan(path: Path) -> Plan:
    """Read a TOML file of ``[[retriever]]``, ``[[reranker]]`` and ``[[system]]`` tables.

    Raises:
        ConfigurationError: no such file, no TOML, or a key that is not known.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{path} is no TOML file: {exc}") from exc
    unknown = sorted(set(content) - {"retriever", "reranker", "system"})
    if unknown:
        raise ConfigurationError(f"{path}: {unknown} is not known: [[retriever]], [[reranker]] and [[system]] are")
    return Plan(
        tuple(_spec(RetrieverSpec, row, path) for row in content.get("retriever", [])),
        tuple(_spec(RerankerSpec, row, path) for row in content.get("reranker", [])),
        tuple(_spec(SystemSpec, row, path) for row in content.get("system", [])),
    )


def plan_of(dense_model: str, repositories: Sequence[str], *, model: str = "", depth: int = 100) -> Plan:
    """What the flags mean: BM25, the bi-encoder, both, both with feedback, and each reranker on BM25 and on the last.

    Each reranker orders alone, and blended with what was before it.

    Args:
        dense_model: of the bi-encoder; "" leaves it out.
        repositories: ``NAME=PATH`` or ``PATH`` of model repositories.
        model: public name, where a repository holds more than one.
        depth: candidates of each first stage.
    """
    retrievers = [RetrieverSpec("bm25", "bm25")]
    systems = [SystemSpec("BM25", ("bm25",), depth=depth)]
    both = systems[0]
    if dense_model:
        retrievers.append(RetrieverSpec("dense", "dense", model=dense_model))
        both = SystemSpec("BM25 + dense", ("bm25", "dense"), weights=(0.25, 0.75), depth=depth)
        systems += [SystemSpec("dense", ("dense",), depth=depth), both]
        both = replace(both, name=f"{both.name} + feedback", feedback=Feedback().weight)
        systems.append(both)
    rerankers = []
    for value in repositories:
        name, separator, path = value.rpartition("=")
        name = name if separator else Path(path).resolve().name
        rerankers.append(RerankerSpec(name, "triton", model=model, repository=path))
        for below in dict.fromkeys((systems[0], both)):
            reranked = replace(below, name=f"{below.name} > {name}", reranker=name)
            systems += [reranked, replace(reranked, name=f"{reranked.name}, blended", blend=0.5)]
    return Plan(tuple(retrievers), tuple(rerankers), tuple(systems))


def _spec(kind: type[T], row: Mapping[str, Any], path: Path) -> T:
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if set(row) - known:
        raise ConfigurationError(f"{path}: {sorted(set(row) - known)} is not known in {dict(row)}: {sorted(known)} are")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})
    except TypeError as exc:
        raise ConfigurationError(f"{path}: {dict(row)}: {exc}") from exc
