"""The one reader of a model repository: what it finds in a real export, and what it says of what is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from triton_rerank import ConfigurationError
from triton_rerank.repository import (
    active_version,
    exported_models,
    manifest_files,
    read_artefacts,
    read_config,
    version_folders,
)
from triton_rerank_export.repository.store import activate

NAME = "tiny-bert"


@pytest.fixture
def copy(two_versions: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_versions, tmp_path / "Modelle für (alle)"))


def test_all_files_are_those_of_the_active_version(copy: Path) -> None:
    for version in (2, 1):
        activate(copy, NAME, version)
        model = read_artefacts(copy, NAME)
        assert active_version(copy, NAME) == version
        assert model.info.version == str(version)
        assert model.tokenizer_file == copy / f"{NAME}-tokenizer" / str(version) / "tokenizer.json"
        assert model.encoder_file == copy / f"{NAME}-encoder" / str(version) / "model.onnx"


def test_folders_that_no_export_wrote_are_no_models_and_no_versions(copy: Path) -> None:
    for name in ("lost+found", ".git", ".ipynb_checkpoints", "another-model/1", f"{NAME}/old", f"{NAME}/7"):
        (copy / name).mkdir(parents=True)
    (copy / "README").touch()
    assert exported_models(copy) == [NAME, "tiny-xlmr"]
    assert list(version_folders(copy, NAME)) == [1, 2, 7]
    assert list(manifest_files(copy, NAME)) == [1, 2]


def test_versions_are_counted_as_numbers(tmp_path: Path) -> None:
    for version in (10, 9, 2):
        (tmp_path / NAME / str(version)).mkdir(parents=True)
    assert list(version_folders(tmp_path, NAME)) == [2, 9, 10]


def test_a_config_without_a_name_has_its_folders_name_as_in_triton(copy: Path) -> None:
    path = copy / NAME / "config.pbtxt"
    path.write_text(path.read_text().replace(f'name: "{NAME}"\n', "", 1))
    assert read_config(copy, NAME).name == NAME


def test_a_config_that_is_no_text_is_named(copy: Path) -> None:
    (copy / NAME / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"tiny-bert/config\.pbtxt: not a model config .*export the model"):
        active_version(copy, NAME)
