"""Every option: a flag, an environment variable and a line of TOML, from one table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT = "TRITON_RERANK_GATEWAY_"
_TABLES = ("models", "keys")  # lists of tables; only a file has them
_SECRETS = ("hash", "api_key", "headers")
_HIDDEN = "(hidden)"


def option(default: Any, help_text: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A field of `Settings` with what the command line says of it.

    Args:
        default: its type is the option's; None means a string or nothing, a tuple means a list of strings.
        help_text: one line.
        least: of a number.
        most: of a number.
    """
    return field(default=default, metadata={"help": help_text, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force. Times are seconds, sizes bytes; tables of models and keys come from the file."""

    address: str = option("127.0.0.1", "address to bind; others than loopback want keys, or --no-auth")
    port: int = option(8080, "port to bind; 0 takes a free one", least=0, most=65535)
    target: str = option("127.0.0.1:8001", "Triton's gRPC endpoint for --model; several with commas between")
    model: tuple[str, ...] = option((), "model on that Triton; again for more")
    alias: tuple[str, ...] = option((), "ALIAS=MODEL: another name for a model; again for more")
    known_names: bool = option(True, "names that frameworks have built in (rerank-v3.5 …) mean the default model")
    default_model: str | None = option(None, "model for requests that name none; the first one otherwise")
    timeout_s: float = option(10.0, "of a request that brings no timeout of its own", least=0.001, most=86400)
    max_timeout_s: float = option(60.0, "longest timeout that a request may ask for", least=0.001, most=86400)
    max_wait_s: float = option(4.0, "a request that waited so long for its turn is refused", least=0.001, most=86400)
    max_documents: int = option(2048, "documents of a request", least=1, most=1_000_000)
    max_body_bytes: int = option(16 * 1024 * 1024, "of a request", least=1, most=2**31 - 1)
    max_bodies_bytes: int = option(2**30, "of all requests under way; more are told 429", least=1, most=2**40)
    max_header_bytes: int = option(32 * 1024, "of a request", least=1024, most=2**31 - 1)
    max_connections: int = option(1024, "open at a time; more are told 503 and closed", least=1, most=2**31 - 1)
    head_timeout_s: float = option(10.0, "until headers, and TLS's handshake, must have come", least=0.001, most=86400)
    body_timeout_s: float = option(20.0, "until a request's body must have come", least=0.001, most=86400)
    send_timeout_s: float = option(
        20.0, "a caller that took nothing of its answer for so long is gone", least=0.001, most=86400
    )
    keep_alive_s: int = option(75, "that a connection without requests stays open", least=1, most=86400)
    drain_s: int = option(30, "that running requests get when the gateway is told to stop", least=0, most=86400)
    pairs_in_flight: int = option(2048, "pairs that are scored at a time", least=1, most=2**31 - 1)
    tokens_in_flight: int = option(524_288, "estimated tokens of those", least=1, most=2**40)
    pairs_waiting: int = option(8192, "pairs that wait for their turn; more are told 429", least=1, most=2**31 - 1)
    tokens_waiting: int = option(2_097_152, "estimated tokens of those", least=1, most=2**40)
    auth: bool = option(True, "without: anybody who reaches the address may ask")
    key: tuple[str, ...] = option((), "NAME=sha256:HASH of a key that may ask; again for more")
    keys_file: str | None = option(None, "TOML file with [[keys]]: name, hash, models, priority, pairs_per_s, burst")
    open_metrics: bool = option(False, "/metrics without a key")
    cors_origin: tuple[str, ...] = option((), "origin whose pages may ask; again for more")
    canary_interval_s: float = option(5.0, "between two canaries of a model", least=0.01, most=86400)
    canary_max_age_s: float = option(
        20.0, "a model without a good one for so long is not ready", least=0.01, most=86400
    )
    tls_certificate: str | None = option(None, "PEM file; with --tls-key, serves HTTPS")
    tls_key: str | None = option(None, "PEM file")
    otlp_endpoint: str | None = option(None, "where traces go, http://host:4318/v1/traces; needs the extra [otel]")
    log_level: str = option("info", "debug, info, warning or error")
    models: tuple[Mapping[str, Any], ...] = ()
    keys: tuple[Mapping[str, Any], ...] = ()


def load(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """Read flags, then environment variables, then the file; what stands first holds.

    Returns:
        ``settings``, and the flags that are no option: ``print_config``, ``new_key``.

    Raises:
        ConfigurationError: an option is unknown, or not what it must be.
        SystemExit: argparse's, for flags.
    """
    flags = parser().parse_args(arguments)
    path = flags.config or environment.get(f"{ENVIRONMENT}CONFIG")
    filed = read_file(Path(path)) if path else {}
    settings = Settings()
    for each in _options():
        found = getattr(flags, each.name)
        variable = f"{ENVIRONMENT}{each.name.upper()}"
        if found is None and variable in environment:
            found = _parsed(each, environment[variable], variable)
        if found is None and each.name in filed:
            found = filed[each.name]
        if found is not None:
            settings = replace(settings, **{each.name: _checked(each, found)})
    flags.settings = replace(settings, models=tuple(filed.get("models", ())), keys=tuple(filed.get("keys", ())))
    return flags


def read_file(path: Path) -> dict[str, Any]:
    """Options and tables of a TOML file.

    Raises:
        ConfigurationError: no such file, no TOML, or an unknown name in it.
    """
    try:
        filed: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigurationError(f"{path}: the configuration cannot be read ({exc})") from exc
    known = [each.name for each in _options()]
    for name, value in filed.items():
        if name not in known and name not in _TABLES:
            raise ConfigurationError(f"{path}: {name!r} is no option; known are {', '.join([*known, *_TABLES])}")
        if name in _TABLES and not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
            raise ConfigurationError(f"{path}: {name} must be tables: [[{name}]]")
    return filed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="triton-rerank-gateway",
        description="HTTP in front of served rerankers: Cohere, Jina, Voyage, TEI, Infinity, vLLM, Xinference, NIM.",
        epilog=f"Each option is also an environment variable, {ENVIRONMENT}PORT for --port (lists with spaces "
        "between), and a line of the TOML file, port = 8080. A flag beats a variable, a variable the file.",
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {version('triton-rerank-gateway')}")
    made.add_argument("--config", help="TOML file")
    made.add_argument("--print-config", action="store_true", help="show what is in force, secrets hidden, and end")
    made.add_argument("--new-key", metavar="NAME", help="make a key, show it and the lines that admit it, and end")
    for each in _options():
        flag = f"--{each.name.replace('_', '-')}"
        shown = _shown(each.default)
        help_text = each.metadata["help"] + (f" (default {shown})" if shown else "")
        if isinstance(each.default, bool):
            made.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        elif isinstance(each.default, tuple):
            made.add_argument(flag, action="append", metavar=each.name.upper(), help=help_text)
        else:
            made.add_argument(flag, type=_type(each), metavar=each.name.rsplit("_", 1)[-1].upper(), help=help_text)
    return made


def as_toml(settings: Settings) -> str:
    """What is in force, as a file that would bring it about; secrets are hidden."""
    lines = []
    for each in _options():
        value = getattr(settings, each.name)
        if each.name == "key":
            value = tuple(f"{entry.partition('=')[0]}={_HIDDEN}" for entry in value)
        lines.append(f"# {each.name} = " if value is None else f"{each.name} = {_toml(value)}")
    for name in _TABLES:
        for table in getattr(settings, name):
            lines += ["", f"[[{name}]]", *(f"{key} = {_toml(_open(key, value))}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _options() -> list[Field[Any]]:
    return [each for each in fields(Settings) if each.metadata]


def _type(each: Field[Any]) -> Callable[[str], Any]:
    return str if each.default is None else type(each.default)


def _parsed(each: Field[Any], text: str, variable: str) -> Any:
    if isinstance(each.default, bool):
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise ConfigurationError(f"{variable} is {text!r:.80}: it must be true or false")
        return words[text.lower()]
    if isinstance(each.default, tuple):
        return text.split()
    try:
        return _type(each)(text)
    except ValueError as exc:
        raise ConfigurationError(f"{variable} is {text!r:.80}: it must be a number") from exc


def _checked(each: Field[Any], value: Any) -> Any:
    if each.default is MISSING:
        return value
    if isinstance(each.default, tuple):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigurationError(f"{each.name} is {value!r:.80}: it must be a list of strings")
        return tuple(value)
    kind = _type(each)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ConfigurationError(f"{each.name} is {value!r:.80}: it must be of type {kind.__name__}")
    least, most = each.metadata["least"], each.metadata["most"]
    if least is not None and not least <= value <= most:
        raise ConfigurationError(f"{each.name} is {value!r:.80}: it must be from {least} to {most}")
    return value


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default in (None, ()) else str(default)


def _open(name: str, value: Any) -> Any:
    """A value without the secrets in it."""
    if name in _SECRETS:
        return _HIDDEN
    if isinstance(value, Mapping):
        return {key: _open(key, inner) for key, inner in value.items()}
    return [_open(name, entry) for entry in value] if isinstance(value, list) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
