"""The published scores held against a real server; PyTorch's own logits of a tiny model stand in for a card."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from triton_rerank import ConfigurationError, RerankClient
from triton_rerank_export.checkpoint.catalogue import CATALOGUE
from triton_rerank_export.checkpoint.published import PublishedScore, read_scores
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.reference import Reference
from triton_rerank_export.gate.verify import format_report, judge, published_scores, verify
from triton_rerank_server import TritonServer

TEXTS = {
    "how do I compress a file?": ["Use gzip to make the file smaller.", "", "Berlin is known for its museums. " * 30],
    "what is panda?": ["hi", "The giant panda is a bear species endemic to China."],
}
PAIR = PublishedScore("query", "passage", -5.65, 0.05)


def recorded(folder: Path, max_length: int) -> list[PublishedScore]:
    """Scores as PyTorch gives them, queries in turn: a file need not keep a query's documents together."""
    reference = Reference(folder, max_length=max_length)
    rows = [
        (place, PublishedScore(query, document, float(logit)))
        for query, documents in TEXTS.items()
        for place, (document, logit) in enumerate(zip(documents, reference.logits(query, documents), strict=True))
    ]
    return [score for _, score in sorted(rows, key=lambda row: row[0])]


def moved(scores: list[PublishedScore], place: int, by: float) -> list[PublishedScore]:
    score = dataclasses.replace(scores[place], logit=scores[place].logit + by)
    return [*scores[:place], score, *scores[place + 1 :]]


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
def test_a_server_that_gives_the_published_scores_is_right(
    server: TritonServer, checkpoints: dict[str, Path], name: str
) -> None:
    scores = recorded(checkpoints[name], 128)
    with RerankClient(server.grpc_target, model=name, timeout_s=60.0) as client:
        report = verify(client, scores)
        assert report.ok
        assert [row.published for row in report.rows] == scores
        assert max(abs(row.difference) for row in report.rows) < 1e-4
        assert f"{name} (fp32): 5 of 5 pairs within their tolerance" in format_report(report)


@pytest.mark.parametrize("by", [0.0101, -0.0101, 5.0])
def test_one_score_that_is_off_is_wrong_and_its_row_says_so(
    server: TritonServer, checkpoints: dict[str, Path], by: float
) -> None:
    scores = moved(recorded(checkpoints["tiny-bert"], 128), 3, by)
    with RerankClient(server.grpc_target, model="tiny-bert", timeout_s=60.0) as client:
        report = verify(client, scores)
    assert not report.ok
    assert [row.ok for row in report.rows] == [True, True, True, False, True]
    lines = format_report(report).splitlines()
    assert [line.endswith("WRONG") for line in lines] == [False, False, False, False, True, False, False]
    assert f"{-by:+.4f}" in lines[4]
    assert lines[-1] == "tiny-bert (fp32): 4 of 5 pairs within their tolerance"


def test_int8_is_held_to_the_order(server: TritonServer, checkpoints: dict[str, Path]) -> None:
    scores = recorded(checkpoints["minilm-l6-demo"], 512)
    with RerankClient(server.grpc_target, model="minilm-l6-demo", timeout_s=60.0) as client:
        report = verify(client, scores)
        assert report.ok
        assert max(abs(row.difference) for row in report.rows) > 1e-3  # it is int8
        assert "int8 moves logits by design, so the differences are not judged" in format_report(report)
        turned = [dataclasses.replace(score, logit=-score.logit) for score in scores]
        wrong = verify(client, turned)
    assert not wrong.ok
    assert "WRONG" in format_report(wrong)


def test_a_model_that_the_server_does_not_have_is_the_clients_error(server: TritonServer) -> None:
    with (
        RerankClient(server.grpc_target, model="no-such-model", timeout_s=60.0) as client,
        pytest.raises(ConfigurationError, match="no-such-model"),
    ):
        verify(client, [PAIR])


