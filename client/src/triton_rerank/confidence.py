"""High, medium or low: bands of a model's scores, by thresholds that the caller gives or a calibration file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.core.numbers import real, show
from triton_rerank.errors import ConfigurationError
from triton_rerank.types import Confidence

_BOUNDS = ("medium", "high")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the bands of one model begin, on the scale of its scores (after its activation).

    Attributes:
        high: lowest score of the high band.
        medium: lowest score of the medium band; what is below is low.

    Raises:
        ConfigurationError: not finite numbers, or ``high`` is not above ``medium``.
    """

    high: float
    medium: float

    def __post_init__(self) -> None:
        for name in _BOUNDS:
            number = real(name, getattr(self, name), must="a finite number, a score of the model")
            object.__setattr__(self, name, number)
        if self.high <= self.medium:
            raise ConfigurationError(
                f"high is {show(self.high)} and medium is {show(self.medium)}: high must be above medium"
            )


class ConfidenceBands:
    """Names the band of a score. Thresholds hold for one model only: another model's scale is another.

    Args:
        thresholds: model name -> where its bands begin.
    """

    def __init__(self, thresholds: Mapping[str, Thresholds]) -> None:
        self._thresholds = dict(thresholds)

    @classmethod
    def from_file(cls, path: str | Path) -> ConfidenceBands:
        """Read a calibration file: ``{"bge-reranker-base": {"high": 0.8, "medium": 0.4}}``, more models likewise.

        Args:
            path: a JSON file in UTF-8.

        Raises:
            ConfigurationError: no such file, no JSON, or a key or value that is not as above; the message names it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
            if not isinstance(content, dict):
                raise ConfigurationError(f"{show(content)}: it must be an object of model names")
            return cls({model: _thresholds(model, value) for model, value in content.items()})
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        except ConfigurationError as exc:
            raise ConfigurationError(f"{path}: {exc}") from exc
        except (ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{path} is not JSON in UTF-8: {exc}") from exc

    def band(self, model: str, score: float | None) -> Confidence | None:
        """Band of a score.

        Args:
            model: the model that gave it.
            score: after the model's activation; None if it gave none.

        Returns:
            None without a score, or without thresholds of that model (a fallback's, for instance).
        """
        thresholds = self._thresholds.get(model)
        if thresholds is None or score is None:
            return None
        if score >= thresholds.high:
            return "high"
        return "medium" if score >= thresholds.medium else "low"


def _thresholds(model: str, value: object) -> Thresholds:
    if not isinstance(value, dict) or set(value) != set(_BOUNDS):
        raise ConfigurationError(f"{show(model)} has {show(value)}: it must have the keys high and medium, no others")
    try:
        return Thresholds(**value)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{show(model)}: {exc}") from exc


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, unless a key stands twice in it: the second would win unseen."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigurationError(f"the key {show(twice)} stands twice in one object; leave one of them out")
    return content
