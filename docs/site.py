"""What the site is made of beside docs/: README.md as its first page, and links to files that are not pages.

A link out of docs/ becomes the file's name, since a site has no such page; one to a file that is not there is an
error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie beside docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links fit the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(uri, f"docs/{uri}"))

    def fit(link: re.Match[str]) -> str:
        """The link as it must be written on the site; a file that the site has not becomes its name."""
        text, target, anchor = link[1], posixpath.normpath(posixpath.join(folder, link[2])), link[3] or ""
        if not (ROOT / target).exists():
            raise PluginError(f"{uri}: {link[2]}: there is no such file")
        there = next((name for name, source in PAGES.items() if source == target), target.removeprefix("docs/"))
        if files.get_file_from_path(there) is None:
            return text if text.strip("`") == target else f"{text} (`{target}`)"
        return f"[{text}]({posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor})"

    return LINK.sub(fit, markdown)
