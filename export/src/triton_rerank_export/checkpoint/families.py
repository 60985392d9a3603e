"""What differs between families of cross-encoders, one row each. Adding a family touches this file and its test.

Everything else in export reads these rows: which config.json is taken, which inputs the graph has, how far positions
go, what names the layers have, which precisions there are. A pattern that matches nothing fails the export: a family
whose names changed would otherwise lose a check, or int8 its early layers, without a word.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from triton_rerank_export.errors import ExportError
from triton_rerank_export.graph import as_traced
from triton_rerank_export.repository.triton_config import Precision

Patch = Callable[[Any], AbstractContextManager[None]]

ALL: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
_NO_HALF: tuple[Precision, ...] = ("fp32", "bf16", "int8")
_ABSOLUTE: Mapping[str, tuple[object, ...]] = {"position_embedding_type": ("absolute",)}


@dataclass(frozen=True)
class Family:
    """One family. The defaults are BERT's.

    Attributes:
        architecture: class in transformers, as config.json names it.
        model_types: values of config.json's model_type that mean this class, or one that computes the same.
        segments: rows of the table of segments where config.json states none; None: the class has no such table.
        reads_segments: the graph has ``token_type_ids``, if the table has rows. RoBERTa has a table and no use for it.
        pad_token_id: unless config.json states it.
        positions_after_padding: position ids start behind the padding's id instead of at 0.
        width: key of config.json for the width of a layer.
        heads: key for the number of attention heads.
        depth: key for the number of layers.
        stored_layers: key for the number of layers that the weights hold; another one where layers share theirs.
        embedding_width: key for the width of the tables, and what it is where config.json states none; None: a layer's.
        word_table: what the table of tokens is called.
        required: key of config.json -> values that are supported; a key that is absent or null has the first one.
        modules: its head is modules of sentence-transformers, which modules.json names; the class has none.
        classifier: linear layer that gives the logits, a row for each label.
        layer_weights: pattern of a weight's name; its group is the layer.
        feed_forward_out: pattern of the graph's name for the second feed-forward product of a layer, which int8 keeps
            in fp32 in the first third of the layers.
        in_half: pattern of the names of linear layers that an fp16 export computes in fp16.
        last_layer_cut: makes the last layer compute only the token that the head reads while it is traced; None: it
            reads all, or the cut is not known here.
        traced_as: what else is changed in the model while it is traced.
        shares_weights: several products take one weight.
        fusion: what ONNX Runtime's optimiser calls the family; None: it does not know its attention.
        precisions: what it can be exported in.
        no_fp16: why fp16 is not among them.
        causal: class of the language model whose head makes this class's; "" where there is none.
        prompt: of causal.py, where a checkpoint of this class is not known by its name; "": pairs have no prompt.
        longest: most tokens of a pair, whatever the table of positions.
    """

    architecture: str
    model_types: tuple[str, ...]
    segments: int | None = 2
    reads_segments: bool = True
    pad_token_id: int = 0
    positions_after_padding: bool = False
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    depth: str = "num_hidden_layers"
    stored_layers: str = "num_hidden_layers"
    embedding_width: tuple[str, int] | None = None
    word_table: str = "word_embeddings"
    required: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: _ABSOLUTE)
    modules: bool = False
    classifier: str = "classifier"
    layer_weights: str = r"encoder\.layer\.(\d{1,6})\."
    feed_forward_out: str = r"/layer\.\d+/output/dense/(MatMul|Gemm)$"  # the latter in a flat graph
    in_half: str = r"\.encoder\."
    last_layer_cut: Patch | None = as_traced.bert_last_layer
    traced_as: Patch | None = as_traced.bert_layers
    shares_weights: bool = False
    fusion: str | None = "bert"
    precisions: tuple[Precision, ...] = ALL
    no_fp16: str = ""
    causal: str = ""
    prompt: str = ""
    longest: int | None = None

    @property
    def has_bert_layers(self) -> bool:
        """Its attention is BERT's, which can be one operator: over rows without padding too, in a flat graph."""
        return self.traced_as is as_traced.bert_layers


_QWEN3 = Family(
    "Qwen3ForSequenceClassification",
    ("qwen3",),
    segments=None,
    reads_segments=False,
    word_table="embed_tokens",
    required={"rope_scaling": (None,), "use_sliding_window": (False,)},
    classifier="score",
    layer_weights=r"\blayers\.(\d{1,6})\.",
    feed_forward_out=r"/layers\.\d+/mlp/down_proj/MatMul$",
    last_layer_cut=as_traced.decoder_last_layer,
    traced_as=as_traced.last_token,
    fusion=None,
    precisions=_NO_HALF,
    no_fp16="its activations pass fp16's range in transformers itself",
    causal="Qwen3ForCausalLM",
    prompt="qwen3-reranker",
    longest=8192,
)
_MODERNBERT = Family(  # config.json's position_embedding_type says absolute; the class has rotary positions
    "ModernBertForSequenceClassification",
    ("modernbert",),
    segments=None,
    reads_segments=False,
    pad_token_id=50283,
    word_table="tok_embeddings",
    required={},
    layer_weights=r"\blayers\.(\d{1,6})\.",
    feed_forward_out=r"/layers\.\d+/mlp/Wo/MatMul$",
    last_layer_cut=as_traced.modernbert_last_layer,
    traced_as=None,
    in_half=r"\blayers\.\d",
    fusion=None,
)

