"""`make docs`: the site is built strictly, has the Python reference, and fetches nothing from elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"
REFERENCE = {"client": "triton_rerank", "retrieval": "triton_rerank_retrieval", "server": "triton_rerank_server"}
SOURCES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml", "docs"]

pytestmark = pytest.mark.skipif(not MKDOCS.exists(), reason="there is no environment for the site: make docs")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MKDOCS, "build", "--site-dir", site],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = build(ROOT, made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("page", REFERENCE)
def test_every_public_name_is_in_the_reference(site: Path, page: str) -> None:
    package = importlib.import_module(REFERENCE[page])
    text = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    missing = [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in text]
    assert not missing


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(
            r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*href="https?:', text
        )


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("[x](absent.md)", "absent.md: there is no such file"),
        ("[x](client.md#absent)", "does not contain an anchor '#absent'"),
    ],
)
def test_a_dead_link_fails_the_build(tmp_path: Path, link: str, says: str) -> None:
    for name in [
        *SOURCES,
        "client",
        "retrieval",
        "server",
        "gateway",
        "export",
        "docker",
        "deploy",
        "examples",
        "bench",
    ]:
        if name in SOURCES and (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "scale.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert says in done.stderr
