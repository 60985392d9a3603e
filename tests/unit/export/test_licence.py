"""Weights whose licence restricts their use are exported only where it was accepted by its name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.checkpoints import read, refusal

from triton_rerank_export.checkpoint import resolve
from triton_rerank_export.checkpoint.catalogue import CATALOGUE, CatalogueEntry
from triton_rerank_export.checkpoint.licence import is_restricted
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))


def card(folder: Path, front_matter: str) -> None:
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n# A reranker\nlicense: mine\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("front_matter", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("tags: [x]\nlicense:\n- mit\n- cc-by-sa-4.0", "mit and cc-by-sa-4.0"),
        ("license: unknown", ""),
        ("language: de", ""),
    ],
)
def test_the_licence_of_a_folder_is_what_its_model_card_states(folder: Path, front_matter: str, licence: str) -> None:
    assert read(folder).licence == ""
    card(folder, front_matter)
    assert read(folder).licence == licence


@pytest.mark.parametrize(
    ("front_matter", "licence", "option"),
    [
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: cc-by-nd-4.0", "cc-by-nd-4.0", "cc-by-nd-4.0"),
        ("license: gemma", "gemma", "gemma"),
        ("license: other", "other", "other"),
        ("license: other\nlicense_name: NVIDIA Open Model", "NVIDIA Open Model", "'NVIDIA Open Model'"),
        ("license: [mit, cc-by-nc-sa-4.0]", "mit and cc-by-nc-sa-4.0", "'mit and cc-by-nc-sa-4.0'"),
        ("license: mit-non-commercial", "mit-non-commercial", "mit-non-commercial"),
    ],
)
def test_a_licence_that_restricts_use_must_be_accepted_by_its_name(
    folder: Path, front_matter: str, licence: str, option: str
) -> None:
    (folder / "model.safetensors").rename(folder / "kept")
    card(folder, front_matter)
    for other in (None, "MIT", ""):
        message = refusal(folder, accept_licence=other)
        assert f"its licence is {licence}, which restricts what" in message
        assert f"pass --accept-licence {option} if you keep to it" in message
    (folder / "kept").rename(folder / "model.safetensors")
    assert read(folder, accept_licence=licence.upper()).licence == licence


def test_a_card_that_cannot_be_read_is_named(folder: Path) -> None:
    card(folder, "license: [cc-by-nc-4.0")
    message = refusal(folder)
    assert "what README.md begins with is no YAML, and it may state a licence; correct it (ParserError" in message
    assert "\n" not in message


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))
def test_the_catalogue_names_restricted_licences_only_where_they_are(entry: CatalogueEntry) -> None:
    assert is_restricted(entry.licence) == (entry.licence not in ("Apache-2.0", "MIT"))


def test_a_catalogued_model_with_such_a_licence_is_refused_before_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(resolve, "fetch", lambda *asked_for, **_: asked.append(asked_for))
    entry = dataclasses.replace(CATALOGUE["ms-marco-minilm-l6-v2"], licence="CC-BY-NC-4.0")
    monkeypatch.setattr(resolve, "find", lambda model: entry)
    with pytest.raises(
        ExportError, match="MiniLM-L6-v2: its licence is CC-BY-NC-4.0, .* --accept-licence CC-BY-NC-4.0"
    ):
        resolve.resolve("any", tmp_path)
    assert asked == []


def test_an_accepted_licence_stands_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    card(folder, "license: cc-by-nc-4.0")
    options = ExportOptions(precision="fp32", accept_licence="CC-BY-NC-4.0")
    with pytest.MonkeyPatch.context() as patch:
        few = parity.load_parity_set()[:2]
        patch.setattr(parity, "load_parity_set", lambda: few)
        manifest = export_model(str(folder), tmp_path / "r", options, on_step=lambda _: None).manifest
    assert manifest.model.licence == "cc-by-nc-4.0"
    assert manifest.notes[0].startswith("The licence of the weights is cc-by-nc-4.0, accepted with --accept-licence")
