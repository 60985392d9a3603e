"""A table of the configuration -> a scorer: Triton, local, hosted, and those around others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from triton_rerank import (
    CachedScorer,
    CascadeScorer,
    CohereScorer,
    ConfigurationError,
    FallbackScorer,
    JinaScorer,
    LocalScorer,
    Scorer,
    Tls,
    TritonOptions,
    TritonScorer,
    VoyageScorer,
)

Table = Mapping[str, Any]
_HOSTED = {"cohere": CohereScorer, "jina": JinaScorer, "voyage": VoyageScorer}


def build(table: Table, *, target: str) -> Scorer:
    """The scorer that a table means.

    Args:
        table: ``type`` and the arguments of that scorer under their own names; scorers inside are tables likewise.
        target: of Triton scorers that name none.

    Raises:
        ConfigurationError: an unknown type, or arguments that the scorer does not take.
    """
    kind = table.get("type", "triton")
    rest = {name: value for name, value in table.items() if name != "type"}
    if kind not in _BUILDERS:
        raise ConfigurationError(f"scorer type {kind!r:.80} is none of {', '.join(_BUILDERS)}")
    try:
        return _BUILDERS[kind](rest, target)
    except (TypeError, KeyError, AttributeError) as exc:
        raise ConfigurationError(f"scorer of type {kind!r}: {type(exc).__name__}: {exc}; check its table") from exc


def _triton(table: dict[str, Any], target: str) -> Scorer:
    model, where, name = table.pop("model"), table.pop("target", target), table.pop("name", None)
    tls = table.pop("tls", None)
    options = TritonOptions(tls=Tls(**tls) if tls else None, **table)
    return TritonScorer(where, model, name=name or f"triton:{model}", options=options)


def _hosted(kind: str) -> Callable[[dict[str, Any], str], Scorer]:
    def make(table: dict[str, Any], _: str) -> Scorer:
        """Make the scorer of a table, with the key from the variable that it names."""
        variable = table.pop("api_key_variable", None)
        if variable is not None:
            if variable not in os.environ:
                raise ConfigurationError(f"{variable}: api_key_variable names it, and it is not in the environment")
            table["api_key"] = os.environ[variable]
        return _HOSTED[kind](**table)

    return make


def _fallback(table: dict[str, Any], target: str) -> Scorer:
    return FallbackScorer([build(each, target=target) for each in table.pop("scorers")], **table)


def _cascade(table: dict[str, Any], target: str) -> Scorer:
    light, heavy = (build(table.pop(stage), target=target) for stage in ("light", "heavy"))
    return CascadeScorer(light, heavy, **table)


def _cache(table: dict[str, Any], target: str) -> Scorer:
    return CachedScorer(build(table.pop("scorer"), target=target), **table)  # type: ignore[arg-type]


_BUILDERS: Mapping[str, Callable[[dict[str, Any], str], Scorer]] = {
    "triton": _triton,
    "local": lambda table, _: LocalScorer(**table),
    "fallback": _fallback,
    "cascade": _cascade,
    "cache": _cache,
    **{kind: _hosted(kind) for kind in _HOSTED},
}
