"""Attention as one operator of ONNX, for TensorRT: what it fuses, where its products and softmax would stay apart.

TensorRT fuses products and a softmax only if they are scaled before the first product and all of one type. Ours are
scaled behind it, and their softmax is fp32 (fp16.py). ONNX's ``Attention``, of opset 23, becomes TensorRT's own
attention layer: its importer multiplies queries and keys by the root of ``scale`` first, and takes a mask of four
dimensions, of which the last two are those of queries and keys (onnx-tensorrt, ``attentionHelpers.cpp`` and
``docs/operators.md``; TensorRT's page of the operator Attention).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from triton_rerank_export.graph.as_traced import Weigh, bert_last_layer, bert_layers, computing, operator

OPERATOR = "Attention"
_OPSET = 23  # the first that has it; what the traced graph consists of means the same in it as in opset 18
_LATER = "later"  # domain of the operator until the graph is of that opset: the exporter knows older ones only
_IN_PARTS = "TRT_decomposable"  # of onnx-tensorrt, and of no one else


def as_one_operator(model: Any) -> AbstractContextManager[None]:
    """Let BERT's kind of model attend by one operator while it is traced, the last layer for the first token only.

    The mask is logical: True where a key is seen. A first token is always seen, so that a row of nothing but padding,
    for which the operator defines no value, has one.
    """
    whole = model.forward

    def forward(input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        """The model's own, with a logical mask and attention by the operator."""
        import torch

        columns = torch.arange(attention_mask.shape[1])
        seen = ((attention_mask != 0) | (columns == 0))[:, None, None]
        each = seen.expand(-1, -1, attention_mask.shape[1], -1)
        with bert_layers(model, _weigh(each)), bert_last_layer(model, _weigh(seen)):
            return whole(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)

    return computing(model, forward)


def make_standard(path: Path) -> None:
    """Give a traced graph the opset that has the operator, in place."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.domain = "" if node.domain == _LATER else node.domain
    del model.graph.value_info[:]  # of the outputs of operators that the exporter does not know; fp16 changes types
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", _OPSET))
    onnx.save(model, path)


def let_fall_apart(path: Path) -> bool:
    """Let TensorRT compute attention by several kernels where it has none for the whole; nobody else reads the graph.

    Args:
        path: of the graph; changed in place, its external data are not touched.

    Returns:
        Whether it has such an operator.
    """
    model = onnx.load(path, load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == OPERATOR]
    for node in nodes:
        node.attribute.append(helper.make_attribute(_IN_PARTS, 1))
    onnx.save(model, path)
    return bool(nodes)


def _weigh(mask: Any) -> Weigh:
    return lambda query, keys, values, _, size: operator(
        f"{_LATER}::{OPERATOR}", query, keys, values, mask, scale_f=size**-0.5
    )
