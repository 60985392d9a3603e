"""The page in a real Chromium: what is typed, dropped and pressed, and the ranking that is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from support.gateways import Running, wait_for
from support.page import LONG, QUERY, alert, ask, results, shown

from triton_rerank.testing import FakeScorer


def test_typed_documents_are_ranked_with_bars_scores_and_logits(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value("words")
    ask(page)
    assert shown(page) == ["cats sleep", "cats run", "a dog barks"]
    assert shown(page, ".score") == ["0.881", "0.731", "0.500"]
    assert shown(page, ".logit") == ["logit +2.000", "logit +1.000", "logit +0.000"]
    assert shown(page, ".name") == ["document 2", "document 3", "document 1"]
    fills = page.locator(".fill")
    widths = fills.evaluate_all("all => all.map(one => one.clientWidth / one.parentElement.clientWidth)")
    assert widths == pytest.approx([0.881, 0.731, 0.5], abs=0.01)
    expect(page.get_by_role("status").first).to_have_text("3 documents ranked.")


def test_it_opens_with_an_example_that_the_keyboard_alone_ranks(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value("words")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Query")).to_be_focused()
    page.keyboard.type("gzip ")
    page.keyboard.press("Control+Enter")
    assert len(shown(page)) == 6
    order = ["documents", "file", "model", "other", "chunks", "top", "key", "run"]
    for name in order:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    labels = page.locator("input, select, textarea").evaluate_all("all => all.map(one => one.labels.length)")
    assert labels and set(labels) == {1}


@pytest.mark.parametrize(
    ("given", "said", "names"),
    [
        (
            '{"text": "cats sleep", "id": "a-1"}\n\n{"text": "cats"}',
            "2 documents, JSON lines",
            ["document a-1", "document 2"],
        ),
        ('["cats sleep", {"text": "x", "id": 7}]', "2 documents, a JSON list", ["document 1", "document 7"]),
        ('"cats\\nsleep"\n"dogs"', "2 documents, JSON lines", ["document 1", "document 2"]),
        (
            '"cats sleep"\nsaid the cat\r\n[1] a note',
            "3 documents, one a line",
            ["document 1", "document 2", "document 3"],
        ),
    ],
)
def test_documents_come_as_lines_json_lines_or_a_list(page: Page, given: str, said: str, names: list[str]) -> None:
    ask(page, documents=given)
    expect(page.locator("#counted")).to_have_text(said)
    assert sorted(shown(page, ".name")) == sorted(names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"text": "cats"}\n\n{"text": ', "line 3 is no JSON object or string"),
        ('{"text": "cats"}\n{"body": "x"}', 'line 2 has no "text"'),
        ('["cats", {"text": 5}]', 'entry 2 has no "text"'),
        ('"half \\ud800"', "line 1 has half a character"),
        (" \n ", "Give at least one document."),
    ],
)
def test_documents_that_are_none_are_told_by_line_and_the_field_has_the_focus(
    page: Page, words: FakeScorer, given: str, said: str
) -> None:
    asked = len(words.requests)
    ask(page, documents=given)
    expect(alert(page)).to_contain_text(said)
    expect(page.get_by_label("Documents", exact=True)).to_be_focused()
    assert len(words.requests) == asked


def test_a_blank_query_and_a_wrong_number_are_told_at_their_fields(page: Page) -> None:
    ask(page, query="  ")
    expect(alert(page)).to_have_text("Give a query to rank the documents by.")
    expect(page.get_by_label("Query")).to_be_focused()
    page.get_by_label("Show the best").fill("-1")
    ask(page)
    expect(alert(page)).to_contain_text("a whole number from 1")


def drop(page: Page, content: bytes, name: str) -> None:
    """Drop a file onto the field of documents."""
    page.evaluate(
        """([bytes, name]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
            const options = { dataTransfer, bubbles: true, cancelable: true };
            document.getElementById("documents").dispatchEvent(new DragEvent("drop", options));
        }""",
        [list(content), name],
    )


def test_a_file_can_be_dropped_or_opened(page: Page, tmp_path: Path) -> None:
    field = page.get_by_label("Documents", exact=True)
    drop(page, "\ufeffcats ünï\r\ndogs".encode(), "lines.txt")
    expect(field).to_have_value("cats ünï\ndogs")
    expect(page.locator("#counted")).to_have_text("2 documents, one a line")
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "cats"}\n')
    page.locator("#file").set_input_files(path)
    expect(page.locator("#counted")).to_have_text("1 document, JSON lines")
    drop(page, b"\xff\xfe\x00", "picture.png")
    expect(alert(page)).to_contain_text("picture.png is no UTF-8 text")
    expect(field).to_have_value('{"text": "cats"}\n')


def test_a_cut_document_shows_what_was_not_read(page: Page) -> None:
    ask(page, documents=f"cats sleep\n{LONG}")
    assert shown(page, ".badge")[0].startswith("cut: about the last ")
    cut = page.locator("li", has=page.locator(".badge"))
    cut.get_by_role("button", name="whole text").click()
    unread = cut.locator(".unread").inner_text()
    assert unread and LONG.strip().endswith(unread.strip())


def test_the_best_chunk_of_a_long_document_is_marked_where_it_is(page: Page, gateway: Running) -> None:
    ask(page, documents=f"cats sleep\n{LONG}", Long_documents="16")
    marked = page.locator("mark")
    expect(marked).to_have_count(1)
    asked = {"query": QUERY, "texts": ["cats sleep", LONG], "return_details": True, "max_chunks_per_doc": 16}
    [start, end] = next(row["best_chunk"] for row in gateway.post("/tei/rerank", asked).json() if row["best_chunk"])
    assert marked.evaluate("one => one.textContent") == LONG[start:end]
    assert "cats sleep" in LONG[start:end] and start > 0


def test_the_time_line_has_what_the_gateways_headers_say(page: Page) -> None:
    times = {"x-total-time": "90", "x-queue-time": "30", "x-tokenization-time": "10", "x-inference-time": "40"}

    def answer(route: Any) -> None:
        found = route.fetch()
        route.fulfill(response=found, headers={**found.headers, **times})

    page.route("**/tei/rerank", answer)
    ask(page)
    legend = page.locator(".legend li")
    expect(legend.first).to_have_text("waiting for its turn 30 ms")
    said = legend.all_inner_texts()
    assert said[1:4] == ["tokenising 10 ms", "computing 40 ms", "gateway 10 ms"]
    assert said[4].startswith("network and browser ")
    widths = page.locator(".part").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert widths[0] / widths[2] == pytest.approx(0.75, abs=0.05)


def test_two_models_stand_side_by_side_with_the_moves_drawn(page: Page) -> None:
    expect(page.get_by_label("Beside it")).to_be_visible()
    ask(page, documents="cats sleep and sleep all day long\ncats\na dog", Beside_it="by-length")
    assert shown(page, ".name", 0) == ["document 1", "document 2", "document 3"]
    assert shown(page, ".name", 1) == ["document 2", "document 3", "document 1"]
    assert [one.get_attribute("aria-label") for one in page.locator(".move").all()] == [
        "up by 1",
        "up by 1",
        "down by 2",
    ]
    lines = page.locator(".moves path")
    expect(lines).to_have_count(3)
    assert lines.evaluate_all("all => all.map(one => one.getAttribute('class'))") == ["down", "up", "up"]
    ends = lines.evaluate_all("all => all.map(one => one.getAttribute('d').split(' ').at(-1))")
    assert float(ends[0]) > float(ends[2]) > float(ends[1])
    assert page.locator(".times").count() == 2


def test_the_lines_follow_a_text_that_is_opened_and_take_no_room_of_their_own(page: Page) -> None:
    ask(page, documents=f"cats sleep {LONG}\ndogs", Beside_it="by-length")
    line = page.locator(".moves path").nth(1)

    def begins() -> float:
        return float(line.evaluate("one => one.getPointAtLength(0).y"))

    def bottoms(selector: str) -> list[float]:
        return page.locator(selector).evaluate_all("all => all.map(one => one.getBoundingClientRect().bottom)")  # type: ignore[no-any-return]

    closed = begins()
    opened = results(page).first
    opened.get_by_role("button", name="whole text").click()
    wait_for(lambda: begins() > closed + 50)
    opened.get_by_role("button", name="less").click()
    wait_for(lambda: begins() == closed)
    assert bottoms(".beside") == pytest.approx([max(bottoms(".ranking li:last-child"))], abs=1)


def test_no_more_than_the_best_are_shown_and_one_that_is_in_one_list_only_has_no_line(page: Page) -> None:
    page.get_by_label("Show the best").fill("1")
    ask(page, documents="cats sleep and sleep all day long\ncats", Beside_it="by-length")
    assert (len(shown(page, at=0)), len(shown(page, at=1))) == (1, 1)
    expect(page.locator(".move")).to_have_text("not in the other list")
    assert page.locator(".moves path").count() == 0
    expect(page.get_by_role("status").first).to_have_text("2 documents ranked, the best 1 shown.")
