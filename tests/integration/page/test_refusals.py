"""What the page says when there is no ranking."""

from __future__ import annotations

import math

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.gateways import fake, running, wait_for
from support.page import QUIET, Watched, alert, ask, results, shown

from triton_rerank import FallbackScorer, OverloadedError, ServerUnavailableError
from triton_rerank.testing import FakeScorer


def test_an_overload_says_when_to_try_again_and_what_was_shown_is_gone(page: Page, words: FakeScorer) -> None:
    ask(page)
    assert len(shown(page)) == 3
    words.error = OverloadedError("queue full")
    try:
        page.get_by_role("button", name="Rank").click()
        expect(alert(page)).to_contain_text("Too much at once: try again in")
    finally:
        words.error = None
    assert results(page).count() == 0
    page.get_by_role("button", name="Rank").click()
    assert len(shown(page)) == 3
    expect(alert(page)).to_be_empty()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, '{"error": "not this model"}', "This key may not do that."),
        (413, '{"error": "2049 texts"}', "The request is too large."),
        (504, '{"error": "late"}', "The time for this request passed."),
        (502, "<h1>Bad Gateway</h1>", "Is there a proxy in between"),
        (200, "", "The answer is no JSON (HTTP 200)."),
        (500, "null", "The gateway refused this (HTTP 500)."),
        (200, "{}", "The answer is no ranking."),
    ],
)
def test_every_refusal_is_told_in_plain_words(page: Page, status: int, body: str, said: str) -> None:
    page.route("**/tei/rerank", lambda route: route.fulfill(status=status, body=body))
    ask(page)
    expect(alert(page)).to_contain_text(said)
    expect(page.get_by_role("button", name="Rank")).to_be_enabled()


def test_a_model_behind_the_gateway_and_a_gateway_that_are_gone_are_told_apart(context: BrowserContext) -> None:
    dead = fake(error=ServerUnavailableError("gone"))
    with running(QUIET, dead) as gateway:
        watching = Watched(context, gateway.url)
        page = watching.__enter__()
        ask(page)
        expect(alert(page)).to_contain_text("No reranker behind the gateway can be reached.")
    page.get_by_role("button", name="Rank").click()
    expect(alert(page)).to_contain_text("The gateway does not answer.")
    watching.__exit__()


def test_a_ranking_under_way_can_be_stopped(context: BrowserContext) -> None:
    slow = fake(delay_s=math.inf)
    with running(QUIET, slow) as gateway, Watched(context, gateway.url) as page:
        expect(page.get_by_label("Model")).to_have_value("fake-model")
        ask(page)
        wait_for(lambda: gateway.gateway.admission.queue.in_flight.pairs == 3)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status").first).to_have_text("Stopped.")
        wait_for(lambda: gateway.gateway.admission.queue.in_flight.pairs == 0)


def test_a_fallback_that_answered_is_told(context: BrowserContext) -> None:
    chain = FallbackScorer([fake(name="first", error=ServerUnavailableError("gone")), fake(name="second")])
    with running(QUIET, chain) as gateway, Watched(context, gateway.url) as page:
        ask(page)
        assert len(shown(page)) == 3
        expect(alert(page)).to_contain_text("Another than the first choice answered")
        expect(alert(page)).to_contain_text("second (first: ServerUnavailableError")
