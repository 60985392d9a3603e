"""The models that have a public name. Adding one touches this file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.types import Activation
from triton_rerank_export.checkpoint.published import PublishedScore, scores_of
from triton_rerank_export.demo import demo_model


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that export knows by name.

    Attributes:
        source: Hugging Face id, or what ``build`` makes the checkpoint from.
        revision: commit that is fetched, 40 hex digits; "" where ``build`` is given.
        params: number of parameters, to be read.
        architecture: class of the checkpoint, as its config.json names it.
        max_length: tokens of the longest pair that the model itself can read.
        activation: how the checkpoint turns a logit into a score.
        licence: SPDX name.
        known_as: public model name, where it is not the `public_name` of its id.
        older_ids: Hugging Face ids that the same repository had before.
        build: writes the checkpoint into a folder that does not exist yet, and returns it; None: it is on the hub.
        label: which of its labels is served unless another is asked for; "" where it has one only.
    """

    source: str
    revision: str
    params: str
    architecture: str
    max_length: int
    activation: Activation
    licence: str
    known_as: str = ""
    older_ids: tuple[str, ...] = ()
    build: Callable[[Path], Path] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Public model name, also the ensemble's."""
        return self.known_as or public_name(self.source)

    @property
    def scores(self) -> tuple[PublishedScore, ...]:
        """Pairs with their logits from the model's card."""
        return scores_of(self.name)


def public_name(hub_id: str) -> str:
    """What a model of the hub is called here unless told otherwise."""
    return hub_id.rsplit("/", 1)[-1].lower()


def _kind(architecture: str, max_length: int, activation: Activation) -> functools.partial[CatalogueEntry]:
    """Entries of one class have these facts unless they state another one."""
    return functools.partial(
        CatalogueEntry, architecture=architecture, max_length=max_length, activation=activation, licence="Apache-2.0"
    )


_bert = _kind("BertForSequenceClassification", 512, "identity")
_electra = _kind("ElectraForSequenceClassification", 512, "sigmoid")
_xlm_r = _kind("XLMRobertaForSequenceClassification", 512, "sigmoid")
_deberta = _kind("DebertaV2ForSequenceClassification", 512, "sigmoid")
_modernbert = _kind("ModernBertForSequenceClassification", 8192, "sigmoid")
_ettin = _kind("ModernBertModel", 7999, "identity")  # and modules
_qwen3 = _kind("Qwen3ForCausalLM", 8192, "sigmoid")
_qwen2 = _kind("Qwen2ForCausalLM", 8192, "identity")
_gemma = _kind("GemmaForCausalLM", 8192, "sigmoid")


def _ms_marco(size: str, revision: str, params: str) -> CatalogueEntry:
    """Their ids had one dash more before."""
    name, older = (f"cross-encoder/ms-marco-{each}-v2" for each in (size, size.replace("-L", "-L-")))
    return _bert(name, revision, params, older_ids=(older,))


