"""The gate, and that it can fail: for both families, a served model with one fault must not pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from triton_rerank_export import parity
from triton_rerank_export.checkpoint import read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.pipeline import run_parity, served_model

FAMILIES = ("tiny-bert", "tiny-xlmr")


def report(**changes: float) -> parity.ParityReport:
    values = {"max_logit_difference": 0.0, "kendall_tau": 1.0, "top1_kept": 1.0} | changes
    return parity.ParityReport(pairs=4, worst=("a pair",), canary=parity.ParityQuery("q", ("a", "b")), **values)


def test_tau_is_1_for_the_same_order_and_minus_1_for_the_reverse() -> None:
    up = np.array([1, 2, 3, 4], np.float32)
    assert parity.kendall_tau(up, up * 7) == 1.0
    assert parity.kendall_tau(up, -up) == -1.0
    assert parity.kendall_tau(up, np.array([2, 1, 3, 4], np.float32)) == pytest.approx(4 / 6)


def test_pairs_that_the_reference_ties_do_not_count() -> None:
    assert parity.kendall_tau(np.array([1, 1, 2], np.float32), np.array([5, 3, 9], np.float32)) == 1.0


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"max_logit_difference": 2e-4}, "largest logit difference is 0.0002, the bound is at most 0.0001"),
        ({"max_logit_difference": float("nan")}, "largest logit difference is nan"),
        ({"kendall_tau": 0.5}, "Kendall's tau is 0.5, the bound is at least 0.99"),
        ({"top1_kept": 0.9}, "same best document is 0.9, the bound is at least 1"),
    ],
)
def test_a_bound_that_is_not_kept_is_named_with_the_worst_pairs(changes: dict[str, float], fragment: str) -> None:
    with pytest.raises(ExportError) as error:
        parity.check(report(**changes), "fp32")
    assert fragment in str(error.value)
    assert "a pair" in str(error.value)


def test_a_report_within_the_bounds_passes() -> None:
    assert report().misses(parity.BOUNDS["fp32"]) == []
    assert report(max_logit_difference=0.3, kendall_tau=0.95).misses(parity.BOUNDS["int8"]) == []


def test_the_parity_set_has_what_real_traffic_has() -> None:
    queries = parity.load_parity_set()
    documents = [document for query in queries for document in query.documents]
    assert len(documents) >= 120
    assert "" in documents
    assert max(len(document.split()) for document in documents) > 512
    assert max(len(query.query.split()) for query in queries) > 512
    assert any("東京" in document for document in documents)
    assert any("🍣" in document for document in documents)
    assert all(len(set(query.documents)) < len(query.documents) for query in queries)  # repeated documents


def edit_graph(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def scale_a_layer(model: onnx.ModelProto) -> None:
    """As if a layer had been dropped: one of its output matrices becomes zero."""
    matrices = [t for t in model.graph.initializer if list(t.dims) == [64, 32]]
    matrices[-1].CopyFrom(numpy_helper.from_array(np.zeros((64, 32), np.float32), matrices[-1].name))


def drop_layer(repository: Path, name: str) -> None:
    edit_graph(repository / f"{name}-encoder" / "1" / "model.onnx", scale_a_layer)


def other_tokenizer(repository: Path, name: str) -> None:
    other = FAMILIES[1 - FAMILIES.index(name)]
    target = repository / f"{name}-tokenizer" / "1" / "tokenizer.json"
    shutil.copyfile(repository / f"{other}-tokenizer" / "1" / "tokenizer.json", target)


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


def gate(checkpoint_folder: Path, repository: Path, name: str) -> None:
    checkpoint = read_checkpoint(checkpoint_folder, name=name, source="s")
    served = served_model(checkpoint, "fp32")
    parity.check(run_parity(checkpoint, repository, served, lambda _: None), "fp32")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gate_passes_what_was_exported(checkpoints: dict[str, Path], repository: Path, name: str) -> None:
    gate(checkpoints[name], repository, name)


@pytest.mark.parametrize("damage", [drop_layer, other_tokenizer])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gate_catches_a_wrong_graph_or_tokenizer(
    checkpoints: dict[str, Path], repository: Path, name: str, damage: Callable[[Path, str], None]
) -> None:
    damage(repository, name)
    with pytest.raises(ExportError, match="does not agree with PyTorch|does not take its tokenizer's tokens"):
        gate(checkpoints[name], repository, name)


def test_the_gate_catches_swapped_segment_ids(
    checkpoints: dict[str, Path], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton_rerank_server.backends.tokenizer import pairs

    read = pairs.read_template

    def swapped(tokenizer: object) -> pairs.Template:
        template = read(tokenizer)
        return pairs.Template(template.prefix, template.middle, template.suffix, (1, 1, 1, 0, 0))

    monkeypatch.setattr(pairs, "read_template", swapped)
    with pytest.raises(ExportError, match="does not agree with PyTorch"):
        gate(checkpoints["tiny-bert"], repository, "tiny-bert")
