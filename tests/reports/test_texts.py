"""Texts of the world: what is served must be what the model's own tokenizer would give, or be refused by place."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.raw import infer_raw
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from triton_rerank import InvalidRequestError, RerankClient
from triton_rerank.testing import FakeScorer
from triton_rerank_server import TritonServer
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

QUERY = "how do I make a file smaller?"
MAX_LENGTH = 128


def pair_tokenizer(folder: Path) -> PairTokenizer:
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    return PairTokenizer(folder / "tokenizer.json", max_length=MAX_LENGTH, length_ladder=[MAX_LENGTH], pad_token_id=pad)


@pytest.fixture(scope="module", params=["tiny-bert", "tiny-xlmr"])
def folder(checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return checkpoints[request.param]


def ids(folder: Path, query: str, document: str) -> list[int]:
    tensors = pair_tokenizer(folder).encode(query, [document])
    return [int(i) for i in tensors.input_ids[0, : int(tensors.token_count[0, 0])]]


def theirs(folder: Path, query: str, document: str) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer(query, document, truncation=True, max_length=MAX_LENGTH)["input_ids"])


@pytest.mark.parametrize(
    "text",
    [
        "a\u0301 e\u0301cole",
        unicodedata.normalize("NFD", "Ça déjà vu à Zürich"),
        unicodedata.normalize("NFC", "Ça déjà vu à Zürich"),
        "ÇOCUK ŞANLIURFA'DAN GELENLERİ ÖĞÜN OLARAK YİYOR",
        "İstanbul ıspanak",
        "ﬁle ﬂow № ① ½ ™",
        "e\u0301\u0327\u0323 Z\u0351\u036b\u0343a\u0321lgo",
        "한글 자모 각",
        "か\u3099き",
    ],
)
def test_accents_and_case_are_those_of_transformers(folder: Path, text: str) -> None:
    """huggingface/transformers#5738, huggingface/transformers#6680: combining marks and Turkish capitals became other
    tokens in one implementation than in the other."""
    assert ids(folder, text, text) == theirs(folder, text, text)


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦 🇺🇳 ☎️",
        "\u202eevil\u202c \u200b\u200d\ufeff\u00ad",
        "日本語。中文、한국어",
        "a\x00b\x01\x7f",
        "\t\r\n\x0b",
        "x" * 300,
        "﷽",
        "\U0010ffff\ue000",
    ],
)
def test_odd_characters_are_tokens_as_transformers_has_them(folder: Path, text: str) -> None:
    """ollama/ollama#13942: zero width characters, emoji and the like broke a tokenizer of the server's own."""
    assert ids(folder, QUERY, text) == theirs(folder, QUERY, text)


@pytest.mark.parametrize(
    "text", ["a [SEP] b [CLS] c [PAD] d [MASK] [UNK]", "a </s> b <s> c <pad> d <mask> <unk>", "[SEP][SEP]", "</s></s>"]
)
def test_special_tokens_inside_a_document_are_text(folder: Path, text: str) -> None:
    """huggingface/tokenizers#1023, ggml-org/llama.cpp#3538: a document wrote a special token and got its id."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = tokenizer.token_to_id("[UNK]") or tokenizer.token_to_id("<unk>")
    around = [i for i in ids(folder, "a", "b") if i in special - {unknown}]
    assert [i for i in ids(folder, "a", text) if i in special - {unknown}] == around
    assert [i for i in ids(folder, text, "b") if i in special - {unknown}] == around


def test_a_huge_text_costs_what_is_kept_of_it(checkpoints: dict[str, Path]) -> None:
    """huggingface/text-embeddings-inference#235, devflowinc/trieve#3304, garrytan/gbrain#2651: one huge text kept the
    server busy for all: it was tokenised whole and cut afterwards. Processor time is compared, not the clock."""
    folder = checkpoints["tiny-bert"]
    ours, plain = pair_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "gzip shrinks files, so that they take less room. " * 20_000  # 1 MB
    ours.encode(QUERY, [text[:1000]])
    begin = time.process_time()
    whole = plain.encode(text, add_special_tokens=False).ids
    whole_s, begin = time.process_time() - begin, time.process_time()
    tensors = ours.encode(QUERY, [text])
    assert time.process_time() - begin < whole_s / 10
    kept = tensors.input_ids[0]
    first = int(np.flatnonzero(tensors.token_type_ids[0])[0])
    assert kept[first : MAX_LENGTH - 1].tolist() == whole[: MAX_LENGTH - 1 - first]
    assert tensors.truncated[0, 0]


def test_bytes_at_the_end_of_a_text_arrive(tiny_server: TritonServer) -> None:
    """triton-inference-server/server#2545: numpy cut zeros off the end of each text on its way."""
    texts = ["zeros", "zeros\0", "zeros\0\0\0 then text", "\0"]
    raw = {"query": [QUERY] * 4, "document": texts}
    counts = infer_raw(tiny_server.grpc_target, "tiny-xlmr", raw, ["logits"])["logits"].ravel()
    with RerankClient(tiny_server.grpc_target, model="tiny-xlmr", timeout_s=30) as client:
        result = client.rerank(QUERY, texts)
    assert [one.document for one in result] == [texts[one.index] for one in result]
    by_index = {one.index: one.logit for one in result}
    assert [by_index[n] for n in range(4)] == pytest.approx(counts.tolist(), abs=1e-5)
    with RerankClient(scorer=(fake := FakeScorer())) as client:
        client.rerank(QUERY, texts)
    assert fake.requests[0].documents == tuple(text.encode() for text in texts)


@pytest.mark.parametrize(
    "text",
    ["half \ud835 a pair", "\udc97", "ok \ud83d\udc4d".encode("utf-16", "surrogatepass").decode("utf-16") + "\ud83d"],
)
def test_half_a_surrogate_pair_is_refused_by_place(text: str) -> None:
    """google-gemini/deprecated-generative-ai-python#212, Nayjest/ai-microcore#74: UnicodeEncodeError from deep inside,
    for one document of many."""
    with RerankClient(scorer=FakeScorer()) as client, pytest.raises(InvalidRequestError) as error:
        client.rerank(QUERY, ["fine", text, "fine"])
    assert "documents[1] has a lone surrogate (U+" in str(error.value)
    str(error.value).encode()
