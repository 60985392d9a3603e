"""The models that have a public name. Adding one touches this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.types import Activation
from triton_rerank_export.demo import demo_model

FP32_TOLERANCE = 0.01  # between logits of two fp32 engines, as cards print them
FP16_TOLERANCE = 0.05  # where either side ran in fp16
BF16_TOLERANCE = 0.1  # where the published side ran in bf16, whose steps are 0.03 to 0.06 at 4 to 16

_BERT = "BertForSequenceClassification"
_XLM_R = "XLMRobertaForSequenceClassification"
_ELECTRA = "ElectraForSequenceClassification"
_DEBERTA = "DebertaV2ForSequenceClassification"
_MODERNBERT = "ModernBertForSequenceClassification"
_QWEN3, _QWEN2, _GEMMA = "Qwen3ForCausalLM", "Qwen2ForCausalLM", "GemmaForCausalLM"
_ETTIN = "ModernBertModel"  # and modules


@dataclass(frozen=True)
class PublishedScore:
    """A pair with the logit that the model's authors printed for it.

    Attributes:
        query: what was asked.
        document: what it was scored against.
        logit: raw model output, before any activation.
        tolerance: largest difference to it that a right model may show.
    """

    query: str
    document: str
    logit: float
    tolerance: float = FP32_TOLERANCE


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that export knows by name.

    Attributes:
        name: public model name, also the ensemble's.
        source: Hugging Face id, or what ``build`` makes the checkpoint from.
        revision: commit that is fetched, 40 hex digits; "" where ``build`` is given.
        architecture: class of the checkpoint, as its config.json names it.
        max_length: tokens of the longest pair that the model itself can read.
        activation: how the checkpoint turns a logit into a score.
        licence: SPDX name.
        params: number of parameters, to be read.
        description: one line for the list that the command prints.
        older_ids: Hugging Face ids that the same repository had before.
        scores: pairs with their logits from the model's card.
        build: writes the checkpoint into a folder that does not exist yet, and returns it; None: it is on the hub.
        label: which of its labels is served unless another is asked for; "" where it has one only.
    """

    name: str
    source: str
    revision: str
    architecture: str
    max_length: int
    activation: Activation
    licence: str
    params: str
    description: str
    older_ids: tuple[str, ...] = ()
    scores: tuple[PublishedScore, ...] = ()
    build: Callable[[Path], Path] | None = None
    label: str = ""


def _berlin(population: float, museums: float) -> tuple[PublishedScore, ...]:
    query = "How many people live in Berlin?"
    answer = "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."
    return (
        PublishedScore(query, answer, population),
        PublishedScore(query, "Berlin is well known for its museums.", museums),
    )


def _paris(paris: float, berlin: float) -> tuple[PublishedScore, ...]:
    """The pairs of fastembed's tests, which ran the fp32 ONNX."""
    query = "What is the capital of France?"
    return (
        PublishedScore(query, "Paris is the capital of France.", paris),
        PublishedScore(query, "Berlin is the capital of Germany.", berlin),
    )


def _red_planet(
    venus: float, mars: float, jupiter: float, saturn: float, tolerance: float = BF16_TOLERANCE
) -> tuple[PublishedScore, ...]:
    """The pairs of sentence-transformers' own tests of pretrained models, most of which ran in bf16."""
    documents = {
        "Venus is often called Earth's twin because of its similar size and proximity.": venus,
        "Mars, known for its reddish appearance, is often referred to as the Red Planet.": mars,
        "Jupiter, the largest planet in our solar system, has a prominent red spot.": jupiter,
        "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.": saturn,
    }
    query = "Which planet is known as the Red Planet?"
    return tuple(PublishedScore(query, document, logit, tolerance) for document, logit in documents.items())


def _ettin(size: str, revision: str, params: str, scores: tuple[PublishedScore, ...] = ()) -> CatalogueEntry:
    """One of the six sizes of ettin-reranker."""
    return CatalogueEntry(
        name=f"ettin-reranker-{size}-v1",
        source=f"cross-encoder/ettin-reranker-{size}-v1",
        revision=revision,
        architecture=_ETTIN,
        max_length=7999,
        activation="identity",
        licence="Apache-2.0",
        params=params,
        description="English, ModernBERT with sentence-transformers' modules, long documents",
        scores=scores,
    )


