"""A browser, two models behind a gateway, and its page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from support.browser import chromium
from support.gateways import Running, fake, model, running
from support.page import QUIET, Watched

from triton_rerank.testing import FakeScorer
from triton_rerank_gateway.models.models import Models


def by_length(query: str, document: str) -> float:
    """The other model: the shorter, the better."""
    return -len(document) / 10


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module, no longer: while it is there, the thread has a running event loop, and can start no other."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def words() -> FakeScorer:
    return fake(max_length=60)


@pytest.fixture(scope="module")
def gateway(words: FakeScorer) -> Iterator[Running]:
    other = fake(logits=by_length, name="other", model="by-length")
    with running(QUIET, Models([model(words, "words"), model(other, "by-length", canary=None)])) as found:
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    made.set_default_timeout(30_000)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, gateway: Running) -> Iterator[Page]:
    """The page of the gateway; at the end nothing was thrown, logged as an error, or asked of another host."""
    with Watched(context, gateway.url) as found:
        yield found
