"""What the package gives to its users, and what it asks of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import triton_rerank_retrieval


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_all_is_sorted_and_there() -> None:
    assert triton_rerank_retrieval.__all__ == sorted(triton_rerank_retrieval.__all__)
    assert all(hasattr(triton_rerank_retrieval, name) for name in triton_rerank_retrieval.__all__)


def test_nothing_heavy_is_imported_without_its_extra() -> None:
    done = python(
        "import sys, triton_rerank_retrieval\n"
        "heavy = {'torch', 'sentence_transformers', 'faiss', 'bm25s', 'openai', 'ir_measures', 'matplotlib', 'scipy',\n"
        "         'rich', 'langchain_core', 'llama_index', 'triton_rerank_server'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "module", "extra"),
    [("bm25s", "first_stages.bm25", "bm25"), ("faiss", "first_stages.dense", "faiss"), ("openai", "llm", "llm")],
)
def test_a_missing_extra_is_named(missing: str, module: str, extra: str) -> None:
    done = python(f"import sys; sys.modules[{missing!r}] = None\nimport triton_rerank_retrieval.{module}")
    assert "ConfigurationError: " in done.stderr
    assert f"pip install 'triton-rerank-retrieval[{extra}]'" in done.stderr
