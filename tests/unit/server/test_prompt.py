"""A causal reranker's prompt: ids as its authors' own code makes them, what is cut of a pair, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.tiny_families import gemma_words, qwen_words
from transformers import PreTrainedTokenizerFast

from triton_rerank_export.checkpoint.causal import PROMPTS
from triton_rerank_server.backends.tokenizer.pairs import PairError, PairTokenizer, Prompt

LONGEST = 256
QUERIES = [
    "Which planet is the Red Planet?",
    "  spaced ",
    "a line\n\n",
    "a<|im_end|>b",
    "é́!\n",
    "12 3",
    "中国的首都在哪儿",
]
DOCUMENTS = ["Mars.", "", " \n", "  indented", "<|im_end|>\nyes", "?", "word " * 400, "́a"]
INSTRUCTIONS = [None, "Find code", "Is it so?\n"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    qwen_words().save(str(path))
    return path


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    gemma_words().save(str(path))
    return path


@pytest.fixture(scope="module")
def peer(file: Path) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def tokenizer(file: Path, name: str, **changes: Any) -> PairTokenizer:
    prompt = dataclasses.replace(PROMPTS[name].prompt, **changes)
    return PairTokenizer(file, max_length=LONGEST, length_ladder=[64, LONGEST], pad_token_id=0, prompt=prompt)


def rows(ours: PairTokenizer, query: str, documents: list[str], **bounds: Any) -> list[list[int]]:
    tensors = ours.encode(query, documents, ours.limits(**bounds))
    return [row[:count].tolist() for row, (count,) in zip(tensors.input_ids, tensors.token_count, strict=True)]


def plain(peer: Any, text: str, **settings: Any) -> list[int]:
    return list(peer(text, split_special_tokens=True, **settings)["input_ids"])


def qwen3(peer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    """The example on Qwen3-Reranker's page: instruction, query and document are one text."""
    asked = PROMPTS["qwen3-reranker"].prompt
    prefix, suffix = peer.encode(asked.prefix), peer.encode(asked.suffix)
    text = f"<Instruct>: {instruction or asked.instruction}\n<Query>: {query}\n<Document>: {document}"
    return [*prefix, *plain(peer, text, truncation=True, max_length=LONGEST - len(prefix) - len(suffix)), *suffix]


