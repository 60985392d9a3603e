"""Checkpoint folder -> ONNX graph of standard operators [-> fused graph, for GPUs]. Same input, same bytes.

Both stages leave the large weights in a file beside the graph, whatever its size; precision.convert() makes the form
that is served.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from triton_rerank.contract import INPUT_IDS, LOGITS, WIDTHS
from triton_rerank_export.checkpoint.resolve import Checkpoint
from triton_rerank_export.errors import ExportError, about, explained
from triton_rerank_export.graph import attention, graph_file
from triton_rerank_export.graph.flat import flat
from triton_rerank_export.repository.triton_config import encoder_inputs

_OPSET = 18
_TRACED_WORDS = 64  # rows of the table of words while it is traced
_FLOAT, _OUTSIDE = 1, 1  # onnx.TensorProto.FLOAT and .EXTERNAL
_KNOWN_FORM = "what transformers 4.53 to 5.24 make is known"


def export_graph(
    checkpoint: Checkpoint, work: Path, *, cut_last_layer: bool = False, one_attention: bool = False
) -> Path:
    """Trace the checkpoint with dynamic batch and length.

    Attention is eager, and its mask is made by us: few plain operators, which fusion and the conversion to fp16 look
    for, and the same ones of every version of transformers. The weights are attached afterwards: the exporter would
    hold them several times.

    Args:
        checkpoint: what to export.
        work: scratch folder.
        cut_last_layer: the last layer is computed for the one token that the classifier reads: the same logits for
            less work, in a form that ONNX Runtime's fusion does not know. Nothing changes for a family whose layers
            cannot be cut.
        one_attention: attention is one operator, as attention.py says, and the last layer is cut; for TensorRT, and
            a family whose layers are BERT's.

    Returns:
        ``<work>/traced/model.onnx``: fp32, standard operators, tensor names as in contract.py.

    Raises:
        ExportError: the weights cannot be read, or the graph has other names.
    """
    family = checkpoint.family
    patches = [patch for patch in (family.traced_as, family.last_layer_cut if cut_last_layer else None) if patch]
    if one_attention:
        patches = [attention.as_one_operator]
    shape = {0: "batch_size", 1: "sequence_length"}
    example = {name: (2, 16) for name in encoder_inputs(token_type_ids=checkpoint.token_type_ids)}
    return _export(checkpoint, work, patches, example, shape)


def export_flat_graph(checkpoint: Checkpoint, work: Path, *, packed: bool) -> Path:
    """As `export_graph`, of flat tensors and ``widths``; flat.py says what they are and what is computed.

    Args:
        checkpoint: what to export, of a family whose layers are BERT's.
        work: scratch folder.
        packed: attention is the operator that ONNX Runtime has for CUDA, else one for CPUs.
    """
    start = checkpoint.pad_token_id if checkpoint.family.positions_after_padding else None
    ids, mask, *more = encoder_inputs(token_type_ids=checkpoint.token_type_ids)
    example = {ids: (32,), mask: (32,), WIDTHS: (2,), **dict.fromkeys(more, (32,))}  # as flat() takes them
    return _export(
        checkpoint, work, [functools.partial(flat, pad_token_id=start, packed=packed)], example, {0: "tokens"}
    )


@graph_file.freeing_memory()
def _export(
    checkpoint: Checkpoint,
    work: Path,
    patches: Sequence[Callable[[Any], AbstractContextManager[None]]],
    example: Mapping[str, tuple[int, ...]],
    axes: Mapping[int, str],
) -> Path:
    """Trace a model under patches, by inputs of the shapes of an example."""
    import torch

    from triton_rerank_export.gate.reference import load_model

    path = work / "traced" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with about(checkpoint.label):
        model = load_model(checkpoint.folder, allow_pickle=checkpoint.allow_pickle, head=checkpoint.head)
    row = checkpoint.row
    if row is not None:
        classifier = model.get_submodule(checkpoint.family.classifier)
        for name, values in list(classifier.named_parameters()):
            setattr(classifier, name, torch.nn.Parameter(values[row : row + 1].detach().clone()))
        classifier.out_features = 1
    with explained(f"{checkpoint.label}: its graph cannot be traced"), quiet(), contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch(model))
        _trace(model, path, example, axes)
        if attention.as_one_operator in patches:
            attention.make_standard(path)
        _attach_weights(path, model, checkpoint, list(example))  # a patch may have made some of the weights
    return path


@graph_file.freeing_memory()
def fuse(graph: Path, checkpoint: Checkpoint, work: Path) -> Path:
    """Fuse attention, layer norm and GELU into ONNX Runtime's operators, for fp16 on CUDA.

    On a CPU ONNX Runtime is faster without (docs/LOG.md). Embeddings are not fused: the operator holds tables and
    layer norm in one type, and the layer norm has to stay fp32.

    Args:
        graph: of ``export_graph``, with its whole last layer.
        checkpoint: what is exported.
        work: scratch folder.

    Returns:
        ``<work>/fused/model.onnx``.

    Raises:
        ExportError: attention was not recognised in every layer.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    kind = checkpoint.family.fusion
    options = FusionOptions(kind)
    options.enable_embed_layer_norm = False
    skeleton = graph_file.load(graph)
    for tensor in skeleton.graph.initializer:  # fusion looks at the matrices that it joins; the rest stays outside
        if list(tensor.dims) == [checkpoint.hidden_size] * 2:
            graph_file.bring_inside(tensor, graph.parent)
    with quiet():
        fused = optimize_model(
            skeleton,
            model_type=kind,
            num_heads=checkpoint.n_heads,
            hidden_size=checkpoint.hidden_size,
            optimization_options=options,
            opt_level=0,
        )
    _check_fusion(fused, checkpoint)
    fused.topological_sort()
    fused.model.opset_import.add(domain="com.microsoft", version=1)
    _keep_first_tokens(fused.model.graph)
    path = work / "fused" / "model.onnx"
    graph_file.save(fused.model, path, lambda tensor: graph_file.read(tensor, graph.parent), external=True)
    return path