_ROBERTA = Family(
    "RobertaForSequenceClassification",
    ("roberta", "xlm-roberta"),
    reads_segments=False,
    pad_token_id=1,
    positions_after_padding=True,
    classifier="classifier.out_proj",
)
_ROWS = (
    Family("BertForSequenceClassification", ("bert",)),
    dataclasses.replace(
        _ROBERTA, architecture="XLMRobertaForSequenceClassification", model_types=("xlm-roberta", "roberta")
    ),
    _ROBERTA,
    dataclasses.replace(_ROBERTA, architecture="CamembertForSequenceClassification", model_types=("camembert",)),
    Family(
        "ElectraForSequenceClassification",
        ("electra",),
        embedding_width=("embedding_size", 128),
        classifier="classifier.out_proj",
        in_half=r"\.encoder\.|\.embeddings_project$",
    ),
    Family(
        "DistilBertForSequenceClassification",
        ("distilbert",),
        segments=None,
        reads_segments=False,
        width="dim",
        heads="n_heads",
        depth="n_layers",
        stored_layers="n_layers",
        required={},
        layer_weights=r"transformer\.layer\.(\d{1,6})\.",
        feed_forward_out=r"/layer\.\d+/ffn/lin2/MatMul$",
        last_layer_cut=None,
        traced_as=None,
        in_half=r"\btransformer\.layer\.",
        fusion=None,
    ),
    Family(
        "AlbertForSequenceClassification",
        ("albert",),
        stored_layers="num_hidden_groups",
        embedding_width=("embedding_size", 128),
        required={**_ABSOLUTE, "inner_group_num": (1,)},
        layer_weights=r"albert_layer_groups\.(\d{1,6})\.",
        feed_forward_out=r"/ffn_output(_\d+)?/MatMul(_\d+)?$",
        last_layer_cut=None,  # one module is every layer
        traced_as=None,
        shares_weights=True,
        fusion=None,
        precisions=_NO_HALF,
        no_fp16="its GELU is a cube (Pow), which ends beyond fp16",
    ),
    dataclasses.replace(
        _ROBERTA,
        architecture="MPNetForSequenceClassification",
        model_types=("mpnet",),
        segments=None,
        required={},
        last_layer_cut=None,
        traced_as=None,
        fusion=None,
        precisions=_NO_HALF,
        no_fp16="its relative positions are computed by operators (Log) that the conversion does not know",
    ),
    Family(  # DeBERTa-v3 is of this class too
        "DebertaV2ForSequenceClassification",
        ("deberta-v2",),
        segments=0,
        required={},
        last_layer_cut=None,
        traced_as=as_traced.deberta_of_equal_lengths,
        shares_weights=True,  # of queries and keys, with those of the relative positions
        fusion=None,
        precisions=_NO_HALF,
        no_fp16="its attention passed fp16's range in transformers itself",
    ),
    dataclasses.replace(_MODERNBERT, architecture="ModernBertModel", modules=True),  # as ettin-reranker
    _MODERNBERT,
    _QWEN3,
    dataclasses.replace(
        _QWEN3,
        architecture="Qwen2ForSequenceClassification",
        model_types=("qwen2",),
        causal="Qwen2ForCausalLM",
        prompt="mxbai-rerank-v2",
    ),
    dataclasses.replace(
        _QWEN3,
        architecture="GemmaForSequenceClassification",
        model_types=("gemma",),
        causal="GemmaForCausalLM",
        prompt="bge-reranker-v2-gemma",
        required={"rope_scaling": (None,), "use_bidirectional_attention": (False,)},
        traced_as=as_traced.last_token_of_gemma,
    ),
)

FAMILIES = {family.architecture: family for family in _ROWS}
BY_CLASS = FAMILIES | {family.causal: family for family in _ROWS if family.causal}


def check_form(family: Family, precision: Precision, *, flat: bool = False) -> None:
    """Refuse what a family cannot be exported in, or as.

    Raises:
        ExportError: says why, and what there is instead.
    """
    if precision not in family.precisions:
        raise ExportError(
            f"{family.architecture} cannot be exported in {precision}: {family.no_fp16}; it can be in "
            f"{', '.join(family.precisions)}"
        )
    if flat and not family.has_bert_layers:
        flat_ones = [row.architecture for row in _ROWS if row.has_bert_layers]
        raise ExportError(f"{family.architecture} has no flat graph; {', '.join(flat_ones)} have. Leave --graph out")


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """The names in which a family's pattern is found, in their order."""
    return [name for name in names if re.search(pattern, name)]
