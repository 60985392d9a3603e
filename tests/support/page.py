"""The gateway's page, opened, filled in and read, as a person does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Dialog, Locator, Page, expect

from triton_rerank_gateway import Settings
from triton_rerank_gateway.admission.keys import Key, read_key

ROOT = Path(__file__).parents[2]
KEY = "page-key"
QUERY = "cats sleep"
DOCUMENTS = ["a dog barks", "cats sleep", "cats run"]  # best first: 1, 2, 0
QUIET = Settings(port=0, canary_interval_s=3600.0)
LONG = "💤 " * 20 + "dogs bark. " * 12 + "cats sleep now. " + "dogs bark. " * 12


def closed_key() -> Key:
    """Of a gateway that wants `KEY`."""
    return read_key({"name": "page", "hash": hashlib.sha256(KEY.encode()).hexdigest()})


class Watched:
    """Opens the page and sees that it behaves."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page, self.url = context.new_page(), url
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"{error}"))
        self.page.on("console", lambda entry: self._console(entry.type, entry.text))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url))

    def __enter__(self) -> Page:
        self.page.goto(f"{self.url}/")
        return self.page

    def __exit__(self, *_: object) -> None:
        assert self.faults == []

    def _dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _console(self, kind: str, text: str) -> None:
        if kind == "error" and "Failed to load resource" not in text:  # a refused call, which tests look at
            self.faults.append(text)

    def _request(self, url: str) -> None:
        if not url.startswith(self.url):
            self.faults.append(f"asked {url}")


def ask(page: Page, query: str = QUERY, documents: str = "\n".join(DOCUMENTS), **choices: str) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Documents", exact=True).fill(documents)
    for label, value in choices.items():
        page.get_by_label(label.replace("_", " ")).select_option(value)
    page.get_by_role("button", name="Rank").click()


def results(page: Page, at: int = 0) -> Locator:
    return page.locator(".ranking").nth(at).get_by_role("listitem")


def shown(page: Page, part: str = ".text", at: int = 0) -> list[str]:
    """What each result says, once there are some."""
    results(page, at).first.wait_for()
    return results(page, at).locator(part).all_inner_texts()


def alert(page: Page) -> Locator:
    return page.get_by_role("alert")


def copied(page: Page, name: str) -> str:
    """The code that a button copies; the page may read the clipboard."""
    page.get_by_role("button", name=f"Copy as {name}").click()
    expect(page.locator("#copied")).to_contain_text("Copied.")
    return str(page.evaluate("navigator.clipboard.readText()"))


def run_copied(page: Page, name: str, folder: Path | None = None, **environment: str) -> str:
    """What the copied code prints: by bash, this python, or the one that has LangChain."""
    python = ROOT / ".venv-sdks" / "bin" / "python" if name == "LangChain" else Path(sys.executable)
    if not python.exists():
        pytest.skip("langchain-cohere is not installed: `make gateway-sdks` does it")
    program = "bash" if name == "curl" else str(python)
    done = subprocess.run(
        [program, "-c", copied(page, name)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "LANGSMITH_TRACING": "false", **environment},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
