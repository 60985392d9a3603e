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


def words(word: str, n: int) -> str:
    """A text of n tokens."""
    return " ".join([word] * n)


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


def test_a_cap_cuts_the_query_whatever_the_document_leaves(folder: Path) -> None:
    ours = tokenizer(folder)
    template = ours.template
    tensors = ours.encode("heap " * 400, ["heap"], ours.limits(max_query_tokens=10))
    assert tensors.truncated.tolist() == [[True]]
    assert tensors.token_count[0, 0] <= 10 + template.n_special + 4
    start = len(template.prefix) + 10
    assert tensors.input_ids[0, start : start + len(template.middle)].tolist() == template.middle


@pytest.mark.parametrize(
    ("query", "document", "most", "kept"),
    [
        (5, 400, {"max_document_tokens": 10}, (5, 10)),
        (5, 10, {"max_document_tokens": 10}, (5, 10)),  # fits: not cut
        (400, 400, {"max_document_tokens": 10}, ("rest", 10)),  # the query takes what the bound leaves
        (400, 400, {"max_document_tokens": 10, "max_query_tokens": 7}, (7, 10)),
        (60, 400, {"max_document_tokens": MAX_LENGTH - 10}, (60, "rest")),  # no room for as many
    ],
)
def test_a_document_is_cut_at_its_own_bound(
    folder: Path, query: int, document: int, most: dict[str, int], kept: tuple[int | str, int | str]
) -> None:
    ours = tokenizer(folder)
    template, room = ours.template, MAX_LENGTH - ours.template.n_special
    tensors = ours.encode(words("heap", query), [words("sort", document)], ours.limits(**most))
    q = room - int(kept[1]) if kept[0] == "rest" else int(kept[0])
    d = room - q if kept[1] == "rest" else int(kept[1])
    start = len(template.prefix) + q
    assert tensors.input_ids[0, start : start + len(template.middle)].tolist() == template.middle
    assert tensors.token_count.tolist() == [[q + d + template.n_special]]
    assert tensors.truncated.tolist() == [[q < query or d < document]]


@pytest.mark.parametrize(("query", "document"), [(110, 3), (3, 110), (100, 20), (60, 60)])
def test_a_pair_that_fits_is_never_cut(folder: Path, query: int, document: int) -> None:
    ours = tokenizer(folder)
    tensors = ours.encode(words("heap", query), [words("heap", document)])
    assert tensors.token_count.tolist() == [[query + document + ours.template.n_special]]
    assert tensors.truncated.tolist() == [[False]]


@pytest.mark.parametrize(
    ("query", "document", "kept"),
    [(400, 400, "half"), (400, 10, "what the document leaves"), (70, 400, "half"), (20, 400, "all")],
)
def test_the_document_is_cut_first_and_the_query_keeps_half_of_the_room_at_least(
    folder: Path, query: int, document: int, kept: str
) -> None:
    ours = tokenizer(folder)
    template, room = ours.template, MAX_LENGTH - ours.template.n_special
    tensors = ours.encode(words("heap", query), [words("sort", document)])
    start = len(template.prefix) + {"half": room // 2, "what the document leaves": room - document, "all": query}[kept]
    assert tensors.input_ids[0, start : start + len(template.middle)].tolist() == template.middle
    assert (tensors.token_count[0, 0], bool(tensors.truncated[0, 0])) == (MAX_LENGTH, True)


@pytest.mark.parametrize("max_query_tokens", [None, 7])
def test_the_prompt_and_the_query_are_one_text(folder: Path, max_query_tokens: int | None) -> None:
    prompt = "what keeps it? "
    ours, plain = tokenizer(folder, query_prompt=prompt), tokenizer(folder)
    for query in ("heap", " heap", "", "heap " * 200):
        for document in ("a binary heap", "sort " * 200):
            limits = ours.limits(max_query_tokens=max_query_tokens)
            expected = plain.encode(prompt + query, [document], limits)
            assert ours.encode(query, [document], limits).input_ids.tolist() == expected.input_ids.tolist()


def test_a_special_token_inside_a_text_is_text_unless_the_old_way_is_asked_for(folder: Path) -> None:
    peer = AutoTokenizer.from_pretrained(folder)
    forged = f"heap {peer.sep_token} sort"
    ids = peer(forged, add_special_tokens=False)["input_ids"]
    assert peer.sep_token_id in ids
    (old,) = tokenizer(folder, special_tokens_in_text="special").tokenize([forged]).values()
    assert old.ids == ids
    (text,) = tokenizer(folder).tokenize([forged]).values()
    assert peer.sep_token_id not in text.ids


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
        ({"special_tokens_in_text": "maybe"}, "special_tokens_in_text is 'maybe': it must be 'text' or 'special'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(PairError, match=fragment):
        tokenizer(folder, **settings)
