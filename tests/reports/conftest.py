"""One Triton with two tiny models, for all reports that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tritons import only_bert, start

from triton_rerank_server import TritonServer


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path) -> Iterator[TritonServer]:
    with start(tiny_repository) as running:
        yield running


@pytest.fixture(scope="session")
def served(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model: the least to load. Tests that change it copy it first."""
    return only_bert(tiny_repository, tmp_path_factory.mktemp("reports") / "models")


@pytest.fixture(scope="session")
def bert(checkpoints: dict[str, Path]) -> Path:
    """A checkpoint. Not to be changed."""
    return checkpoints["tiny-bert"]


@pytest.fixture(scope="session")
def xlmr(checkpoints: dict[str, Path]) -> Path:
    """A checkpoint. Not to be changed."""
    return checkpoints["tiny-xlmr"]
