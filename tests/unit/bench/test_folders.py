"""The folders that peers load: what is copied of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_rerank_bench.compare.catalogue import ONNX_FILES, PLAIN
from triton_rerank_bench.compare.folders import ModelFolders
from triton_rerank_bench.errors import PeerError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "ettin"
    modules = ("1_Pooling/config.json", "2_Dense/config.json")
    for name in ("config.json", "tokenizer_config.json", "modules.json", *modules):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    (folder / "onnx").mkdir()  # no module
    (folder / "onnx" / "model.onnx").write_bytes(b"another's export")
    return folder


def folders(checkpoint: Path, tmp_path: Path) -> ModelFolders:
    return ModelFolders(checkpoint, tmp_path / "cache", tmp_path / "no", max_length=64, on_step=lambda _: None)


def test_modules_of_sentence_transformers_are_copied_with_their_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = folders(checkpoint, tmp_path).get(PLAIN)
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert (folder / "2_Dense" / "model.safetensors").read_bytes() == b"weights"
    assert not (folder / "onnx").exists()
    assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) == {"model_max_length": 64}


def test_a_module_whose_weights_change_makes_other_folders(checkpoint: Path, tmp_path: Path) -> None:
    before = folders(checkpoint, tmp_path).get(PLAIN)
    (checkpoint / "2_Dense" / "model.safetensors").write_bytes(b"others")
    assert folders(checkpoint, tmp_path).get(PLAIN) != before


def test_a_folder_that_needs_an_environment_which_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="make perf-peers"):
        folders(checkpoint, tmp_path).get(ONNX_FILES)