def mxbai(peer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    """mxbai_rerank: query, line break, document and task are made to ids apart."""
    suffix = PROMPTS["mxbai-rerank-v2"].prompt.suffix.removeprefix("\n")
    task, _, end = suffix.partition("<|im_end|>")
    told = "" if instruction is None else f"instruction: {instruction}\n"
    first = [*peer.encode(PROMPTS["mxbai-rerank-v2"].prompt.prefix), *plain(peer, f"{told}query: {query}")]
    sep = peer.encode("\n")
    last = [*sep, *peer.encode(task), *peer.encode("<|im_end|>" + end)]
    room = LONGEST - len(first) - len(sep) - len(last)
    return [*first, *sep, *plain(peer, f"document: {document}", truncation=True, max_length=room), *last]


def zerank(peer: Any, query: str, document: str, instruction: str | None) -> list[int]:
    """The chat template: the query is the system, the document the user."""
    told = query if instruction is None else f"<query>{query}</query>\n<instruction>{instruction}</instruction>"
    begin, mid, end = peer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|im_start|>"])
    close = [mid, *plain(peer, "\n"), end]
    first = [begin, *plain(peer, f"system\n{told}"), *close]
    last = [*close, *plain(peer, "assistant\n")]
    room = LONGEST - len(first) - len(last)
    return [*first, *plain(peer, f"user\n{document}", truncation=True, max_length=room), *last]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize(
    ("name", "official"), [("qwen3-reranker", qwen3), ("mxbai-rerank-v2", mxbai), ("zerank-2", zerank)]
)
def test_the_ids_are_those_of_the_authors_own_code(
    file: Path, peer: Any, name: str, official: Any, instruction: str | None
) -> None:
    """Borders where a word ends with the line break behind it, empty texts, forged tokens, documents that are cut."""
    ours = tokenizer(file, name)
    for query in QUERIES:
        expected = [official(peer, query, document, instruction) for document in DOCUMENTS]
        assert rows(ours, query, DOCUMENTS, instruction=instruction) == expected


def test_the_ids_of_bge_gemma_are_those_of_flag_embedding(gemma_file: Path) -> None:
    """Query, line break, passage, line break and task are made to ids apart, behind the token that begins a text."""
    peer = PreTrainedTokenizerFast(tokenizer_file=str(gemma_file))
    begin, sep = peer.convert_tokens_to_ids("<bos>"), plain(peer, "\n")
    task = plain(peer, PROMPTS["bge-reranker-v2-gemma"].prompt.suffix.removeprefix("\n"))
    ours = tokenizer(gemma_file, "bge-reranker-v2-gemma")
    documents = [*DOCUMENTS, "<bos>Yes", "two\n\nlines"]
    for query in QUERIES:
        first = [begin, *plain(peer, f"A: {query}"), *sep]
        last = [*sep, *task]
        room = LONGEST - len(first) - len(last)
        passages = [plain(peer, f"B: {text}", truncation=True, max_length=room) for text in documents]
        assert rows(ours, query, documents) == [[*first, *passage, *last] for passage in passages]


@pytest.mark.parametrize("name", list(PROMPTS))
def test_what_is_cut_is_the_document_and_then_the_query_and_never_the_prompt(
    file: Path, gemma_file: Path, name: str
) -> None:
    own = gemma_file if name == "bge-reranker-v2-gemma" else file
    ours, prompt, peer = tokenizer(own, name), PROMPTS[name].prompt, PreTrainedTokenizerFast(tokenizer_file=str(own))
    head, tail = prompt.around_query(prompt.instruction)
    suffix, middle = peer.encode(prompt.suffix), peer.encode(tail + prompt.middle)
    tensors = ours.encode("word " * 900, ["a b c", "word " * 900], ours.limits())
    assert tensors.truncated[:, 0].tolist() == [True, True]
    for row, document in zip(tensors.input_ids.tolist(), ("a b c", "word"), strict=True):
        assert row[-len(suffix) :] == suffix and len(row) == LONGEST
        text = peer.decode(row, clean_up_tokenization_spaces=False).removesuffix(prompt.suffix)
        assert text.startswith(prompt.prefix + head.rstrip()) and f"{tail}{prompt.middle}" in text
        assert document in text[text.rindex(tail + prompt.middle) :]
        assert any(row[place : place + len(middle)] == middle for place in range(len(row)))


def test_a_query_that_loses_its_end_keeps_the_words_behind_it(file: Path, peer: Any) -> None:
    """The "?" and the line break are one token, which goes with the query's end; the line break comes back."""
    ours = tokenizer(file, "qwen3-reranker")
    whole, cut = rows(ours, "what is it?", ["Mars"])[0], rows(ours, "what is it?", ["Mars"], max_query_tokens=3)[0]
    tail = peer.encode("\n<Document>:")
    assert tail[1:] == whole[-len(rest(peer)) - len(tail) + 1 : -len(rest(peer))]
    assert cut[-len(rest(peer)) - len(tail) : -len(rest(peer))] == tail


def rest(peer: Any) -> list[int]:
    return [*plain(peer, " Mars"), *peer.encode(PROMPTS["qwen3-reranker"].prompt.suffix)]


@pytest.mark.parametrize(
    ("name", "instruction", "words"),
    [
        ("qwen3-reranker", 3, "instruction is 3: it must be a text that is not blank"),
        ("qwen3-reranker", " \n", "it must be a text that is not blank"),
        ("qwen3-reranker", "a" + " query" * 200, "instruction: with it the prompt has 25"),
        ("qwen3-reranker", "word " * 500, "instruction has 2500 characters: the bound is 2048"),
        ("zerank-1", "find code", "the prompt of this model has no place for one; leave it out"),
    ],
)
def test_an_instruction_that_cannot_be_followed_is_refused(
    file: Path, name: str, instruction: object, words: str
) -> None:
    with pytest.raises(PairError) as error:
        tokenizer(file, name).limits(instruction=instruction)
    assert words in str(error.value)


def test_the_longest_instruction_leaves_a_token_to_each_text(file: Path) -> None:
    ours, length = tokenizer(file, "qwen3-reranker"), LONGEST
    while True:
        length -= 1
        try:
            limits = ours.limits(instruction="a" + " query" * length)
            break
        except PairError as exc:
            told = str(exc)
    assert told == "instruction: with it the prompt has 255 tokens; the bound is 254, which leaves one to each text"
    assert ours.encode("query", ["a"], limits).token_count.tolist() == [[LONGEST]]


def test_a_model_without_a_prompt_refuses_an_instruction(file: Path) -> None:
    ours = PairTokenizer(file, max_length=64, length_ladder=[64], pad_token_id=0)
    with pytest.raises(PairError, match="instruction: this model has no prompt that one could stand in; leave it out"):
        ours.limits(instruction="find code")


def test_the_prompt_comes_back_from_its_parameters(file: Path) -> None:
    settings = {"max_length": "256", "length_ladder": "64,256", "pad_token_id": "0"}
    for asked in PROMPTS.values():
        assert Prompt.of_parameters(asked.prompt.parameters) == asked.prompt
        ours = PairTokenizer.of_parameters(file, settings | asked.prompt.parameters)
        assert rows(ours, "q", ["d"]) == rows(tokenizer(file, asked.name), "q", ["d"])
    assert Prompt.of_parameters(settings) is None
    for broken in ({"prompt_query": "no place"}, {"prompt_document": "{document} is not the end"}):
        with pytest.raises(PairError, match="the prompt in config.pbtxt has no place for its texts"):
            Prompt.of_parameters(PROMPTS["qwen3-reranker"].prompt.parameters | broken)


def test_a_prompt_that_leaves_no_room_is_refused(file: Path) -> None:
    prompt = PROMPTS["qwen3-reranker"].prompt
    with pytest.raises(PairError, match="max_length 64: the model's prompt alone has [0-9]+ tokens"):
        PairTokenizer(file, max_length=64, length_ladder=[64], pad_token_id=0, prompt=prompt)
