"""Whatever the small files of a checkpoint hold: it is exported and equal, or refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.mutations import mutate
from support.tiny_models import write_settings

from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model

MUTATIONS = int(os.environ.get("EXPORT_MUTATIONS", "24"))  # a whole export takes a second or two
FIRST = int(os.environ.get("EXPORT_MUTATIONS_FIRST", "0"))
BASES = ("tiny-bert", "tiny-xlmr", "saved")


@pytest.fixture(scope="module")
def bases(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path_factory.mktemp("base") / "saved"))
    write_settings(saved, prompts={"query": "find: "}, default_prompt_name="query")
    return {"tiny-bert": checkpoints["tiny-bert"], "tiny-xlmr": checkpoints["tiny-xlmr"], "saved": saved}


@pytest.mark.timeout(60 + 30 * MUTATIONS)
def test_a_changed_checkpoint_is_exported_and_equal_or_refused_in_one_line(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal: the gate holds tokens, logits and scores against transformers and sentence-transformers."""
    queries = [
        parity.ParityQuery(query.query, query.documents[:4], 0) for query in parity.load_parity_set()[:2]
    ]  # few, so that many mutations fit
    monkeypatch.setattr(parity, "load_parity_set", lambda: queries)
    exported = 0
    for seed in range(FIRST, FIRST + MUTATIONS):
        folder = Path(shutil.copytree(bases[BASES[seed % len(BASES)]], tmp_path / f"checkpoint-{seed}"))
        what = mutate(folder, seed)
        print(f"{seed} {BASES[seed % len(BASES)]} {what}", end=" -> ", flush=True)
        exported += outcome(folder, tmp_path / "model_repository", f"{seed}: {what}")
        shutil.rmtree(folder)
    assert 0 < exported < MUTATIONS


def outcome(folder: Path, repository: Path, what: str) -> bool:
    """Whether it was exported; fails on any other error than one clear line."""
    options = ExportOptions(precision="fp32", name="m", replace=True)
    try:
        result = export_model(str(folder), repository, options, on_step=lambda _: None)
    except ExportError as exc:
        message = str(exc)
        print(message.encode("ascii", "backslashreplace").decode()[:400])
        assert "\n" not in message or "does not agree with PyTorch" in message, f"{what}: {message}"
        assert str(repository) not in message and ".model" not in message, f"{what}: {message}"
        assert len(message) > len(str(folder)) + 20, f"{what}: {message}"
        return False
    except BaseException as exc:
        raise AssertionError(f"{what}: {type(exc).__name__}: {exc}") from exc
    print(f"exported {result.report.peer_difference} {result.report.notes}")
    return True
