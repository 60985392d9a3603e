"""Who may ask: keys by their hashes, what each may do, and how fast."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.settings import Settings, read_file

_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FIELDS = {"name", "hash", "models", "priority", "pairs_per_s", "burst"}


@dataclass(frozen=True, slots=True)
class Key:
    """What one key may do.

    Attributes:
        name: in logs and metrics; never the key itself.
        digest: SHA-256 of the key, 32 bytes; empty for callers without one.
        models: public names that it may use; empty means all.
        priority: each step halves its share of a busy gateway; 0 is the largest share.
        pairs_per_s: pairs a second in the long run, None for no bound.
        burst: pairs at once, after a pause.
    """

    name: str
    digest: bytes = b""
    models: tuple[str, ...] = ()
    priority: int = 0
    pairs_per_s: float | None = None
    burst: int = 0

    @property
    def weight(self) -> float:
        """Share of a busy gateway, beside those of other keys."""
        return float(2.0**-self.priority)

    def may_use(self, model: str) -> bool:
        """Is the model among those of the key?"""
        return not self.models or model in self.models


ANONYMOUS = Key("anonymous")


class Keys:
    """All keys.

    Args:
        keys: none means that everybody may ask.

    Raises:
        ConfigurationError: two keys of one name.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        names = [key.name for key in keys]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"keys have the names {names}: each needs its own")
        self.all = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self.all)

    def check(self, authorization: str | None) -> Key:
        """The key of an Authorization header: ``Bearer KEY``, or the bare key, which some clients send.

        Raises:
            GatewayError: no key, or one that is not known. All are compared, each in constant time.
        """
        if not self.all:
            return ANONYMOUS
        scheme, _, rest = (authorization or "").strip().partition(" ")
        secret = rest.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
        digest = hashlib.sha256(secret.encode()).digest()
        found = [key for key in self.all if hmac.compare_digest(key.digest, digest)]
        if not secret or not found:
            what = "the key is not known here" if secret else "no key was sent"
            raise GatewayError("unauthorized", f"{what}; send the header Authorization: Bearer KEY")
        return found[0]


def read_key(table: Mapping[str, Any]) -> Key:
    """A key from its table in the configuration.

    Raises:
        ConfigurationError: a field is unknown, absent, or not what it must be.
    """
    unknown = set(table) - _FIELDS
    if unknown:
        raise ConfigurationError(f"a key has {sorted(unknown)[0]!r}: known are {', '.join(sorted(_FIELDS))}")
    name, digest = str(table.get("name", "")), _HASH.fullmatch(str(table.get("hash", "")).lower())
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"a key has the name {name!r:.80}: it must be letters, digits, '_', '.' and '-'")
    if digest is None:
        raise ConfigurationError(f"key {name!r}: its hash must be sha256:… in 64 hex digits; see --new-key")
    rate = table.get("pairs_per_s")
    return Key(
        name,
        bytes.fromhex(digest[1]),
        tuple(map(str, table.get("models", ()))),
        int(_number(name, "priority", table.get("priority", 0), least=0)),
        None if rate is None else _number(name, "pairs_per_s", rate, least=1e-3),
        int(_number(name, "burst", table.get("burst", math.ceil(rate) if rate else 0), least=0)),
    )


def read_keys(settings: Settings) -> Keys:
    """Keys of ``--key``, of the file, and of ``keys_file``.

    Raises:
        ConfigurationError: one is not what it must be, or there is none and the address is not loopback.
    """
    flags = [dict(zip(("name", "hash"), entry.partition("=")[::2], strict=True)) for entry in settings.key]
    filed = read_file(Path(settings.keys_file)).get("keys", ()) if settings.keys_file else ()
    return Keys([read_key(table) for table in (*flags, *settings.keys, *filed)] if settings.auth else [])


def new_key(name: str) -> tuple[str, str]:
    """A key for a caller, and the lines of TOML that admit it."""
    secret = f"trk-{secrets.token_urlsafe(32)}"
    return secret, f'[[keys]]\nname = "{name}"\nhash = "sha256:{hashlib.sha256(secret.encode()).hexdigest()}"'


def _number(name: str, field: str, value: object, *, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e9:
        raise ConfigurationError(f"key {name!r}: {field} is {value!r:.80}: it must be a number from {least:g}")
    return float(value)


class Rates:
    """Pairs a second of each key that has a bound: a bucket that fills at its rate, up to its burst.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # name -> pairs that are left, when that was

    def take(self, key: Key, pairs: int) -> None:
        """Count a request.

        Raises:
            GatewayError: too many pairs for now (when to come again), or for ever.
        """
        if key.pairs_per_s is None:
            return
        if pairs > key.burst:
            raise GatewayError("too_large", f"{pairs} pairs: this key may send {key.burst} at once; send fewer")
        now = self._clock()
        left, then = self._left.get(key.name, (float(key.burst), now))
        left = min(float(key.burst), left + (now - then) * key.pairs_per_s)
        if pairs > left:
            after = max(1, math.ceil((pairs - left) / key.pairs_per_s))
            bound = f"{key.pairs_per_s:g} pairs a second"
            raise GatewayError("overloaded", f"this key may send {bound}; come again in {after} s", retry_after_s=after)
        self._left[key.name] = (left - pairs, now)
