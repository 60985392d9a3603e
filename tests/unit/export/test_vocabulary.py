"""A checkpoint of 2020: a vocabulary and no tokenizer.json, a pickle, two labels. From a folder, and by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hub import Hub, Machine, serve_hub
from support.tiny_families import write_tiny
from support.tiny_models import resize_positions

from triton_rerank_export.checkpoint.catalogue import CATALOGUE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model

ENTRY = CATALOGUE["bert-multilingual-passage-reranking-msmarco"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the names that MultiBERT has."""
    folder = resize_positions(write_tiny("BertForSequenceClassification", tmp_path / "old", labels=2), ENTRY.max_length)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words: dict[str, int] = tokenizer["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.__getitem__)))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "model.safetensors", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"special_tokens_map_file": null, "full_tokenizer_file": null}')
    return folder


def export(model: str, repository: Path, **options: object) -> parity.ParityReport:
    few = parity.load_parity_set()[:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "load_parity_set", lambda: few)
        chosen = ExportOptions(precision="fp32", **options)  # type: ignore[arg-type]
        return export_model(model, repository, chosen, on_step=lambda _: None).report


def test_a_vocabulary_becomes_the_tokenizer_that_is_served(folder: Path, tmp_path: Path) -> None:
    """Held against transformers' own reading of the folder, and sentence-transformers' scores of it."""
    there = sorted(path.name for path in folder.iterdir())
    report = export(str(folder), tmp_path / "r", label="1", allow_pickle=True)
    assert report.max_logit_difference < 1e-4
    assert report.peer_difference is not None and report.peer_difference < 1e-4
    assert (tmp_path / "r" / "old-tokenizer" / "1" / "tokenizer.json").is_file()
    assert sorted(path.name for path in folder.iterdir()) == there


def test_what_is_wrong_is_said_of_the_folder_itself(folder: Path, tmp_path: Path) -> None:
    """Its tokenizer.json lies in a folder of ours, which no message names."""
    with pytest.raises(ExportError) as error:
        export(str(folder), tmp_path / "r", label="1")
    assert str(error.value).startswith(f"{folder}: its weights are pytorch_model.bin, a pickle, ")
    with (folder / "vocab.txt").open("a") as file:
        file.write("onemore\n")
    with pytest.raises(ExportError) as error:
        export(str(folder), tmp_path / "r", label="1", allow_pickle=True)
    assert str(error.value).startswith(f"{folder}: tokenizer.json has the token 'onemore' with id ")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ExportError, match="no tokenizer.json; save the model to a folder, make one there with"):
        export(str(folder), tmp_path / "r", label="1", allow_pickle=True)


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with serve_hub(folder, hub_id=ENTRY.source, commit=ENTRY.revision) as running:
        yield running


def test_multibert_is_fetched_by_its_name_and_serves_its_second_label(hub: Hub, tmp_path: Path) -> None:
    machine = Machine.with_cache(tmp_path / "hf", hub)
    assert "its weights are pytorch_model.bin, a pickle" in machine.refusal(ENTRY.name)
    assert "pytorch_model.bin" not in hub.fetched()
    found = machine.resolve(ENTRY.name, allow_pickle=True)
    assert (found["revision"], found["one_of"]["index"], found["activation"]) == (ENTRY.revision, 1, "identity")
    assert {"vocab.txt", "pytorch_model.bin"} <= set(hub.fetched())
    hub.requests.clear()
    offline = Machine(machine.environment | {"HF_HUB_OFFLINE": "1"})
    assert offline.resolve(ENTRY.name, allow_pickle=True, label="0")["one_of"]["index"] == 0
    assert hub.requests == []