def graph_files(path: Path) -> list[Path]:
    """The files that a graph consists of: model.onnx and, where weights lie outside of it, model.onnx.data."""
    return [path, *(data for data in [graph_file.data_file(path)] if data.is_file())]


def _trace(model: Any, path: Path, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[int, str]) -> None:
    """Write the graph; its weights are inputs without values."""
    import torch

    example = {name: torch.ones(shape, dtype=torch.int64) for name, shape in shapes.items()}
    example[INPUT_IDS] = torch.arange(32).reshape(shapes[INPUT_IDS]) % _TRACED_WORDS
    dynamic = {**{name: dict(axes) for name in shapes}, LOGITS: {0: axes[0]}}
    if WIDTHS in shapes:
        example[WIDTHS] = torch.tensor([12, 20], dtype=torch.int32)
        dynamic[WIDTHS] = dynamic[LOGITS] = {0: "rows"}
    with torch.no_grad(), _few_words(model), _plain_masks(), model.register_forward_hook(_logits_alone):
        torch.onnx.export(
            model,
            (example,),
            str(path),
            export_params=False,
            input_names=list(shapes),
            output_names=[LOGITS],
            dynamic_axes=dynamic,
            opset_version=_OPSET,
            dynamo=False,  # fusion does not recognise the other exporter's graph
        )


def _logits_alone(_model: Any, _inputs: Any, output: Any) -> dict[str, Any]:
    """A config may ask for hidden states and attentions too, or for a tuple."""
    return {LOGITS: output[LOGITS] if isinstance(output, dict) else output[0]}


@contextlib.contextmanager
def _plain_masks() -> Iterator[None]:
    """Let transformers make its masks of arithmetic alone, the form that fusion and fp16 know, in 4.x and 5.x alike."""
    import torch
    from transformers import masking_utils

    def eager_mask(*, mask_function: Any, attention_mask: Any, **_: Any) -> Any:
        """1 where a token is seen -> what is added to its attention: float32 ``(batch, 1, 1 or length, length)``."""
        seen = attention_mask[:, None, None, :].to(torch.float32)
        if mask_function is not getattr(masking_utils, "bidirectional_mask_function", None):
            places = torch.arange(attention_mask.shape[1])
            seen = seen * mask_function(0, 0, places[:, None], places[None, :]).to(torch.float32)
        return (1.0 - seen) * torch.finfo(torch.float32).min

    functions = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    functions["eager"] = eager_mask
    try:
        yield
    finally:
        del functions["eager"]


