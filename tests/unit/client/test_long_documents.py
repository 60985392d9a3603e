"""Long documents: how they are cut, what is asked, and which chunk stands for its document."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_rerank import (
    AsyncRerankClient,
    CachedScorer,
    CascadeScorer,
    FallbackScorer,
    InvalidRequestError,
    ModelInfo,
    RerankClient,
    ServerUnavailableError,
)
from triton_rerank.core.chunk import spans
from triton_rerank.core.scorer import Call
from triton_rerank.testing import FakeScorer

texts = st.text(st.sampled_from("ab .!?\n。é漢\U0001f600"), max_size=400) | st.text(max_size=200)


@given(texts, st.integers(1, 60), st.integers(0, 80))
def test_no_character_is_lost_and_every_chunk_fits(text: str, size: int, overlap: int) -> None:
    found = spans(text, size=size, overlap=overlap)
    assert found[0][0] == 0 and found[-1][1] == len(text)
    assert all(0 < end - start <= size or not text for start, end in found)
    for (start, end), (next_start, next_end) in itertools.pairwise(found):
        assert start < next_start <= end < next_end
    ends = [start for start, _ in found[1:]] + [len(text)]
    rebuilt = "".join(text[start:end] for (start, _), end in zip(found, ends, strict=True))
    assert rebuilt == text


@given(texts, st.integers(0, 80))
def test_a_text_that_fits_is_one_chunk(text: str, overlap: int) -> None:
    assert spans(text, size=max(1, len(text)), overlap=overlap) == ((0, len(text)),)


def test_chunks_end_with_sentences_and_begin_with_words() -> None:
    text = "One two three. Four five six! Seven eight nine? Ten eleven twelve."
    found = [text[start:end] for start, end in spans(text, size=32, overlap=10)]
    assert found == ["One two three. Four five six! ", "five six! Seven eight nine? ", "nine? Ten eleven twelve."]


def test_a_text_without_borders_is_cut_where_a_chunk_is_full() -> None:
    assert spans("x" * 25, size=10, overlap=2) == ((0, 10), (8, 18), (16, 25))


FILLER = "nothing of use stands here. " * 60  # 1,680 characters, 300 words
LONG = FILLER + "cats sleep all day. " + FILLER
QUERY = "cats sleep"


def scorer(**options: Any) -> FakeScorer:
    return FakeScorer(**{"max_length": 120, **options})


def test_a_long_document_gets_the_score_of_its_best_chunk_and_says_where_it_is() -> None:
    with RerankClient(scorer=scorer()) as client:
        cut = client.rerank(QUERY, [LONG, "cats run"])
        found = client.rerank(QUERY, [LONG, "cats run"], long_documents="chunk", max_chunks=100)
    best = found[0]
    assert (best.index, best.score, best.truncated) == (0, 2.0, False)
    assert best.best_chunk is not None
    start, end = best.best_chunk
    assert "cats sleep all day." in LONG[start:end] and end - start < 500
    assert (found[1].best_chunk, found[1].truncated) == (None, False)
    assert [ranked.token_count for ranked in found] == [2 + len(LONG[start:end].split()), 4]
    assert [ranked.truncated for ranked in cut if ranked.index == 0] == [True]
    assert best.document is LONG


def test_documents_that_fit_are_asked_once_and_left_as_they_are() -> None:
    asked = scorer()
    with RerankClient(scorer=asked) as client:
        plain = client.rerank(QUERY, ["cats run", "a dog", "cats run"])
        found = client.rerank(QUERY, ["cats run", "a dog", "cats run"], long_documents="chunk")
    assert found.documents == plain.documents
    assert len(asked.requests) == 2


def test_only_chunks_of_what_was_cut_are_asked_again() -> None:
    asked = scorer()
    with RerankClient(scorer=asked) as client:
        found = client.rerank(QUERY, [LONG, "cats run", LONG], long_documents="chunk")
    first, second = asked.requests
    assert len(first.documents) == 2 and b"cats run" not in second.documents
    chunks = {ranked.index: ranked.best_chunk for ranked in found}
    assert chunks[0] == chunks[2] is not None
    assert found.usage.pairs == 3


def test_what_is_behind_the_last_chunk_is_not_read_and_said_to_be_cut() -> None:
    with RerankClient(scorer=scorer()) as client:
        found = client.rerank(QUERY, [LONG], long_documents="chunk", max_chunks=2)[0]
    assert (found.score, found.truncated) == (0.0, True)
    assert found.best_chunk is not None and found.best_chunk[1] < len(FILLER)


def test_a_long_query_does_not_make_chunks_of_short_documents() -> None:
    asked = scorer()
    with RerankClient(scorer=asked) as client:
        found = client.rerank("word " * 300, ["cats run"], long_documents="chunk")
    assert len(asked.requests) == 1 and found[0].truncated


class Switching(FakeScorer):
    """Another version answers every second request."""

    async def score(self, request: Any, call: Any) -> Any:
        scored = await super().score(request, call)
        return replace(scored, model_version=str(min(2, len(self.requests))))


def test_answers_of_two_versions_never_meet_in_one_order() -> None:
    asked = Switching(max_length=120)
    with RerankClient(scorer=asked) as client:
        found = client.rerank(QUERY, [LONG, "cats run"], long_documents="chunk", max_chunks=100)
    assert len(asked.requests) == 3 and b"cats run" in asked.requests[2].documents
    assert (found.model_version, [ranked.index for ranked in found], found[0].score) == ("2", [0, 1], 2.0)


def test_a_cascade_takes_all_chunks_in_one_request() -> None:
    chain = CascadeScorer(scorer(name="light"), scorer(name="heavy"), keep=1)
    with RerankClient(scorer=chain) as client:
        found = client.rerank(QUERY, [LONG, "cats run", "a dog"], long_documents="chunk", max_chunks=100)
    assert [ranked.index for ranked in found] == [0, 1, 2]
    assert (found[0].score, found[0].best_chunk is not None, found[1].score) == (2.0, True, None)


def test_an_open_chain_that_nobody_answers_keeps_the_callers_order() -> None:
    dead = scorer(error=ServerUnavailableError("gone"))
    with RerankClient(scorer=FallbackScorer([dead])) as client:
        found = client.rerank(QUERY, [LONG, "cats run"], long_documents="chunk")
    assert (found.degraded, [ranked.index for ranked in found]) == (True, [0, 1])


def test_a_cache_remembers_chunks() -> None:
    with RerankClient(scorer=CachedScorer(scorer(model_version="1"))) as client:
        first = client.rerank(QUERY, [LONG], long_documents="chunk")
        again = client.rerank(QUERY, [LONG], long_documents="chunk")
    assert again.documents == first.documents
    assert again.usage.token_count == 0 < again.usage.cached_pairs


def test_the_async_client_does_the_same() -> None:
    async def ask() -> tuple[int, int] | None:
        async with AsyncRerankClient(scorer=scorer()) as client:
            return (await client.rerank(QUERY, [LONG], long_documents="chunk", max_chunks=100))[0].best_chunk

    found = asyncio.run(ask())
    assert found is not None and "cats sleep" in LONG[slice(*found)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"long_documents": "cut"}, "long_documents is 'cut': it must be 'truncate' or 'chunk'"),
        ({"max_chunks": 0}, "max_chunks is 0"),
        ({"overlap_tokens": -1}, "overlap_tokens is -1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments: dict[str, Any], said: str) -> None:
    asked = scorer()
    with RerankClient(scorer=asked) as client, pytest.raises(InvalidRequestError) as raised:
        client.rerank(QUERY, ["a"], **arguments)
    assert str(raised.value).startswith(said) and not asked.requests


def test_a_chunk_leaves_room_for_the_models_prompt_and_for_the_instruction() -> None:
    class Prompted(FakeScorer):
        async def model_info(self, call: Call) -> ModelInfo:
            return replace(await super().model_info(call), prompt_tokens=40)

    lengths = []
    for model, instruction in (
        (scorer(), None),
        (Prompted(max_length=120), None),
        (Prompted(max_length=120), "x" * 90),
    ):
        with RerankClient(scorer=model) as client:
            client.rerank(QUERY, [LONG], long_documents="chunk", max_chunks=100, instruction=instruction)
        lengths.append(max(len(document) for document in model.requests[-1].documents))
        assert {request.instruction for request in model.requests} == {instruction}
    assert lengths[0] - lengths[1] >= 3 * 40 - 30 and lengths[1] - lengths[2] >= 3 * 30 - 30  # cut at a sentence's end
