"""The models that callers may ask for: public names, aliases, and the client behind each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_rerank import AsyncRerankClient, ConfigurationError, RerankError, Scorer
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.models import scorers
from triton_rerank_gateway.settings import Settings

_log = logging.getLogger("triton_rerank_gateway")
DEFAULT_MAX_LENGTH = 512  # where a scorer does not say
_TABLE = {"name", "aliases", "scorer", "canary", "max_length", "takes_instruction"}
# What frameworks and applications send when nobody told them otherwise.
KNOWN_NAMES = (
    "rerank-v3.5",
    "rerank-v4.0-fast",
    "rerank-v4.0-pro",
    "rerank-english-v3.0",
    "rerank-multilingual-v3.0",
    "rerank-english-v2.0",
    "rerank-multilingual-v2.0",
    "jina-reranker-v1-base-en",
    "jina-reranker-v2-base-multilingual",
    "jina-reranker-v3",
    "rerank-2",
    "rerank-2-lite",
    "rerank-2.5",
    "rerank-2.5-lite",
    "rerank-lite-1",
    "default/not-specified",
    "default",
)


@dataclass(frozen=True, slots=True)
class Canary:
    """A query with a better and a worse document: a model that orders them wrongly is not ready."""

    query: str = "how do I make a file smaller?"
    better: str = "gzip shrinks files, so that they take less room."
    worse: str = "A file cabinet with four drawers."


@dataclass
class Model:
    """One public model.

    Attributes:
        name: public.
        client: asks its scorer.
        aliases: further names.
        canary: None for one that needs only be answered.
        max_length: longest pair in tokens, as far as is known; for estimates.
        prompt_tokens: that a prompt of the model takes of it.
        takes_instruction: the prompt has a place for one; None until that is known. What was given is kept of a
            scorer that cannot be asked.
        version: that answered last, "" if that is not known.
        proved_s: monotonic seconds when the canary was last ordered rightly, 0 if never.
        unready: why it is not ready.
    """

    name: str
    client: AsyncRerankClient
    aliases: tuple[str, ...] = ()
    canary: Canary | None = field(default_factory=Canary)
    max_length: int = DEFAULT_MAX_LENGTH
    prompt_tokens: int = 0
    takes_instruction: bool | None = None
    version: str = ""
    proved_s: float = 0.0
    unready: str = "no canary was sent yet"

    async def prove(self, timeout_s: float) -> None:
        """Send the canary the way that requests go, and note what came."""
        canary = self.canary or Canary()
        try:
            result = await self.client.rerank(canary.query, [canary.worse, canary.better], timeout_s=timeout_s)
        except RerankError as exc:
            self.unready = type(exc).__name__
            _log.warning("the canary failed", extra={"model": self.name, "error": str(exc)})
            return
        self.version = result.model_version
        if result[0].score is None:
            self.unready = "no model scored the canary"
        elif self.canary is not None and result[0].index != 1:
            self.unready = "the canary was ordered wrongly"
        else:
            self.proved_s, self.unready = time.monotonic(), ""

    def is_ready(self, max_age_s: float) -> bool:
        """Was a canary good of late?"""
        return self.proved_s > 0 and time.monotonic() - self.proved_s <= max_age_s

    def state(self, max_age_s: float) -> str:
        """Is it ready, or why not."""
        return "ready" if self.is_ready(max_age_s) else self.unready or "the last good canary is too old"

    async def read_limits(self, timeout_s: float) -> None:
        """Learn ``max_length`` and what there is of a prompt, if the scorer is one model and can be asked."""
        try:
            info = await self.client.model_info(timeout_s=timeout_s)
            self.max_length, self.prompt_tokens = info.max_length, info.prompt_tokens
            self.takes_instruction = info.takes_instruction
        except ConfigurationError as exc:  # a chain, a hosted model
            self.takes_instruction = bool(self.takes_instruction)
            _log.debug("no model_info", extra={"model": self.name, "error": str(exc)})
        except RerankError as exc:
            _log.debug("no model_info", extra={"model": self.name, "error": str(exc)})


class Models:
    """All models, found by any of their names.

    Args:
        models: the first is the default unless told otherwise.
        default: name of the model for requests that name none.
        known_names: names that frameworks have built in mean the default model.

    Raises:
        ConfigurationError: none, two of one name, or a default that is none of them.
    """

    def __init__(self, models: Sequence[Model], *, default: str | None = None, known_names: bool = True) -> None:
        if not models:
            raise ConfigurationError("no model: give --model NAME (and --target), or [[models]] in the file")
        self.all = tuple(models)
        self._by_name: dict[str, Model] = {}
        for model in self.all:
            for name in (model.name, *model.aliases):
                if name in self._by_name:
                    raise ConfigurationError(f"two models have the name {name!r}; names and aliases must differ")
                self._by_name[name] = model
        self.default = self._by_name.get(default or self.all[0].name)
        if self.default is None:
            raise ConfigurationError(f"default_model is {default!r}: it is none of {', '.join(self._by_name)}")
        if known_names:
            self._by_name = {**dict.fromkeys(KNOWN_NAMES, self.default), **self._by_name}

    def find(self, name: str | None) -> Model:
        """The model of that name; of LiteLLM's, which writes '.' for '_'; the default for none.

        Raises:
            GatewayError: there is none.
        """
        if not name:
            assert self.default is not None
            return self.default
        found = self._by_name.get(name) or self._by_name.get(name.rpartition("/")[2])
        if found is None and "." in name:
            found = next((model for each, model in self._by_name.items() if each.replace("_", ".") == name), None)
        if found is None:
            raise GatewayError("unknown_model", f"model {name!r:.80} is not served here; see /v1/models")
        return found

    def is_ready(self, max_age_s: float) -> bool:
        """Are all?"""
        return all(model.is_ready(max_age_s) for model in self.all)

    async def watch(self, interval_s: float, timeout_s: float) -> None:
        """Send canaries until cancelled."""
        while True:
            await asyncio.gather(*(self._look_at(model, timeout_s) for model in self.all))
            await asyncio.sleep(interval_s)

    async def _look_at(self, model: Model, timeout_s: float) -> None:
        version = model.version
        await model.prove(timeout_s)
        if model.version != version or (model.proved_s and model.takes_instruction is None):
            await model.read_limits(timeout_s)

    async def aclose(self) -> None:
        """Close every client."""
        await asyncio.gather(*(model.client.aclose() for model in self.all), return_exceptions=True)


def from_settings(settings: Settings) -> Models:
    """The models of ``--model`` and of the file's ``[[models]]``.

    Raises:
        ConfigurationError: a table is not what it must be.
    """
    tables = [{"name": name} for name in settings.model] + [dict(table) for table in settings.models]
    names = {str(table.get("name")) for table in tables}
    aliases: dict[str, list[str]] = {}
    for entry in settings.alias:
        alias, _, name = entry.partition("=")
        if not alias or name not in names:
            raise ConfigurationError(f"alias {entry!r:.80}: it must be ALIAS=MODEL, of {', '.join(sorted(names))}")
        aliases.setdefault(name, []).append(alias)
    models = [_model(table, settings, aliases.get(str(table.get("name")), [])) for table in tables]
    return Models(models, default=settings.default_model, known_names=settings.known_names)


def _model(table: Mapping[str, Any], settings: Settings, aliases: Sequence[str]) -> Model:
    name = table.get("name")
    unknown = set(table) - _TABLE
    if not isinstance(name, str) or not name or unknown:
        what = f"{sorted(unknown)[0]!r} is no field" if unknown else "it has no name"
        raise ConfigurationError(f"a table [[models]]: {what}; fields are {', '.join(sorted(_TABLE))}")
    told = table.get("takes_instruction")
    if not isinstance(told, bool | None):
        raise ConfigurationError(f"model {name!r}: takes_instruction must be true or false")
    scorer: Scorer = scorers.build(table.get("scorer", {"type": "triton", "model": name}), target=settings.target)
    return Model(
        name,
        AsyncRerankClient(scorer=scorer, timeout_s=settings.timeout_s),
        (*table.get("aliases", ()), *aliases),
        _canary(name, table.get("canary", {})),
        table.get("max_length", DEFAULT_MAX_LENGTH),
        takes_instruction=told,
    )


def _canary(name: str, table: object) -> Canary | None:
    if table is False:
        return None
    try:
        return Canary(**table)  # type: ignore[arg-type]
    except TypeError as exc:
        raise ConfigurationError(f"model {name!r}: canary must have query, better and worse, or be false") from exc
