"""The pairs that static int8 is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triton_rerank_export.gate import parity
from triton_rerank_export.graph.static_int8 import CALIBRATION_SET, calibration_feeds
from triton_rerank_export.repository.triton_config import length_ladder
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def tokenizer(checkpoints: dict[str, Path]) -> PairTokenizer:
    path = checkpoints["tiny-bert"] / "tokenizer.json"
    return PairTokenizer(path, max_length=128, length_ladder=length_ladder(128), pad_token_id=0)


def test_the_gate_compares_none_of_its_texts() -> None:
    """Else the gate would say nothing of other texts."""
    calibration, gate = (
        {text for entry in parity.read_queries(path) for text in (entry.query, *entry.documents)}
        for path in (CALIBRATION_SET, parity.PARITY_SET)
    )
    assert len(calibration) > 50
    assert not calibration & gate


def test_every_pair_comes_by_itself_without_padding(tokenizer: PairTokenizer) -> None:
    feeds = list(calibration_feeds(tokenizer, INPUTS))
    assert len(feeds) > 80
    for feed in feeds:
        assert tuple(feed) == INPUTS
        assert {array.shape for array in feed.values()} == {(1, feed["input_ids"].shape[1])}
        assert (feed["attention_mask"] == 1).all()


def test_the_lengths_are_those_of_traffic(tokenizer: PairTokenizer) -> None:
    """From a query without a document up to the longest pair that the model takes."""
    lengths = [feed["input_ids"].shape[1] for feed in calibration_feeds(tokenizer, INPUTS)]
    assert min(lengths) < 16
    assert max(lengths) == 128
    assert len(set(np.array(lengths) // 16)) == 9  # every step of 16 between them


def test_inputs_that_the_model_lacks_are_left_out(tokenizer: PairTokenizer) -> None:
    assert tuple(next(calibration_feeds(tokenizer, INPUTS[:2]))) == INPUTS[:2]
