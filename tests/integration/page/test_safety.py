"""What the page does not let happen, in a real Chromium."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Error, Page, expect
from support.gateways import Running, fake, running
from support.page import KEY, QUIET, Watched, alert, ask, closed_key, shown


def test_html_in_texts_ids_and_errors_stays_text(page: Page) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> cats"
    ask(page, query=f"{evil} sleep", documents=json.dumps({"text": evil, "id": evil}) + "\n" + json.dumps(evil))
    assert shown(page) == [evil, evil]
    assert shown(page, ".name")[0] == f"document {evil}"
    assert page.locator("#found img, #found script").count() == 0
    page.get_by_role("button", name="Copy as Python").click()
    assert evil in page.locator("#snippet").inner_text()
    page.route("**/tei/rerank", lambda route: route.fulfill(status=500, json={"error": evil}))
    page.get_by_role("button", name="Rank").click()
    expect(alert(page)).to_contain_text(evil)
    assert page.locator("#found img, #found script").count() == 0


def test_script_that_is_not_the_pages_own_does_not_run(context: BrowserContext, gateway: Running) -> None:
    page = context.new_page()
    broken = "document.title = 'broken in'"

    def with_script(route: Any) -> None:
        found = route.fetch()
        body = found.text().replace("</main>", f'<script>{broken}</script><img src="x" onerror="{broken}"></main>')
        route.fulfill(response=found, body=body)

    page.route(f"{gateway.url}/", with_script)
    page.goto(gateway.url)
    assert page.locator("main script, main img").count() == 2
    page.get_by_role("button", name="Rank").click()
    assert len(shown(page)) == 6
    assert page.title() == "triton-rerank: try it"
    for attempt in ("document.body.innerHTML = '<b>x</b>'", "document.body.setAttribute('onclick', 'x')"):
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(attempt)


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/page.css", "/page/nothing.js"])
def test_the_files_of_the_page_come_with_headers_that_close_it(gateway: Running, path: str) -> None:
    found = gateway.get(path)
    if found.status_code == 200:
        assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert (found.headers["x-frame-options"], found.headers["referrer-policy"]) == ("DENY", "no-referrer")
        assert gateway.http.head(path).status_code == 200
        assert gateway.get(path, headers={"if-none-match": found.headers["etag"]}).status_code == 304
    else:
        assert (path, found.status_code) == ("/page/nothing.js", 404)
        assert found.json()["message"].startswith("nothing is at")
    assert found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/../reads.py", "/page/%2e%2e/__init__.py", "/page/..%2f..%2fkeys.py", "/page"])
def test_nothing_but_the_files_of_the_page_is_served(gateway: Running, path: str) -> None:
    assert gateway.raw(f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode(), until_closed=False).startswith(
        b"HTTP/1.1 404"
    )


def test_a_key_is_asked_for_refused_kept_in_memory_and_gone_after_a_reload(context: BrowserContext) -> None:
    with running(QUIET, fake(), [closed_key()]) as closed, Watched(context, closed.url) as page:
        expect(alert(page)).to_contain_text("The gateway wants a key.")
        field = page.get_by_label("Key", exact=True)
        field.fill("wrong-key")
        ask(page)
        expect(alert(page)).to_contain_text("The gateway does not know this key.")
        field.fill("kéy")
        ask(page)
        expect(alert(page)).to_contain_text("This is no key")
        field.fill(KEY)
        ask(page)
        assert shown(page)[0] == "cats sleep"
        expect(alert(page)).to_be_empty()
        page.get_by_role("button", name="Copy as curl").click()
        assert KEY not in page.locator("#snippet").inner_text()
        expect(page.locator("#copied")).to_contain_text("RERANK_KEY")
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert KEY not in kept
        page.reload()
        expect(field).to_have_value("")
