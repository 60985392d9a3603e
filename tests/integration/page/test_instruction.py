"""The field for an instruction: there for models that take one, sent to them alone, and in the copied code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from support.gateways import Running, fake, model, running, wait_for
from support.page import QUIET, Watched, ask, copied, run_copied, shown

from triton_rerank import FallbackScorer, ModelInfo
from triton_rerank.core.scorer import Call, PairRequest, Scored
from triton_rerank.testing import FakeScorer
from triton_rerank_gateway.models.models import Models

TOLD = "a \"dog\" barks 'JSON' $HOME ünï"  # with it, "a dog barks" is the best of the documents; without, the last
PLAIN = ["cats sleep", "cats run", "a dog barks"]
FOLLOWED = ["a dog barks", "cats sleep", "cats run"]


class Prompted(FakeScorer):
    """Looks for the words of the instruction, too."""

    async def model_info(self, call: Call) -> ModelInfo:
        return replace(await super().model_info(call), prompt_tokens=20, takes_instruction=True)

    async def score(self, request: PairRequest, call: Call) -> Scored:
        words = (request.instruction or "").replace('"', "").encode()
        return await super().score(replace(request, query=request.query + b" " + words), call)


@pytest.fixture(scope="module")
def prompted() -> Prompted:
    return Prompted(model="prompted", activation="sigmoid")


@pytest.fixture(scope="module")
def gateway(prompted: Prompted) -> Iterator[Running]:
    """One model with a prompt, two without."""
    others = [model(fake(), name, canary=None) for name in ("plain", "plainer")]
    with running(QUIET, Models([model(prompted, "prompted", canary=None), *others])) as found:
        wait_for(lambda: found.get("/v1/models").json()["data"][0]["takes_instruction"])
        yield found


@pytest.fixture
def page(context: BrowserContext, gateway: Running) -> Iterator[Page]:
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=gateway.url)
    with Watched(context, gateway.url) as found:
        expect(found.get_by_label("Model")).to_have_value("prompted")
        yield found


def test_only_a_model_with_a_prompt_is_told_an_instruction(page: Page, gateway: Running, prompted: Prompted) -> None:
    field = page.get_by_label("Instruction")
    ask(page)
    assert shown(page) == PLAIN
    field.fill(TOLD)
    ask(page)
    expect(page.locator(".ranking .text").first).to_have_text(FOLLOWED[0])
    assert shown(page) == FOLLOWED
    field.fill(" \n ")
    ask(page)
    expect(page.locator(".ranking .text").first).to_have_text(PLAIN[0])
    assert [each.instruction for each in prompted.requests[-3:]] == [None, TOLD, None]
    page.get_by_label("Model").select_option("plain")
    expect(field).to_be_hidden()
    page.get_by_label("Beside it").select_option("plainer")
    expect(field).to_be_hidden()


def test_a_page_that_was_opened_before_the_model_was_known_offers_it_as_soon_as_it_is(
    context: BrowserContext, prompted: Prompted
) -> None:
    with running(QUIET, Models([model(prompted, "prompted", canary=None)])) as gateway:
        (known,) = gateway.gateway.models.all
        wait_for(lambda: known.takes_instruction is True)
        known.takes_instruction = None  # as before its first canary
        with Watched(context, gateway.url) as page:
            expect(page.get_by_label("Model")).to_have_value("prompted")
            field = page.get_by_label("Instruction")
            expect(field).to_be_hidden()
            known.takes_instruction = True
            expect(field).to_be_visible()


def test_a_chain_that_was_said_to_take_it_is_told(context: BrowserContext) -> None:
    first = Prompted(model="prompted", activation="sigmoid")
    chain = FallbackScorer([first])
    with (
        running(QUIET, Models([model(chain, "chain", takes_instruction=True), model(chain, "quiet")])) as gateway,
        Watched(context, gateway.url) as page,
    ):
        wait_for(
            lambda: [row["takes_instruction"] for row in gateway.get("/v1/models").json()["data"]] == [True, False]
        )
        page.get_by_label("Instruction").fill(TOLD)
        ask(page)
        assert shown(page) == FOLLOWED
        assert first.requests[-1].instruction == TOLD


def test_of_two_models_side_by_side_the_one_that_takes_it_is_told(page: Page) -> None:
    page.get_by_label("Model").select_option("plain")
    page.get_by_label("Beside it").select_option("prompted")
    page.get_by_label("Instruction").fill(TOLD)
    expect(page.locator("#toldwhom")).to_have_text("What prompted is to look for; empty: the model's own.")
    ask(page)
    assert shown(page, at=0) == PLAIN
    assert shown(page, at=1) == FOLLOWED
    assert "instruction" not in copied(page, "curl")


@pytest.mark.parametrize("name", ["curl", "Python", "LangChain"])
def test_the_copied_code_tells_the_instruction_and_asks_for_chunks(page: Page, prompted: Prompted, name: str) -> None:
    page.get_by_label("Instruction").fill(TOLD)
    ask(page, Long_documents="4")
    assert shown(page) == FOLLOWED
    said = run_copied(page, name)
    if name == "curl":
        assert [row["index"] for row in json.loads(said)["results"]] == [0, 1, 2]
    else:
        assert sorted(FOLLOWED, key=said.index) == FOLLOWED
    assert prompted.requests[-1].instruction == TOLD
    assert "max_chunks_per_doc" in copied(page, name)
