"""Code that the page copies is run, and gets what the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.gateways import Running, fake, running
from support.page import KEY, QUIET, Watched, ask, closed_key, run_copied, shown

NASTY = ['it\'s "$(touch x)" `id` \\ %s', "cats sleep\nJSON\n💤", "cats ünï \u2028 'JSON'"]


@pytest.fixture
def nasty(context: BrowserContext, page: Page, gateway: Running) -> Page:
    """The page after a ranking of texts that break shells and languages, its clipboard open."""
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=gateway.url)
    ask(page, 'cats\' "sleep" $HOME', "\n".join(map(json.dumps, NASTY)), Long_documents="4")
    assert len(shown(page)) == 3
    return page


def test_the_copied_curl_line_gets_the_ranking_of_the_page(nasty: Page, tmp_path: Path) -> None:
    found = json.loads(run_copied(nasty, "curl", tmp_path))
    assert [f"document {row['index'] + 1}" for row in found["results"]] == shown(nasty, ".name")
    assert [f"{row['relevance_score']:.3f}" for row in found["results"]] == shown(nasty, ".score")
    assert list(tmp_path.iterdir()) == []


def test_the_copied_curl_line_takes_the_key_of_the_environment(context: BrowserContext) -> None:
    with running(QUIET, fake(), [closed_key()]) as closed, Watched(context, closed.url) as page:
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=closed.url)
        page.get_by_label("Key", exact=True).fill(KEY)
        ask(page)
        shown(page)
        assert "results" in json.loads(run_copied(page, "curl", RERANK_KEY=KEY))


@pytest.mark.parametrize("name", ["Python", "LangChain"])
def test_the_copied_code_gets_the_order_of_the_page(nasty: Page, name: str) -> None:
    said = run_copied(nasty, name)
    places = [said.index(text) for text in shown(nasty)]
    assert places == sorted(places)


def test_without_a_clipboard_the_code_is_selected(page: Page) -> None:
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copied")).to_have_text("Press Ctrl+C to copy.")
    assert page.evaluate("getSelection().toString()").startswith("curl -s")
