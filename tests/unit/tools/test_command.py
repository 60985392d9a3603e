import json
from pathlib import Path

import pytest

from tools.demo_training import __main__ as command
from triton_rerank_export.finetune.config import FinetuneReport, Quality
from triton_rerank_export.finetune.data import Group


def _demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, better: bool) -> Path:
    """Run the demo-model command with the corpus, the training and the measuring replaced."""
    packaged = tmp_path / "packaged" / "delta.safetensors"
    packaged.parent.mkdir()
    packaged.write_bytes(b"present")
    present, new = Quality(0.5, 0.7, 10), Quality(0.5, 0.8 if better else 0.6, 10)
    report = FinetuneReport(1, 8, 1.0, present, new)
    trial = command._Trial(b"new", report, present, new)
    monkeypatch.setattr(command, "PACKAGED_DELTA", packaged)
    monkeypatch.setattr(command, "body_path", lambda: tmp_path)
    monkeypatch.setattr(command, "build", lambda *_: [Group("q", ("p", "n"), 1)])
    monkeypatch.setattr(command, "_train_delta", lambda *_: trial)
    assert command.main(["--steps", "1", *arguments]) == 0
    return packaged


def test_the_packaged_delta_is_replaced_by_one_that_is_no_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = _demo_model(tmp_path, monkeypatch, better=True)
    assert packaged.read_bytes() == b"new"
    assert json.loads((packaged.parent / "training.json").read_text())["new"]["pairwise_accuracy"] == 0.8


def test_the_packaged_delta_is_kept_when_the_new_one_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _demo_model(tmp_path, monkeypatch, better=False).read_bytes() == b"present"
    assert "the present delta is kept" in capsys.readouterr().out


def test_another_output_folder_gets_the_delta_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = _demo_model(tmp_path, monkeypatch, "--output", str(tmp_path / "mine"), better=False)
    assert packaged.read_bytes() == b"present"
    assert (tmp_path / "mine" / "delta.safetensors").read_bytes() == b"new"