@contextlib.contextmanager
def _few_words(model: Any) -> Iterator[None]:
    """Cut the table of words: the exporter copies every weight twice, and in a multilingual model most are there."""
    import torch

    embeddings = model.get_input_embeddings()
    table = embeddings.weight
    embeddings.weight = torch.nn.Parameter(table[:_TRACED_WORDS])
    try:
        yield
    finally:
        embeddings.weight = table


def _attach_weights(path: Path, model: Any, checkpoint: Checkpoint, inputs: Sequence[str]) -> None:
    """Turn the inputs that are weights into initializers, with their values in the data file."""
    skeleton = graph_file.load(path)
    weights = _weights(skeleton, [value for value in skeleton.graph.input if value.name not in inputs], model)
    for value in [value for value in skeleton.graph.input if value.name in weights]:
        shape = weights[value.name].shape
        skeleton.graph.initializer.add(name=value.name, data_type=_FLOAT, dims=shape, data_location=_OUTSIDE)
        skeleton.graph.input.remove(value)
    if checkpoint.family.shares_weights:
        graph_file.name_weights_once(skeleton.graph)
    _check_names(skeleton, checkpoint, inputs)
    graph_file.save(skeleton, path, lambda tensor: weights[tensor.name].numpy(), external=True)


def _weights(skeleton: Any, parameters: Sequence[Any], model: Any) -> dict[str, Any]:
    """Tensors of the weights of a traced graph. The exporter renames those that it transposes for ``x @ weight.T``."""
    state = model.state_dict()
    transposed = {
        node.input[1]: node.name.strip("/").rsplit("/", 1)[0].replace("/", ".") + ".weight"
        for node in skeleton.graph.node
        if node.op_type == "MatMul"
    }
    found = {}
    for value in parameters:
        weight = state.get(value.name)
        if weight is None and transposed.get(value.name) in state:
            weight = state[transposed[value.name]].T
        width = value.type.tensor_type.shape.dim[-1].dim_value
        if weight is not None and weight.shape[-1] == width:
            found[value.name] = weight
    return found


def _keep_first_tokens(graph: Any) -> None:
    """Of the last layer, compute what follows attention for the first tokens, which is what the classifier reads."""
    from onnx import helper, numpy_helper

    nodes = list(graph.node)  # in order
    last = max(index for index, node in enumerate(nodes) if node.op_type == "Attention")
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "first_token"))
    kept = {name: f"{name}_first" for name in (nodes[last].output[0], nodes[last].input[0])}  # attended, and residual
    for node in nodes[last + 1 :]:
        node.input[:] = [kept.get(name, name) for name in node.input]
    gathers = [helper.make_node("Gather", [name, "first_token"], [new], axis=1) for name, new in kept.items()]
    graph_file.replace_nodes(graph, [*nodes[: last + 1], *gathers, *nodes[last + 1 :]])


def _check_fusion(model: Any, checkpoint: Checkpoint) -> None:
    fused, softmaxes = model.get_fused_operator_statistics(), len(model.get_nodes_by_op_type("Softmax"))
    if not fused["Attention"] or softmaxes:
        raise ExportError(
            f"{checkpoint.name}: {fused['Attention']} attention layers were fused and {softmaxes} were not; "
            f"the graph is not of a known form ({_KNOWN_FORM})"
        )


def _check_names(skeleton: Any, checkpoint: Checkpoint, inputs: Sequence[str]) -> None:
    graph = skeleton.graph
    found, outputs = sorted(node.name for node in graph.input), [node.name for node in graph.output]
    if found != sorted(inputs) or outputs != [LOGITS]:
        raise ExportError(
            f"{checkpoint.name}: the graph has inputs {found} and outputs {outputs}; {sorted(inputs)} and {[LOGITS]} "
            "were expected"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The libraries below write warnings that do not concern our use; errors are raised, not written."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