_ENTRIES = (
    _bert(
        f"{demo_model.BODY_REQUIREMENT} + demo/delta.safetensors",
        "",
        "22.7 M",
        known_as="minilm-l6-demo",
        activation="sigmoid",
        build=demo_model.assemble,
    ),
    _ms_marco("MiniLM-L6", "c5ee24cb16019beea0893ab7796b1df96625c6b8", "22.7 M"),
    _ms_marco("MiniLM-L12", "7b0235231ca2674cb8ca8f022859a6eba2b1c968", "33.4 M"),
    _ms_marco("MiniLM-L4", "777b2f369bc1c2f850df8bd367ed1654bda4497b", "19.2 M"),
    _ms_marco("MiniLM-L2", "1b5cd67b15209f24824c50370e0397743aa9b787", "15.6 M"),
    _ms_marco("TinyBERT-L2", "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc", "4.4 M"),
    _electra("cross-encoder/ms-marco-electra-base", "f876dccd180e7bb441073e835feb4dc782a2c7de", "109 M"),
    _modernbert("Alibaba-NLP/gte-reranker-modernbert-base", "f7481e6055501a30fb19d090657df9ec1f79ab2c", "149.6 M"),
    _modernbert(
        "ibm-granite/granite-embedding-reranker-english-r2", "d09d3d6971b689bf9c23839e45a470874d46e13a", "149 M"
    ),
    _ettin("cross-encoder/ettin-reranker-17m-v1", "9e4aa35321a6dd1a43ca313f500c4b4f7cfb5cc6", "17.6 M"),
    _ettin("cross-encoder/ettin-reranker-32m-v1", "b33e5ceb5110773ea9cf5e00c9bedc83a8c2afdd", "32.8 M"),
    _ettin("cross-encoder/ettin-reranker-68m-v1", "d166fa88ddde3c42bc3ee92f7df476d941c8204a", "68.1 M"),
    _ettin("cross-encoder/ettin-reranker-150m-v1", "025501c4e0f9bbeb4c5b198318e0089ff061cc14", "150.9 M"),
    _ettin("cross-encoder/ettin-reranker-400m-v1", "5dca36282a5d85f368d2544002513a29159b4c9e", "401.6 M"),
    _ettin("cross-encoder/ettin-reranker-1b-v1", "7d20e9baad17016fdf5549c08f69a2d7ca3e60c3", "1028 M"),
    _deberta("mixedbread-ai/mxbai-rerank-xsmall-v1", "b5c6e9da73abc3711f593f705371cdbe9e0fe422", "70.8 M"),
    _deberta("mixedbread-ai/mxbai-rerank-base-v1", "800f24c113213a187e65bde9db00c15a2bb12738", "184.4 M"),
    _deberta("mixedbread-ai/mxbai-rerank-large-v1", "98f655841d5caf0b16eaff79c2b4ca109d920d17", "435.1 M"),
    _xlm_r(
        "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",
        "1427fd652930e4ba29e8149678df786c240d8825",
        "118 M",
        activation="identity",
    ),
    _bert(
        "amberoad/bert-multilingual-passage-reranking-msmarco",
        "1bdea63c70dcf019e51d198982d768584dad2428",
        "167.4 M",
        label="1",
    ),
    _xlm_r("maidalun1020/bce-reranker-base_v1", "eaa31a577a0574e87a08959bd229ca14ce1b5496", "278 M"),
    _xlm_r("BAAI/bge-reranker-base", "2cfc18c9415c912f9d8155881c133215df768a70", "278 M", licence="MIT"),
    _xlm_r("BAAI/bge-reranker-large", "55611d7bca2a7133960a6d3b71e083071bbfc312", "560 M", licence="MIT"),
    _xlm_r("BAAI/bge-reranker-v2-m3", "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e", "568 M", max_length=8192),
    _qwen3("Qwen/Qwen3-Reranker-0.6B", "6e9e69830b95c52b5fd889b7690dda3329508de3", "596 M"),
    _qwen3("Qwen/Qwen3-Reranker-4B", "f16fc5d5d2b9b1d0db8280929242745d79794ef5", "4022 M"),
    _qwen3("Qwen/Qwen3-Reranker-8B", "5fa94080caafeaa45a15d11f969d7978e087a3db", "8188 M"),
    _qwen2("mixedbread-ai/mxbai-rerank-base-v2", "3ea9d4dffa7d12a4f366be8e275c349de9fc9865", "494 M"),
    _qwen2("mixedbread-ai/mxbai-rerank-large-v2", "ca7e1ee484c37c0ddd8d178a9a5c33cec575c5e6", "1544 M"),
    _qwen3(  # and LogitScore
        "zeroentropy/zerank-2-reranker",
        "5eae30d5ee3c6b2df2ef6d723bde45172d761c4c",
        "4022 M",
        known_as="zerank-2",
        activation="identity",  # the logit of Yes; until May 2026 its authors gave the sigmoid of a fifth of it
        # Apache-2.0 since 24 July 2026; the cards of older commits say CC-BY-NC-4.0
        older_ids=("zeroentropy/zerank-2",),
    ),
    _gemma(
        "BAAI/bge-reranker-v2-gemma",
        "1787044f8b6fb740a9de4557c3a12377f84d9e17",
        "2506 M",
        licence="Apache-2.0 and Gemma",  # the card's, and the terms of gemma-2b, which it was trained from
    ),
)

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
_BY_ANY_ID = CATALOGUE | {
    hub_id.lower(): entry for entry in _ENTRIES if entry.build is None for hub_id in (entry.source, *entry.older_ids)
}


def find(model: str) -> CatalogueEntry | None:
    """Look a model up by its public name, its Hugging Face id or an older id; upper and lower case are the same."""
    return _BY_ANY_ID.get(model.lower())
