"""Export and its gate with transformers 5, and the files that 5 writes, read by 4 and by 5."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.tiny_families import TINY, write_tiny

from triton_rerank import RerankClient
from triton_rerank.local.scorer import LocalScorer
from triton_rerank_export.checkpoint.families import BY_CLASS
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-transformers5" / "bin" / "python"
TOLD = "albertforsequenceclassification"  # transformers 5's tokenizer of ALBERT gives the model no segments by itself
NAMES = {name.lower(): name for name in TINY} | {
    "tiny-qwen3-reranker": "Qwen3ForCausalLM",
    "tiny-bge-reranker-v2-gemma": "GemmaForCausalLM",
}
QUERY = "how do I compress a file on Linux?"
DOCUMENTS = ["gzip shrinks a file.", "A file cabinet.", ""]

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no environment with transformers 5: make transformers5"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``checkpoints``, made by 4 and written anew by 5; ``by5``, what was exported by 5."""
    made = tmp_path_factory.mktemp("five")
    for name, architecture in NAMES.items():
        write_tiny(architecture, made / "checkpoints" / name)
    return made


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, dict[str, Any]]:
    """What the other environment said of each checkpoint."""
    done = subprocess.run(
        [PYTHON, "-m", "support.written_anew", folder / "checkpoints", folder / "by5"],
        cwd=ROOT / "tests",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr.strip()  # no progress bars of libraries
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line for line in lines}


def test_every_family_is_exported_with_transformers_5(said: dict[str, dict[str, Any]]) -> None:
    assert set(said) == set(NAMES)
    for name, line in said.items():
        assert line["transformers"].startswith("5.")
        assert "refused" not in line, line["refused"]
        assert any("gives this model no segments" in note for note in line["notes"]) == (name == TOLD)
        assert line["difference"] < 1e-4
        asked = bool(BY_CLASS[NAMES[name]].prompt)
        assert (line["peer"] is None) == asked and (line["peer"] or 0) < 1e-4
    assert [line["name"] for line in said.values() if "fp16" in line] == [
        "bertforsequenceclassification",
        "distilbertforsequenceclassification",
        "modernbertforsequenceclassification",
        "modernbertmodel",
        "xlmrobertaforsequenceclassification",
    ]
    assert all(line["fp16"] < 1e-2 for line in said.values() if "fp16" in line)


@pytest.mark.parametrize("name", list(NAMES))
def test_what_5_writes_and_exports_scores_as_what_4_exports_of_it(
    said: dict[str, dict[str, Any]], folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transformers.__version__.startswith("4.") and said
    few = parity.load_parity_set()[:2]
    monkeypatch.setattr(parity, "load_parity_set", lambda: few)
    export_model(
        str(folder / "checkpoints" / name), tmp_path / "by4", ExportOptions(precision="fp32"), on_step=lambda _: None
    )
    logits = []
    for repository in (folder / "by5", tmp_path / "by4"):
        with RerankClient(scorer=LocalScorer(repository, name), timeout_s=60) as client:
            logits.append([hit.logit for hit in sorted(client.rerank(QUERY, DOCUMENTS), key=lambda hit: hit.index)])
    assert logits[0] == pytest.approx(logits[1], abs=1e-4)
    assert len(set(logits[0])) == len(DOCUMENTS)
