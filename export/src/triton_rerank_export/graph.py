"""Checkpoint folder -> fused ONNX graph -> the precision that is served. Same input, same bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton_rerank.contract import LOGITS
from triton_rerank_export.checkpoint import Checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.triton_config import Precision, encoder_inputs

_FEED_FORWARD_OUTPUT = re.compile(r"/layer\.(\d+)/output/dense/MatMul$")
_OPSET = 18  # the least that optimum recommends for BERT
_FLOAT = 1  # onnx.TensorProto.FLOAT


def export_graph(checkpoint: Checkpoint, work: Path) -> Path:
    """Trace the checkpoint with dynamic batch and length.

    Attention is eager: the fused form is recognised in that graph, not in the one traced from SDPA.

    Args:
        checkpoint: what to export.
        work: scratch folder.

    Returns:
        An fp32 graph of standard operators, tensor names as in contract.py.

    Raises:
        ExportError: the weights cannot be read, or the graph has other names.
    """
    import torch
    from optimum.exporters.onnx import onnx_export_from_model

    from triton_rerank_export.reference import load_model

    model = load_model(checkpoint.folder)
    output = work / "traced"
    with _quiet(), torch.no_grad():
        onnx_export_from_model(
            model=model, output=output, task="text-classification", opset=_OPSET, do_validation=False
        )
    path = output / "model.onnx"
    _check_names(path, checkpoint)
    return path


def fuse(graph: Path, checkpoint: Checkpoint, work: Path) -> Path:
    """Fuse attention, layer norm and GELU into ONNX Runtime's operators.

    Raises:
        ExportError: attention was not recognised in every layer.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    with _quiet():
        model = optimize_model(
            str(graph),
            model_type="bert",
            num_heads=checkpoint.n_heads,
            hidden_size=checkpoint.hidden_size,
            optimization_options=FusionOptions("bert"),
            opt_level=0,
        )
    fused, softmaxes = model.get_fused_operator_statistics(), len(model.get_nodes_by_op_type("Softmax"))
    if not fused["Attention"] or softmaxes:
        raise ExportError(
            f"{checkpoint.name}: {fused['Attention']} attention layers were fused and {softmaxes} were not; "
            "the graph is not of a known form (transformers 4.57 with eager attention is)"
        )
    path = work / "fused.onnx"
    model.save_model_to_file(str(path))
    return path


def to_precision(fused: Path, precision: Precision, work: Path) -> Path:
    """Turn the fused fp32 graph into the precision that is served.

    int8 is dynamic: weights per channel ahead of time, activations per tensor at run time. Fusion comes first, since
    quantised graphs are not recognised by it. Two parts stay fp32, because as int8 they cost order (docs/LOG.md): the
    embeddings, and the second feed-forward matrix of the first third of the layers, whose inputs have outliers.
    """
    if precision == "fp32":
        return fused
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = work / "int8.onnx"
    with _quiet():
        quantize_dynamic(
            fused,
            path,
            op_types_to_quantize=["MatMul", "Attention"],
            nodes_to_exclude=_early_feed_forward([node.name for node in onnx.load(fused).graph.node]),
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": _FLOAT},  # fused operators have no inferred types
        )
    return path


def _early_feed_forward(nodes: Sequence[str]) -> list[str]:
    """Names of the second feed-forward MatMul in the first third of the layers, by Hugging Face's module names."""
    matches = [match for name in nodes if (match := _FEED_FORWARD_OUTPUT.search(name))]
    return [match.string for match in matches if 3 * int(match[1]) < len(matches)]


def _check_names(path: Path, checkpoint: Checkpoint) -> None:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    inputs, outputs = sorted(node.name for node in graph.input), [node.name for node in graph.output]
    expected = sorted(encoder_inputs(token_type_ids=checkpoint.token_type_ids))
    if inputs != expected or outputs != [LOGITS]:
        raise ExportError(
            f"{checkpoint.name}: the graph has inputs {inputs} and outputs {outputs}; {expected} and {[LOGITS]} "
            "were expected"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries below write warnings that do not concern our use; errors are raised, not written."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
