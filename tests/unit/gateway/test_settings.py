"""Every option by flag, variable and file; what is in force, shown without secrets; the models that come of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.tls import Authority

from triton_rerank import CachedScorer, CascadeScorer, ConfigurationError, FallbackScorer
from triton_rerank_gateway import settings as options
from triton_rerank_gateway.admission.keys import Keys, read_keys
from triton_rerank_gateway.cli import main
from triton_rerank_gateway.failures import GatewayError
from triton_rerank_gateway.http.serving import check_closed
from triton_rerank_gateway.models.models import from_settings
from triton_rerank_gateway.settings import ENVIRONMENT, Settings

OPTIONS = [each for each in dataclasses.fields(Settings) if each.metadata]
HASH = "a" * 64
FILE = f"""
port = 9000
default_model = "chain"
alias = ["old=heavy"]

[[models]]
name = "heavy"
aliases = ["BAAI/heavy_model"]
scorer = {{ type = "triton", model = "heavy", target = "10.0.0.5:8001", headers = {{ x-key = "s3cret" }} }}
canary = false

[[models]]
name = "chain"
[models.canary]
query = "q"
better = "q q"
worse = "w"
[models.scorer]
type = "fallback"
attempt_share = 0.4
[[models.scorer.scorers]]
type = "cascade"
light = {{ model = "light" }}
heavy = {{ type = "cache", scorer = {{ model = "heavy" }}, max_pairs = 10 }}
keep = 5
[[models.scorer.scorers]]
type = "cohere"
model = "rerank-v3.5"
api_key = "s3cret"

[[keys]]
name = "team"
hash = "sha256:{HASH}"
models = ["chain"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    return path


def test_every_option_is_a_flag_a_variable_and_a_line_of_the_file(tmp_path: Path) -> None:
    for each in OPTIONS:
        value, text = _other(each)
        flag = f"--{each.name.replace('_', '-')}"
        flags = [f"--no-{each.name.replace('_', '-')}" if value is False else flag] + (
            [] if isinstance(value, bool) else [text]
        )
        path = tmp_path / "one.toml"
        path.write_text(f"{each.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
        by_flag = options.load(flags, {}).settings
        by_variable = options.load([], {f"{ENVIRONMENT}{each.name.upper()}": text}).settings
        by_file = options.load(["--config", str(path)], {}).settings
        assert {getattr(found, each.name) for found in (by_flag, by_variable, by_file)} == {value}, each.name


def _other(each: dataclasses.Field[object]) -> tuple[object, str]:
    """A value that is not the default, and how it is written in a flag."""
    if isinstance(each.default, bool):
        return not each.default, str(not each.default).lower()
    if isinstance(each.default, tuple):
        return ("one=1",), "one=1"
    if isinstance(each.default, int | float):
        value = type(each.default)(each.default * 2)
        return value, str(value)
    return "other", "other"


def test_a_flag_beats_a_variable_and_a_variable_the_file(path: Path) -> None:
    variables = {f"{ENVIRONMENT}PORT": "9001", f"{ENVIRONMENT}CONFIG": str(path)}
    assert options.load([], variables).settings.port == 9001
    assert options.load(["--port", "9002"], variables).settings.port == 9002
    assert options.load(["--config", str(path)], {}).settings.port == 9000


def test_what_is_printed_would_bring_about_the_same_and_hides_secrets(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(path), "--timeout-s", "3", "--key", f"other={HASH}", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "s3cret" not in printed and HASH not in printed
    again = tmp_path / "again.toml"
    again.write_text(printed)
    first, second = (
        options.load(["--config", str(path), "--timeout-s", "3"], {}).settings,
        options.load(["--config", str(again)], {}).settings,
    )
    assert [table["name"] for table in second.models] == ["heavy", "chain"]
    assert dataclasses.replace(first, models=(), keys=()) == dataclasses.replace(second, models=(), keys=(), key=())


def test_models_of_every_kind_come_of_the_file(path: Path) -> None:
    settings = options.load(["--config", str(path), "--model", "plain"], {}).settings
    models = from_settings(settings)
    assert [model.name for model in models.all] == ["plain", "heavy", "chain"]
    assert isinstance(models.find("chain").client.scorer, FallbackScorer)
    assert models.find("heavy").canary is None
    links = models.find("chain").client.scorer._models  # type: ignore[attr-defined]
    assert isinstance(links[0].scorer, CascadeScorer)
    assert isinstance(links[0].scorer._heavy, CachedScorer)
    assert links[1].name.startswith("cohere")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, "chain"),
        ("", "chain"),
        ("old", "heavy"),
        ("BAAI/heavy_model", "heavy"),
        ("BAAI/heavy.model", "heavy"),  # LiteLLM's NIM
        ("anybody/heavy", "heavy"),
        ("rerank-v3.5", "chain"),
        ("jina-reranker-v2-base-multilingual", "chain"),
        ("default/not-specified", "chain"),
    ],
)
def test_a_model_is_found_by_all_its_names(path: Path, asked: str | None, found: str) -> None:
    assert from_settings(options.load(["--config", str(path)], {}).settings).find(asked).name == found


