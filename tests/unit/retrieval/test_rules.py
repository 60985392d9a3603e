"""Rules: worked examples of three fields, and what must hold for all rules."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.candidates import candidate, ids

from triton_rerank import ConfigurationError, RerankClient
from triton_rerank.testing import FakeScorer
from triton_rerank_retrieval import (
    Boost,
    Candidate,
    Only,
    Pipeline,
    Recency,
    RoutedScorer,
    Router,
    Rules,
    Safety,
    Threshold,
    of_callable,
    with_context,
)

CLINICAL = [
    {"id": "statin", "text": "Statin therapy lowers cholesterol in adults.", "specialty": "cardiology"},
    {"id": "penicillin", "text": "Penicillin V is the first choice for tonsillitis.", "specialty": "infection"},
    {"id": "macrolide", "text": "For tonsillitis and penicillin allergy give a macrolide.", "specialty": "infection"},
    {"id": "withdrawn", "text": "WITHDRAWN: chloramphenicol for tonsillitis in adults.", "specialty": "infection"},
]


def common_words(query: str, document: str) -> float:
    """A model that knows words and no punctuation."""
    asked, read = (set(re.findall(r"\w+", text.lower())) for text in (query, document))
    return float(len(asked & read))


def test_clinical_search_knows_the_patient_the_specialty_and_what_is_unsafe() -> None:
    router = Router({"cardiology": ("cholesterol", "chest pain")}, default="general")
    scorer = RoutedScorer(
        router, {"cardiology": FakeScorer(common_words, model="heart"), "general": FakeScorer(common_words)}
    )
    rules = Rules([Safety(r"\bwithdrawn\b"), Threshold(1.0, {"cardiology": 2.0}, router.choose)])
    with Pipeline([of_callable(lambda query, k: CLINICAL)], scorer=scorer, steps=[rules]) as pipeline:
        result = pipeline.search("treats tonsillitis", k=3, context={"allergy": "penicillin allergy", "age": None})
        heart = pipeline.search("lowers cholesterol", k=3)
    assert result.query == "treats tonsillitis (allergy: penicillin allergy)"
    assert result[0].id == "macrolide"
    left_out = {one.candidate.id: (one.step, one.reason) for one in result.left_out}
    assert left_out["withdrawn"] == ("safety", "it says 'WITHDRAWN'")
    assert left_out["statin"] == ("threshold", "score 0 is under 1 of general")
    assert ids(heart.candidates) == ["statin"]  # two words in common; the others have none


COMPLIANCE = [
    {"id": "eu-guide", "text": "retention of records guidance", "where": "EU", "type": "guide", "from": "2025-01-01"},
    {"id": "eu-law", "text": "retention of records law", "where": "EU", "type": "law", "from": "2018-05-25"},
    {"id": "us-law", "text": "retention of records law", "where": "US", "type": "law", "from": "2002-07-30"},
    {"id": "eu-future", "text": "retention of records law to come", "where": "EU", "type": "law", "from": "2030-01-01"},
]


def test_compliance_search_obeys_jurisdiction_type_and_effective_date() -> None:
    rules = Rules(
        [
            Only({"where": "EU"}, "another jurisdiction"),
            Only({"from": lambda day: date.fromisoformat(day) <= date(2026, 1, 1)}, "not in force yet"),
            Boost(0.5, filter={"type": ("law", "regulation")}, name="binding"),
            Recency(0.1, half_life_days=365, field="from", today=date(2026, 1, 1)),
        ]
    )
    with Pipeline([of_callable(lambda query, k: COMPLIANCE)], scorer=FakeScorer(), steps=[rules]) as pipeline:
        result = pipeline.search("retention of records")
    assert ids(result.candidates) == ["eu-law", "eu-guide"]
    assert [(one.candidate.id, one.reason) for one in result.left_out] == [
        ("us-law", "another jurisdiction"),
        ("eu-future", "not in force yet"),
    ]
    guide = result[1]
    assert guide.score == pytest.approx(3.0 + 0.05)  # a year old: half of it
    assert [said.reason for said in guide.said if said.stage == "recency"] == ["+0.05, 365 days old"]


def test_a_keyword_of_the_domain_lifts_a_document_if_the_query_has_it_too() -> None:
    rules = Rules([Boost(2.0, ("GDPR", "data subject"), query_too=True)])
    found = [candidate("plain", 1.0, text="a law"), candidate("gdpr", 0.5, text="The gdpr's articles")]
    assert ids(rules.apply("what does GDPR say?", found).kept) == ["gdpr", "plain"]
    assert ids(rules.apply("what does the law say?", found).kept) == ["plain", "gdpr"]
    (said,) = rules.apply("what does GDPR say?", found).kept[0].said
    assert (said.stage, said.score, said.reason) == ("boost", 2.5, "+2 for GDPR")


def test_a_keyword_is_a_whole_word() -> None:
    rule = Boost(1.0, ("art",))
    assert rule.judge("", candidate("x", text="a start")) is None
    assert rule.judge("", candidate("x", text="state of the Art.")) is not None


def test_logits_stay_as_the_model_gave_them() -> None:
    with Pipeline(
        [of_callable(lambda query, k: COMPLIANCE)],
        scorer=FakeScorer(activation="sigmoid"),
        steps=[Rules([Boost(-0.3, ("law",))])],
    ) as pipeline:
        result = pipeline.search("retention of records law")
    with RerankClient(scorer=FakeScorer(activation="sigmoid"), text_key="text") as client:
        plain = {one.document["id"]: one for one in client.rerank("retention of records law", COMPLIANCE)}
    for one in result:
        (said,) = (said for said in one.said if said.stage == "rerank")
        assert (said.score, said.logit) == (plain[one.id].score, plain[one.id].logit)


def test_rules_for_a_models_scale_leave_another_scale_alone() -> None:
    rules = Rules([Boost(9.0, filter={"id": "b"}), Threshold(5.0), Safety("poison")])
    fused = [
        Candidate("a", "text", {"id": "a"}, 0.03, "rrf"),
        Candidate("b", "text", {"id": "b"}, 0.02, "rrf"),
        Candidate("c", "poison", {"id": "c"}, 0.01, "rrf"),
    ]
    outcome = rules.apply("q", fused)
    assert outcome.kept == fused[:2]
    assert [one.step for one in outcome.left_out] == ["safety"]


def test_a_date_that_cannot_be_read_moves_nothing() -> None:
    rule = Recency(1.0, 30, today=date(2026, 1, 1))
    assert rule.judge("", candidate("x", 1.0, document={"date": "soon"})) is None
    assert rule.judge("", candidate("x", 1.0, document={})) is None
    future = rule.judge("", candidate("x", 1.0, document={"date": date(2027, 1, 1)}))
    assert future is not None
    assert future.amount == 1.0


def test_rules_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="keywords, a filter or both"):
        Boost(1.0)
    with pytest.raises(ConfigurationError, match="half_life_days is 0"):
        Recency(1.0, 0)


def test_empty_context_leaves_the_query_as_it_is() -> None:
    assert with_context("q", {"age": None, "allergies": []}) == "q"
    assert with_context("q", {"age": 70}) == "q (age: 70)"


SCORES = st.lists(st.one_of(st.none(), st.floats(-5, 5)), max_size=8)


@given(SCORES, st.floats(-3, 3), st.floats(-3, 3))
def test_rules_keep_or_leave_out_each_candidate_once(scores: list[float | None], bound: float, amount: float) -> None:
    found: list[Candidate[Any]] = [candidate(str(place), score) for place, score in enumerate(scores)]
    outcome = Rules([Boost(amount, filter={"id": ("1", "3")}), Threshold(bound)]).apply("q", found)
    assert sorted(ids(outcome.kept) + [one.candidate.id for one in outcome.left_out]) == ids(found)
    kept = [one.score for one in outcome.kept if one.score is not None]
    assert kept == sorted(kept, reverse=True)
    assert all(score >= bound for score in kept)
