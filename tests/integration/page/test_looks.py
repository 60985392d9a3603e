"""On phones, by day and by night; and pictures of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from support.gateways import Running, fake, model, running
from support.page import LONG, QUIET, Watched, ask, shown

from triton_rerank import TritonScorer
from triton_rerank.testing import shared_words
from triton_rerank_gateway.models.models import Models
from triton_rerank_server import TritonServer


@pytest.mark.parametrize("beside", ["", "by-length"])
def test_a_phone_of_360_pixels_shows_everything_without_scrolling_sideways(
    browser: Browser, gateway: Running, beside: str
) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    with Watched(context, gateway.url) as page:
        expect(page.get_by_label("Model")).to_have_value("words")
        ask(page, documents=f"cats\n{'a' * 400}\n{LONG}", Beside_it=beside)
        assert len(shown(page)) == 3
        page.get_by_role("button", name="Copy as curl").tap()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        heights = page.locator("button:visible:not(.link)").evaluate_all("all => all.map(one => one.offsetHeight)")
        assert min(heights) >= 44
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_ink_that_is_read_on_their_paper(browser: Browser, gateway: Running, scheme: Any) -> None:
    context = browser.new_context(color_scheme=scheme)
    with Watched(context, gateway.url) as page:
        ask(page, documents=f"cats sleep\n{LONG}", Beside_it="by-length")
        assert len(shown(page)) == 2
        assert (luminance(page, "body", "backgroundColor") < 0.2) is (scheme == "dark")
        for on_card in ("h2", "#told", ".score", ".logit", ".text", ".cut", ".move", ".link", "label", ".hint"):
            assert contrast(page, on_card, "main > section") >= 4.5, on_card
        assert contrast(page, "#run", "#run") >= 4.5
    context.close()


def contrast(page: Page, text: str, paper: str) -> float:
    """Of a text's colour on a ground, as WCAG counts it; 4.5 is its bound for small text."""
    values = sorted((luminance(page, text, "color"), luminance(page, paper, "backgroundColor")))
    return (values[1] + 0.05) / (values[0] + 0.05)


def luminance(page: Page, selector: str, name: str) -> float:
    colour = page.locator(selector).first.evaluate("(one, name) => getComputedStyle(one)[name]", name)
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


FORMAT = (
    "The archive format was agreed on in 1992. It has a header, a body and a checksum of eight bytes. "
    "Tools on every system read it, and most of them can list what is inside without unpacking. "
)
SMALLER = (
    "To make a file smaller, compress it with gzip: text loses four fifths of its size. "
    "Pictures and films are compressed already; save them at a lower quality to make such a file smaller. "
)


@pytest.mark.skipif("PAGE_PICTURES" not in os.environ, reason="pictures are taken where PAGE_PICTURES names a folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_the_page(browser: Browser, server: TritonServer, scheme: Any) -> None:
    """With the demo model, and beside it a count of shared words."""
    folder = Path(os.environ["PAGE_PICTURES"])
    scorer = TritonScorer(server.grpc_target, model="minilm-l6-demo")
    counted = model(
        fake(logits=lambda *texts: shared_words(*texts) / 2 - 1, model="shared-words"), "shared-words", canary=None
    )
    with running(QUIET, Models([model(scorer, "minilm-l6-demo", canary=None), counted])) as gateway:
        for name, size in (("page", (1280, 900)), ("phone", (360, 740))):
            context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
            with Watched(context, gateway.url) as page:
                expect(page.get_by_label("Beside it")).to_be_visible()
                long = FORMAT * 12 + SMALLER * 8 + FORMAT * 4
                documents = page.get_by_label("Documents", exact=True).input_value() + f"\n{long}"
                ask(page, "how do I make a file smaller?", documents, Long_documents="16")
                assert len(shown(page)) == 7
                picture(page, folder / f"{name}-{scheme}.png")
                ask(page, "how do I make a file smaller?", documents, Beside_it="shared-words", Long_documents="")
                expect(page.locator(".ranking")).to_have_count(2)
                picture(page, folder / f"{name}-beside-{scheme}.png")
            context.close()


def picture(page: Page, path: Path) -> None:
    page.evaluate("document.activeElement.blur(), document.getElementById('documents').scrollTo(0, 0)")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=True)