_SORT = "how to implement quick sort in python?"
_PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)

_APPLE = "Where was Apple founded?"
_APPLE_INC = "Apple Inc. was founded in Cupertino, California in 1976 by Steve Jobs, Steve Wozniak, and Ronald Wayne."
_FUJI = "The Fuji apple is an apple cultivar developed in the late 1930s and brought to market in 1962."

_ENTRIES = (
    CatalogueEntry(
        name="minilm-l6-demo",
        source=f"{demo_model.BODY_REQUIREMENT} + demo/delta.safetensors",
        revision="",
        architecture=_BERT,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="22.7 M",
        description="English demo and test model; no replacement for the real ones",
        build=demo_model.assemble,
    ),
    CatalogueEntry(
        name="ms-marco-minilm-l6-v2",
        source="cross-encoder/ms-marco-MiniLM-L6-v2",
        revision="c5ee24cb16019beea0893ab7796b1df96625c6b8",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="22.7 M",
        description="English, small and fast",
        older_ids=("cross-encoder/ms-marco-MiniLM-L-6-v2",),
        scores=_berlin(8.607138, -4.320078),
    ),
    CatalogueEntry(
        name="ms-marco-minilm-l12-v2",
        source="cross-encoder/ms-marco-MiniLM-L12-v2",
        revision="7b0235231ca2674cb8ca8f022859a6eba2b1c968",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="33.4 M",
        description="English, twice the layers of l6",
        older_ids=("cross-encoder/ms-marco-MiniLM-L-12-v2",),
        scores=_berlin(9.218911, -4.0780287),
    ),
    CatalogueEntry(
        name="ms-marco-minilm-l4-v2",
        source="cross-encoder/ms-marco-MiniLM-L4-v2",
        revision="777b2f369bc1c2f850df8bd367ed1654bda4497b",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="19.2 M",
        description="English, smaller and faster than l6",
        older_ids=("cross-encoder/ms-marco-MiniLM-L-4-v2",),
        scores=_red_planet(-7.875, 9.0, 5.6875, 6.65625),
    ),
    CatalogueEntry(
        name="ms-marco-minilm-l2-v2",
        source="cross-encoder/ms-marco-MiniLM-L2-v2",
        revision="1b5cd67b15209f24824c50370e0397743aa9b787",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="15.6 M",
        description="English, two layers",
        older_ids=("cross-encoder/ms-marco-MiniLM-L-2-v2",),
        scores=_red_planet(-10.25, 9.8125, 7.9375, 8.3125),
    ),
    CatalogueEntry(
        name="ms-marco-tinybert-l2-v2",
        source="cross-encoder/ms-marco-TinyBERT-L2-v2",
        revision="81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="4.4 M",
        description="English, the smallest",
        older_ids=("cross-encoder/ms-marco-TinyBERT-L-2-v2",),
        scores=_red_planet(-10.875, 7.0, 5.875, 5.6875),
    ),
    CatalogueEntry(
        name="ms-marco-electra-base",
        source="cross-encoder/ms-marco-electra-base",
        revision="f876dccd180e7bb441073e835feb4dc782a2c7de",
        architecture=_ELECTRA,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="109 M",
        description="English, twelve layers of BERT's width",
    ),
    CatalogueEntry(
        name="gte-reranker-modernbert-base",
        source="Alibaba-NLP/gte-reranker-modernbert-base",
        revision="f7481e6055501a30fb19d090657df9ec1f79ab2c",
        architecture=_MODERNBERT,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="149.6 M",
        description="English, long documents",
        scores=(  # the card's fp32 ONNX
            PublishedScore("what is the capital of China?", "Beijing", 2.138258218765259),
            PublishedScore(_SORT, "Introduction of quick sort", 2.4609625339508057),
            PublishedScore(_SORT, "The weather is nice today", -1.6775450706481934),
        ),
    ),
    CatalogueEntry(
        name="granite-embedding-reranker-english-r2",
        source="ibm-granite/granite-embedding-reranker-english-r2",
        revision="d09d3d6971b689bf9c23839e45a470874d46e13a",
        architecture=_MODERNBERT,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="149 M",
        description="English, long documents",
    ),
    _ettin("17m", "9e4aa35321a6dd1a43ca313f500c4b4f7cfb5cc6", "17.6 M"),
    _ettin(
        "32m",
        "b33e5ceb5110773ea9cf5e00c9bedc83a8c2afdd",
        "32.8 M",
        (  # of a blog's example, which does not say in which precision it ran
            PublishedScore(_APPLE, _APPLE_INC, 11.393298, FP16_TOLERANCE),
            PublishedScore(_APPLE, _FUJI, 2.968891, FP16_TOLERANCE),
        ),
    ),
    _ettin("68m", "d166fa88ddde3c42bc3ee92f7df476d941c8204a", "68.1 M"),
    _ettin("150m", "025501c4e0f9bbeb4c5b198318e0089ff061cc14", "150.9 M"),
    _ettin("400m", "5dca36282a5d85f368d2544002513a29159b4c9e", "401.6 M"),
    _ettin("1b", "7d20e9baad17016fdf5549c08f69a2d7ca3e60c3", "1028 M"),
    CatalogueEntry(
        name="mxbai-rerank-xsmall-v1",
        source="mixedbread-ai/mxbai-rerank-xsmall-v1",
        revision="b5c6e9da73abc3711f593f705371cdbe9e0fe422",
        architecture=_DEBERTA,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="70.8 M",
        description="English, DeBERTa-v3",
    ),
    CatalogueEntry(
        name="mxbai-rerank-base-v1",
        source="mixedbread-ai/mxbai-rerank-base-v1",
        revision="800f24c113213a187e65bde9db00c15a2bb12738",
        architecture=_DEBERTA,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="184.4 M",
        description="English, DeBERTa-v3",
    ),
    CatalogueEntry(
        name="mxbai-rerank-large-v1",
        source="mixedbread-ai/mxbai-rerank-large-v1",
        revision="98f655841d5caf0b16eaff79c2b4ca109d920d17",
        architecture=_DEBERTA,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="435.1 M",
        description="English, DeBERTa-v3",
    ),
    CatalogueEntry(
        name="mmarco-mminilmv2-l12-h384-v1",
        source="cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",
        revision="1427fd652930e4ba29e8149678df786c240d8825",
        architecture=_XLM_R,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="118 M",
        description="multilingual, small and fast",
        scores=_red_planet(-3.28125, 10.1875, 3.4375, 7.46875),
    ),
    CatalogueEntry(
        name="bert-multilingual-passage-reranking-msmarco",
        source="amberoad/bert-multilingual-passage-reranking-msmarco",
        revision="1bdea63c70dcf019e51d198982d768584dad2428",
        architecture=_BERT,
        max_length=512,
        activation="identity",
        licence="Apache-2.0",
        params="167.4 M",
        description="multilingual, of 2020; its weights are a pickle (--allow-pickle)",
        label="1",
    ),
    CatalogueEntry(
        name="bce-reranker-base_v1",
        source="maidalun1020/bce-reranker-base_v1",
        revision="eaa31a577a0574e87a08959bd229ca14ce1b5496",
        architecture=_XLM_R,
        max_length=512,
        activation="sigmoid",
        licence="Apache-2.0",
        params="278 M",
        description="Chinese, English, Japanese, Korean; its weights may be a pickle only (--allow-pickle)",
    ),
    CatalogueEntry(
        name="bge-reranker-base",
        source="BAAI/bge-reranker-base",
        revision="2cfc18c9415c912f9d8155881c133215df768a70",
        architecture=_XLM_R,
        max_length=512,
        activation="sigmoid",
        licence="MIT",
        params="278 M",
        description="Chinese and English",
        scores=_paris(6.15733337, -3.65939403),
    ),
    CatalogueEntry(
        name="bge-reranker-large",
        source="BAAI/bge-reranker-large",
        revision="55611d7bca2a7133960a6d3b71e083071bbfc312",
        architecture=_XLM_R,
        max_length=512,
        activation="sigmoid",
        licence="MIT",
        params="560 M",
        description="Chinese and English, twice the layers of base",
        scores=(  # the card ran in fp16
            PublishedScore("query", "passage", -1.5263671875, FP16_TOLERANCE),
            PublishedScore("what is panda?", "hi", -5.60546875, FP16_TOLERANCE),
            PublishedScore("what is panda?", _PANDA, 5.76171875, FP16_TOLERANCE),
        ),
    ),
    CatalogueEntry(
        name="bge-reranker-v2-m3",
        source="BAAI/bge-reranker-v2-m3",
        revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
        architecture=_XLM_R,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="568 M",
        description="multilingual, long documents",
        scores=(  # the card ran in fp16
            PublishedScore("query", "passage", -5.65234375, FP16_TOLERANCE),
            PublishedScore("what is panda?", "hi", -8.1875, FP16_TOLERANCE),
            PublishedScore("what is panda?", _PANDA, 5.26171875, FP16_TOLERANCE),
        ),
    ),
    CatalogueEntry(
        name="qwen3-reranker-0.6b",
        source="Qwen/Qwen3-Reranker-0.6B",
        revision="6e9e69830b95c52b5fd889b7690dda3329508de3",
        architecture=_QWEN3,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="596 M",
        description="multilingual, told by an instruction what to look for",
        scores=_red_planet(
            -3.109297752380371, 7.120389938354492, -0.3787546157836914, 3.541637420654297, FP32_TOLERANCE
        ),
    ),
    CatalogueEntry(
        name="qwen3-reranker-4b",
        source="Qwen/Qwen3-Reranker-4B",
        revision="f16fc5d5d2b9b1d0db8280929242745d79794ef5",
        architecture=_QWEN3,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="4022 M",
        description="as qwen3-reranker-0.6b, larger",
    ),
    CatalogueEntry(
        name="qwen3-reranker-8b",
        source="Qwen/Qwen3-Reranker-8B",
        revision="5fa94080caafeaa45a15d11f969d7978e087a3db",
        architecture=_QWEN3,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0",
        params="8188 M",
        description="as qwen3-reranker-0.6b, the largest",
    ),
    CatalogueEntry(
        name="mxbai-rerank-base-v2",
        source="mixedbread-ai/mxbai-rerank-base-v2",
        revision="3ea9d4dffa7d12a4f366be8e275c349de9fc9865",
        architecture=_QWEN2,
        max_length=8192,
        activation="identity",
        licence="Apache-2.0",
        params="494 M",
        description="multilingual, on Qwen2; may be told what to look for",
    ),
    CatalogueEntry(
        name="mxbai-rerank-large-v2",
        source="mixedbread-ai/mxbai-rerank-large-v2",
        revision="ca7e1ee484c37c0ddd8d178a9a5c33cec575c5e6",
        architecture=_QWEN2,
        max_length=8192,
        activation="identity",
        licence="Apache-2.0",
        params="1544 M",
        description="as mxbai-rerank-base-v2, larger",
    ),
    CatalogueEntry(
        name="zerank-2",
        source="zeroentropy/zerank-2-reranker",
        revision="5eae30d5ee3c6b2df2ef6d723bde45172d761c4c",
        architecture=_QWEN3,  # and LogitScore
        max_length=8192,
        activation="identity",  # the logit of Yes; until May 2026 its authors gave the sigmoid of a fifth of it
        licence="Apache-2.0",  # since 24 July 2026; the cards of older commits say CC-BY-NC-4.0
        params="4022 M",
        description="on Qwen3-4B; its score is a logit; may be told what to look for",
        older_ids=("zeroentropy/zerank-2",),
    ),
    CatalogueEntry(
        name="bge-reranker-v2-gemma",
        source="BAAI/bge-reranker-v2-gemma",
        revision="1787044f8b6fb740a9de4557c3a12377f84d9e17",
        architecture=_GEMMA,
        max_length=8192,
        activation="sigmoid",
        licence="Apache-2.0 and Gemma",  # the card's, and the terms of gemma-2b, which it was trained from
        params="2506 M",
        description="multilingual, on Gemma 2B; its base's terms hold beside its card's licence",
    ),
)

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
_BY_ANY_ID = CATALOGUE | {
    hub_id.lower(): entry for entry in _ENTRIES if entry.build is None for hub_id in (entry.source, *entry.older_ids)
}


def find(model: str) -> CatalogueEntry | None:
    """Look a model up by its public name, its Hugging Face id or an older id; upper and lower case are the same."""
    return _BY_ANY_ID.get(model.lower())
