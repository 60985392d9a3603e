"""The tokenizer backend's engine against transformers, for both families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import MAX_LENGTH
from transformers import AutoTokenizer

from triton_rerank_server.backends.tokenizer.pairs import PairError, PairTokenizer

LADDER = (32, 64, 128)


def tokenizer(folder: Path, **settings: Any) -> PairTokenizer:
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    values = {"max_length": MAX_LENGTH, "length_ladder": LADDER, "pad_token_id": pad, **settings}
    return PairTokenizer(folder / "tokenizer.json", **values)


@pytest.fixture(params=["tiny-bert", "tiny-xlmr"])
def folder(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    return checkpoints[request.param]


def test_ids_and_segments_equal_transformers(folder: Path) -> None:
    peer = AutoTokenizer.from_pretrained(folder)
    query, documents = "sort in place", ["a binary heap", "", "ünï 東京 🍚 \0 x", "heap " * 300]
    tensors = tokenizer(folder).encode(query, documents)
    theirs = peer(
        [query] * 4,
        documents,
        truncation="only_second",
        max_length=MAX_LENGTH,
        padding="max_length",
        return_tensors="np",
    )
    width = tensors.input_ids.shape[1]
    assert tensors.input_ids.tolist() == theirs["input_ids"][:, :width].tolist()
    assert tensors.attention_mask.tolist() == theirs["attention_mask"][:, :width].tolist()
    if "token_type_ids" in theirs:
        assert tensors.token_type_ids.tolist() == theirs["token_type_ids"][:, :width].tolist()
    assert tensors.token_count[:, 0].tolist() == theirs["attention_mask"].sum(axis=1).tolist()
    assert tensors.truncated[:, 0].tolist() == [False, False, False, True]


def test_rows_are_padded_to_the_first_rung_that_holds_the_longest(folder: Path) -> None:
    ours = tokenizer(folder)
    widths = set()
    for words in (1, 10, 25, 40, 400):
        tensors = ours.encode("q", ["x", "heap " * words])
        longest = int(tensors.token_count.max())
        assert tensors.input_ids.shape == (2, min(rung for rung in LADDER if rung >= longest))
        widths.add(tensors.input_ids.shape[1])
    assert widths == set(LADDER)


def test_the_query_has_a_cap_of_its_own_and_its_cut_is_told(folder: Path) -> None:
    ours = tokenizer(folder)
    template = ours.template
    tensors = ours.encode("heap " * 400, ["heap"], ours.limits(max_query_tokens=10))
    assert tensors.truncated.tolist() == [[True]]
    assert tensors.token_count[0, 0] <= 10 + template.n_special + 4
    default = ours.encode("heap " * 400, ["heap " * 400])
    start = len(template.prefix) + MAX_LENGTH // 2
    assert default.input_ids[0, start : start + len(template.middle)].tolist() == template.middle
    assert default.token_count[0, 0] == MAX_LENGTH


def test_a_query_is_never_cut_to_make_room_for_a_document(folder: Path) -> None:
    ours = tokenizer(folder)
    alone = ours.encode("what keeps its largest element at the root?", [""])
    beside = ours.encode("what keeps its largest element at the root?", ["heap " * 500])
    kept = int(alone.token_count[0, 0]) - len(ours.template.suffix)
    assert beside.input_ids[0, :kept].tolist() == alone.input_ids[0, :kept].tolist()


@pytest.mark.parametrize("value", [4, 0, -1, MAX_LENGTH + 1, 64.0, "64", True, [64]])
def test_a_max_length_out_of_bounds_is_refused_with_the_bounds(folder: Path, value: object) -> None:
    with pytest.raises(PairError, match=rf"it must be a whole number from \d to {MAX_LENGTH}") as error:
        tokenizer(folder).limits(max_length=value)
    assert repr(value) in str(error.value)


def test_each_different_text_is_tokenised_once(folder: Path) -> None:
    ours = tokenizer(folder)
    assert list(ours.tokenize(["a", "b", "a", "a"])) == ["a", "b"]


def test_the_files_own_truncation_and_padding_are_ignored(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    plain = tokenizer(folder)
    cut = PairTokenizer(tmp_path / "tokenizer.json", max_length=MAX_LENGTH, length_ladder=LADDER, pad_token_id=pad)
    text = "heap sort in place"
    assert cut.encode(text, [text]).input_ids.tolist() == plain.encode(text, [text]).input_ids.tolist()


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"length_ladder": (32, 64)}, "must ascend and reach max_length 128"),
        ({"length_ladder": (64, 32, 128)}, "must ascend"),
        ({"length_ladder": ()}, "must ascend"),
        ({"pad_token_id": 10**6}, "outside this tokenizer's vocabulary"),
        ({"pad_token_id": -1}, "outside this tokenizer's vocabulary"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(PairError, match=fragment):
        tokenizer(folder, **settings)
