"""One Triton with two tiny models, for all reports that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tritons import start

from triton_rerank_server import TritonServer


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path) -> Iterator[TritonServer]:
    with start(tiny_repository) as running:
        yield running
