"""The whole way, sync and async by one core; what fails is told, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.candidates import ids

from triton_rerank import (
    CascadeScorer,
    ConfigurationError,
    DeadlineExceededError,
    FallbackScorer,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    Scorer,
)
from triton_rerank.testing import FakeScorer
from triton_rerank_retrieval import (
    Feedback,
    LexicalScorer,
    NearDuplicates,
    Pipeline,
    Retrieved,
    RoutedScorer,
    Router,
    WeightedZ,
    of_callable,
    scorer_for,
)
from triton_rerank_retrieval.first_stages.bm25 import Bm25, Bm25Options
from triton_rerank_retrieval.first_stages.foreign import Foreign

DOCUMENTS = [{"id": str(place), "text": f"{'word ' * place}of {place}"} for place in range(6)]
Search = Callable[..., Retrieved]


def stage(*places: int, name: str = "first", error: Exception | None = None) -> Foreign:
    def find(query: str, k: int) -> list[tuple[Any, float]]:
        if error is not None:
            raise error
        return [(DOCUMENTS[place], -float(rank)) for rank, place in enumerate(places)]

    return of_callable(find, name=name)


def length(query: str, document: str) -> float:
    return float(len(document))


@pytest.fixture(params=["sync", "async"])
def search(request: pytest.FixtureRequest) -> Search:
    """`Pipeline.search` or `asearch`, with the pipeline as its first argument."""

    def run(pipeline: Pipeline, *arguments: Any, **named: Any) -> Retrieved:
        if request.param == "sync":
            with pipeline:
                return pipeline.search(*arguments, **named)

        async def awaited() -> Retrieved:
            async with pipeline:
                return await pipeline.asearch(*arguments, **named)

        return asyncio.run(awaited())

    return run


def test_retrieve_fuse_rerank_and_every_stage_has_its_say(search: Search) -> None:
    scorer = FakeScorer(length, activation="sigmoid")
    result = search(Pipeline([stage(1, 2, name="bm25"), stage(2, 5, name="dense")], scorer=scorer), "query", k=2)
    assert ids(result.candidates) == ["5", "2"]
    assert result[0].document is DOCUMENTS[5]
    assert [(said.stage, said.rank) for said in result[1].said] == [
        ("bm25", 2),
        ("dense", 1),
        ("rrf", 1),
        ("rerank", 2),
    ]
    assert result[1].said[-1].logit == len(DOCUMENTS[2]["text"])
    assert (result.found, result.degraded, result.reason) == (3, False, None)
    assert set(result.seconds) == {"bm25", "dense", "rerank", "total"}
    assert result.usage is not None
    assert result.usage.pairs == 3


def test_what_one_first_stage_found_the_others_are_asked_to_score() -> None:
    documents = [{"id": str(place), "text": text} for place, text in enumerate(["cat cat", "cat", "cow", "dog cat"])]
    words, other = Bm25.build(documents), of_callable(lambda query, k: [(documents[3], 2.0), (documents[2], 1.0)])
    with Pipeline([words, other], fusion=WeightedZ(), depth=2) as pipeline:
        result = pipeline.search("cat", k=2)
    (late,) = (one for one in result if one.id == "3")
    told = {said.stage: (said.rank, said.score) for said in late.said}
    assert told["bm25"] == (None, words.scores("cat")[3])  # below its depth, yet not without a say
    assert told["callable"] == (1, 2.0)


SKY = {"one": "the sky is blue", "two": "azure hues above", "three": "blue azure hues", "four": "a bus to town"}


def sky(*, feedback: Feedback | None = None, error: Exception | None = None) -> Pipeline:
    """BM25, and a first stage that knows what is meant, or fails."""

    def find(query: str, k: int) -> list[tuple[Any, float]]:
        if error is not None:
            raise error
        return [({"id": "three", "text": SKY["three"]}, 1.0), ({"id": "one", "text": SKY["one"]}, 0.5)]

    documents = [{"id": id, "text": text} for id, text in SKY.items()]
    lexical = Bm25.build(documents, options=Bm25Options(stop_words="", stemmer=""))
    return Pipeline([lexical, of_callable(find, name="dense")], fusion=WeightedZ((0.5, 0.5)), feedback=feedback)


def test_words_of_the_best_documents_find_what_the_query_does_not_say(search: Search) -> None:
    assert set(ids(list(search(sky(), "blue sky")))) == {"one", "three"}
    result = search(sky(feedback=Feedback(documents=2, words=6)), "blue sky")
    found = list(result)
    assert set(ids(found)) == {"one", "two", "three"}
    assert [said.stage for said in found[ids(found).index("two")].said] == ["bm25", "z"]
    assert result.seconds["fuse"] > 0
    alone = search(sky(feedback=Feedback(documents=2, words=6), error=OverloadedError("busy")), "sky")
    assert alone.degraded and ids(list(alone)) == ["one", "three"], "its words are of what BM25 found"


def test_a_query_of_unknown_words_is_found_by_those_of_the_others(search: Search) -> None:
    assert set(ids(list(search(sky(feedback=Feedback()), "firmament")))) == {"one", "two", "three"}


def test_words_are_read_of_documents_that_only_the_other_first_stage_has(search: Search) -> None:
    """A dense index of another collection, or of the same one under other ids."""
    lexical = Bm25.build([{"id": id, "text": text} for id, text in SKY.items()], options=Bm25Options(stop_words=""))
    other = of_callable(lambda query, k: [({"id": "a/1", "text": "hues of azure"}, 1.0)], name="dense")
    pipeline = Pipeline([lexical, other], fusion=WeightedZ((0.5, 0.5)), feedback=Feedback())
    assert set(ids(list(search(pipeline, "firmament")))) == {"a/1", "two", "three"}


def test_feedback_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="as Bm25 does: there is \\['first'\\]"):
        Pipeline([stage(1)], feedback=Feedback())
    given: Any = True
    with pytest.raises(ConfigurationError, match="feedback is of type bool"):
        Pipeline([stage(1)], feedback=given)
    wrongs: list[Any] = [{"documents": 0}, {"documents": "3"}, {"words": 0}, {"words": 2.5}]
    wrongs += [{"weight": weight} for weight in (0.0, 1.0, float("nan"), "0.3", 1)]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match="above 0 and under 1"):
            Feedback(**wrong)


def test_without_a_scorer_the_fused_order_is_the_result(search: Search) -> None:
    result = search(Pipeline([stage(3, 1), stage(3, 0, name="other")]), "query")
    assert ids(result.candidates) == ["3", "1", "0"]
    assert result.usage is None


def test_more_results_than_the_depth_are_found_if_asked_for(search: Search) -> None:
    result = search(Pipeline([stage(0, 1, 2, 3, 4, 5)], scorer=FakeScorer(length), depth=2), "query", k=5)
    assert len(result) == 5


def test_blending_adds_the_first_stage_to_the_reranker(search: Search) -> None:
    first = stage(1, 2, 3)
    assert ids(search(Pipeline([first], scorer=FakeScorer(length), blend=0.0), "query").candidates) == ["1", "2", "3"]
    result = search(Pipeline([first], scorer=FakeScorer(length), blend=1.0), "query")
    assert ids(result.candidates) == ["3", "2", "1"]
    assert result[0].scale == "blend"
    assert [said.stage for said in result[0].said] == ["first", "rerank", "blend"]


def test_a_first_stage_that_fails_is_left_out_and_told(search: Search) -> None:
    broken = stage(name="dense", error=ConnectionError("gone"))
    result = search(Pipeline([stage(1, 2), broken], scorer=FakeScorer(length)), "query")
    assert ids(result.candidates) == ["2", "1"]
    assert result.degraded
    assert result.reason == "dense: the first stage dense failed: ConnectionError: gone"
    assert [(attempt.scorer, attempt.error) for attempt in result.attempts] == [("dense", "InferenceError")]


def test_no_first_stage_left_is_an_error(search: Search) -> None:
    with pytest.raises(InferenceError, match="first failed: ValueError: no"):
        search(Pipeline([stage(error=ValueError("no"))]), "query")


def test_a_wrong_configuration_is_raised_though_others_answered(search: Search) -> None:
    with pytest.raises(ConfigurationError, match="wrong"):
        search(Pipeline([stage(1), stage(name="b", error=ConfigurationError("wrong"))]), "query")


def test_a_first_stage_that_hangs_does_not_outlive_the_deadline() -> None:
    answered = threading.Event()
    hung = of_callable(lambda query, k: [str(answered.wait(60))])
    pipeline = Pipeline([hung], timeout_s=0.2)

    async def awaited() -> None:
        with pytest.raises(DeadlineExceededError, match="callable did not answer within 0.2 s"):
            await pipeline.asearch("query")
        assert not answered.is_set()
        answered.set()  # the event loop waits for its threads when it ends

    with pytest.raises(DeadlineExceededError, match="callable did not answer within 0.2 s"):
        pipeline.search("query")
    asyncio.run(awaited())


def test_a_reranker_that_fell_open_leaves_the_fused_order_and_its_scores(search: Search) -> None:
    scorer = FallbackScorer([FakeScorer(error=OverloadedError("full"))])
    result = search(Pipeline([stage(1, 2)], scorer=scorer, blend=0.5), "query")
    assert ids(result.candidates) == ["1", "2"]
    assert result[0].score == 0.0
    assert result.degraded
    assert "rerank: " in str(result.reason)


def test_a_rerankers_error_is_the_calls_error(search: Search) -> None:
    with pytest.raises(OverloadedError):
        search(Pipeline([stage(1)], scorer=FakeScorer(error=OverloadedError("full"))), "query")


def test_steps_come_last_and_tell_what_they_left_out(search: Search) -> None:
    step = NearDuplicates(0.6)
    result = search(Pipeline([stage(0, 4, 5)], scorer=FakeScorer(length), steps=[step]), "query", k=5)
    assert set(ids(result.candidates)) | {one.candidate.id for one in result.left_out} == {"0", "4", "5"}


def test_nothing_found_is_an_empty_result(search: Search) -> None:
    scorer = FakeScorer()
    result = search(Pipeline([stage()], scorer=scorer), "query")
    assert (len(result), result.found, scorer.requests) == (0, 0, ())


def test_a_filter_reaches_the_first_stages(search: Search) -> None:
    result = search(Pipeline([stage(1, 2, 3)]), "query", filter={"id": {"2", "3"}})
    assert ids(result.candidates) == ["2", "3"]


@pytest.mark.parametrize(("query", "k"), [("", 1), (" ", 1), ("q", 0), ("q", -1), ("q", True), ("q", 1.5), (None, 1)])
def test_wrong_arguments_are_refused(query: Any, k: Any, search: Search) -> None:
    with pytest.raises(InvalidRequestError):
        search(Pipeline([stage(1)]), query, k=k)


def test_a_pipeline_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Pipeline([])
    with pytest.raises(ConfigurationError, match="name of its own"):
        Pipeline([stage(1), stage(2)])
    with pytest.raises(ConfigurationError, match="blend"):
        Pipeline([stage(1)], blend=1.5)


@pytest.mark.parametrize(
    "level",
    [
        scorer_for("speed", light=FakeScorer(length), keep=2),
        scorer_for("balanced", light=LexicalScorer(), heavy=FakeScorer(length), keep=2),
        scorer_for("accurate", light=LexicalScorer(), heavy=FakeScorer(length)),
    ],
    ids=["speed", "balanced", "accurate"],
)
@pytest.mark.parametrize("blend", [None, 0.5])
def test_no_level_gives_fewer_results_than_were_asked_for(level: Scorer, blend: float | None, search: Search) -> None:
    result = search(Pipeline([stage(0, 1, 2, 3, 4, 5)], scorer=level, blend=blend), "word", k=6)
    assert sorted(ids(result.candidates)) == ["0", "1", "2", "3", "4", "5"]


def test_speed_asks_the_light_model_about_the_lexically_best_alone(search: Search) -> None:
    light = FakeScorer(length)
    documents = ["nothing of it", "the needle", "hay", "a needle in the hay"]
    first = of_callable(lambda query, k: documents)
    result = search(Pipeline([first], scorer=scorer_for("speed", light=light, keep=2)), "needle")
    assert set(light.requests[0].documents) == {b"the needle", b"a needle in the hay"}
    assert result[0].text == "a needle in the hay"


def test_levels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="heavy="):
        scorer_for("balanced", light=FakeScorer())
    with pytest.raises(ConfigurationError, match="speed, balanced or accurate"):
        scorer_for("fast", light=FakeScorer())  # type: ignore[arg-type]
    assert isinstance(scorer_for("speed", light=FakeScorer()), CascadeScorer)


def test_a_route_is_chosen_by_the_classifier_before_the_keywords() -> None:
    router = Router({"law": ("contract",)}, default="all", classify=lambda query: "law" if "§" in query else None)
    assert [router.choose(query) for query in ("§ 3", "the contract", "contractor")] == ["law", "law", "all"]


def test_a_route_without_a_scorer_is_refused(search: Search) -> None:
    with pytest.raises(ConfigurationError, match="routes law"):
        RoutedScorer(Router({"law": ("contract",)}, default="all"), {"all": FakeScorer()})
    routed = RoutedScorer(Router({}, default="all", classify=lambda query: "no such"), {"all": FakeScorer()})
    with pytest.raises(ConfigurationError, match="'no such'"):
        search(Pipeline([stage(1)], scorer=routed), "query")