def test_an_unknown_model_is_told_without_naming_others(path: Path) -> None:
    models = from_settings(options.load(["--config", str(path), "--no-known-names"], {}).settings)
    for name in ("nobody", "rerank-v3.5"):
        with pytest.raises(GatewayError) as raised:
            models.find(name)
        assert raised.value.kind == "unknown_model" and "chain" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 'x'", "port is 'x': it must be of type int"),
        ("port = 99999", "from 0 to 65535"),
        ("timeout_s = 0", "timeout_s is 0.0: it must be from"),
        ("colour = 1", "'colour' is no option"),
        ("model = 'one'", "list of strings"),
        ("models = 1", "must be tables"),
        ("port =", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        options.load(["--config", str(tmp_path / "a.toml")], {})


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "no model"),
        ([{"name": "a"}, {"name": "a"}], "two models have the name 'a'"),
        ([{"name": "a", "aliases": ["b"]}, {"name": "b"}], "two models"),
        ([{"scorer": {}}], "no name"),
        ([{"name": "a", "colour": 1}], "'colour' is no field"),
        ([{"name": "a", "canary": {"query": "q", "x": 1}}], "canary must have"),
        ([{"name": "a", "takes_instruction": "yes"}], "takes_instruction must be true or false"),
        ([{"name": "a", "scorer": {"type": "abacus"}}], "scorer type 'abacus' is none of"),
        ([{"name": "a", "scorer": {"type": "fallback"}}], "check its table"),
        (
            [{"name": "a", "scorer": {"type": "cascade", "light": {"model": "x"}, "heavy": {"model": "y"}, "x": 1}}],
            "check",
        ),
        ([{"name": "a", "scorer": {"model": "m", "target": "no port"}}], "not host:port"),
        ([{"name": "a", "scorer": {"type": "jina", "api_key_variable": "NOT_THERE"}}], "NOT_THERE"),
    ],
)
def test_models_that_cannot_be_are_refused(models: list[dict[str, object]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        from_settings(Settings(models=tuple(models)))


def test_an_address_that_others_can_reach_wants_a_key() -> None:
    with pytest.raises(ConfigurationError, match="--no-auth"):
        check_closed(Settings(address="0.0.0.0"), Keys([]))
    keys = read_keys(Settings(key=(f"a=sha256:{HASH}",)))
    check_closed(Settings(address="0.0.0.0"), keys)
    check_closed(Settings(address="0.0.0.0", auth=False), Keys([]))
    for address in ("127.0.0.1", "::1", "localhost"):
        check_closed(Settings(address=address), Keys([]))


def test_the_command_says_what_is_wrong_and_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", "0.0.0.0", "--model", "m"]) == 3
    assert "make one with --new-key" in capsys.readouterr().err
    assert main([]) == 3
    assert "no model" in capsys.readouterr().err


def test_keys_come_from_flags_the_file_and_a_file_of_their_own(path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(f'[[keys]]\nname = "third"\nhash = "{HASH}"\n')
    flags = ["--config", str(path), "--key", f"first=sha256:{HASH}", "--keys-file", str(tmp_path / "keys.toml")]
    assert [key.name for key in read_keys(options.load(flags, {}).settings).all] == ["first", "team", "third"]
    assert not read_keys(options.load([*flags, "--no-auth"], {}).settings)


def test_a_new_key_is_shown_once_with_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--new-key", "team"]) == 0
    assert "[[keys]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    "files", [("absent", "absent"), ("chain", None), (None, "key"), ("root", "key"), ("text", "text")]
)
def test_a_certificate_that_cannot_be_served_is_told_in_one_line(
    files: tuple[str | None, str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority.write(tmp_path / "tls", "localhost")
    (tmp_path / "text").write_text("no PEM")
    paths = {"chain": authority.server_chain, "key": authority.server_key, "root": authority.root}
    flags = ["--model", "m", "--port", "0"]
    for flag, file in zip(("--tls-certificate", "--tls-key"), files, strict=True):
        flags += [] if file is None else [flag, str(paths.get(file, tmp_path / file))]
    assert main(flags) == 3
    error = capsys.readouterr().err
    assert error.startswith("triton-rerank-gateway: tls_certificate is ") and error.count("\n") == 1