@pytest.mark.parametrize(
    ("precision", "got", "ok"),
    [
        ("fp32", -5.65 + 0.04, True),
        ("fp32", -5.65 + 0.06, False),
        ("fp16", -5.65 - 0.04, True),
        ("fp16", -5.65 - 0.06, False),
        ("fp32", math.nan, False),
    ],
)
def test_the_cards_tolerance_holds(precision: str, got: float, ok: bool) -> None:
    assert judge("m", precision, [PAIR], [got]).ok is ok


def test_fp16_is_given_what_fp16_needs() -> None:
    strict = PublishedScore("q", "d", 8.607, 0.01)
    assert not judge("m", "fp32", [strict], [8.607 + 0.03]).ok
    report = judge("m", "fp16", [strict], [8.607 + 0.03])
    assert report.ok
    assert report.rows[0].tolerance == 0.05
    assert not judge("m", "fp16", [strict], [8.607 + 0.06]).ok


def test_in_int8_only_documents_of_one_query_that_lie_apart_are_compared() -> None:
    scores = [
        PublishedScore("a", "1", 3.0),
        PublishedScore("a", "2", 1.0),
        PublishedScore("a", "3", 1.005),
        PublishedScore("b", "4", 9.0),
    ]
    assert judge("m", "int8", scores, [2.0, 0.6, 0.5, -9.0]).ok
    report = judge("m", "int8", scores, [0.55, 0.6, 0.5, -9.0])
    assert [row.ok for row in report.rows] == [False, False, True, True]
    assert not judge("m", "int8", scores, [1.0, 1.0, 1.0, 1.0]).ok  # all equal is no order
    with pytest.raises(ExportError, match="held to the order of documents, and the scores have no query with"):
        judge("m", "int8", [scores[0], scores[3]], [1.0, 2.0])


def test_the_catalogue_gives_the_scores_of_a_model_by_name_or_id() -> None:
    scores = CATALOGUE["ms-marco-minilm-l6-v2"].scores
    assert published_scores("ms-marco-minilm-l6-v2") == scores
    assert published_scores("cross-encoder/ms-marco-MiniLM-L-6-v2") == scores


@pytest.mark.parametrize("model", ["bce-reranker-base_v1", "minilm-l6-demo", "somebody's"])
def test_a_model_without_published_scores_needs_a_file(model: str) -> None:
    expected = f"{model}: the catalogue has no published scores of it; pass --scores FILE, JSON lines with query"
    with pytest.raises(ExportError, match=re.escape(expected)):
        published_scores(model)


def test_scores_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    lines = [
        {"query": "q", "document": "ü", "logit": 1},
        {"query": "q", "document": "", "logit": -2.5, "tolerance": 0.2},
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    assert read_scores(path) == [PublishedScore("q", "ü", 1.0, 0.01), PublishedScore("q", "", -2.5, 0.2)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: not JSON ("),
        ("[1]", "line 2: a JSON object was expected, not list"),
        ('{"document": "d", "logit": 1}', "line 2: query is None; a text was expected"),
        ('{"query": "q", "document": 5, "logit": 1}', "line 2: document is 5; a text was expected"),
        ('{"query": "q", "document": "d"}', "line 2: logit is None; a finite number was expected"),
        ('{"query": "q", "document": "d", "logit": "1"}', "line 2: logit is '1'; a finite number was expected"),
        ('{"query": "q", "document": "d", "logit": true}', "line 2: logit is True; a finite number was expected"),
        ('{"query": "q", "document": "d", "logit": NaN}', "line 2: logit is nan; a finite number was expected"),
        ('{"query": "q", "document": "d", "logit": 1, "tolerance": 0}', "line 2: tolerance is 0.0; it must be above 0"),
    ],
)
def test_a_line_that_is_no_score_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"query": "q", "document": "d", "logit": 1}}\n{line}\n')
    with pytest.raises(ExportError, match=re.escape(f"{path}, {expected}")):
        read_scores(path)


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "cannot be read ("), (b"", "it is empty; "), (b"\xff\xfe", "cannot be read (")]
)
def test_a_file_that_is_no_list_of_scores_is_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "scores.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=re.escape(f"{path}: {expected}")):
        read_scores(path)
