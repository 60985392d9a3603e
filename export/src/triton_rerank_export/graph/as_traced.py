"""What is changed in a model of transformers while its graph is traced; families.py says which family wants what.

Each is a context: inside the block the model computes the same in another form, afterwards it is as it was.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from triton_rerank.contract import LOGITS

# Queries, keys and values ``(rows, heads, tokens, size)``, the mask that is added to their scores, size.
Weigh = Callable[[Any, Any, Any, Any, int], Any]


@contextlib.contextmanager
def computing(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """A module computes something else inside the block."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def operator(name: str, *inputs: Any, **attributes: Any) -> Any:
    """An operator in the traced graph, such as ``com.microsoft::MultiHeadAttention``.

    Args:
        name: with its domain.
        inputs: what it gives is shaped like the first; None for one that is left out.
        attributes: as torch.onnx's ``graph.op`` takes them.
    """
    return _function().apply(name, attributes, *inputs)


@functools.cache
def _function() -> Any:
    import torch

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, name: str, attributes: dict[str, Any], first: Any, *more: Any) -> Any:
            """A tensor of the right shape."""
            return torch.empty_like(first)  # the trace needs its shape only

        @staticmethod
        def symbolic(graph: Any, name: str, attributes: dict[str, Any], first: Any, *more: Any) -> Any:
            """The node that stands in the graph."""

            def given(some: Any) -> Any:
                if some is None:
                    some = graph.op("prim::Constant")
                    some.setType(torch._C.OptionalType.ofTensor())
                return some

            made = graph.op(name, first, *map(given, more), **attributes)
            made.setType(first.type())
            return made

    return Operator


def in_parts(query: Any, keys: Any, values: Any, mask: Any, size: int) -> Any:
    """Attention in the operators that ONNX Runtime's fusion knows; transformers 4 and 5 write others."""
    return (query @ keys.transpose(-1, -2) / math.sqrt(size) + mask).softmax(dim=-1) @ values


def _bert_attention(module: Any, queries: slice, weigh: Weigh) -> Callable[..., Any]:
    """BERT's attention from its queries, keys and values."""

    def heads(some: Any) -> Any:
        """``(rows, tokens, hidden)`` -> ``(rows, heads, tokens, size)``."""
        return some.view(some.shape[0], -1, module.num_attention_heads, module.attention_head_size).transpose(1, 2)

    def attend(tokens: Any, attention_mask: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        query, keys, values = (
            heads(part(some))
            for part, some in ((module.query, tokens[:, queries]), (module.key, tokens), (module.value, tokens))
        )
        attended = weigh(query, keys, values, attention_mask, module.attention_head_size)
        attended = attended.permute(0, 2, 1, 3)
        return attended.reshape(attended.shape[0], -1, module.all_head_size), None

    return attend


@contextlib.contextmanager
def bert_layers(model: Any, weigh: Weigh = in_parts) -> Iterator[None]:
    """Let every layer's attention be made of its queries, keys and values by ``weigh``."""
    with contextlib.ExitStack() as stack:
        for layer in model.base_model.encoder.layer:
            made = _bert_attention(layer.attention.self, slice(None), weigh)
            stack.enter_context(computing(layer.attention.self, made))
        yield


@contextlib.contextmanager
def bert_last_layer(model: Any, weigh: Weigh = in_parts) -> Iterator[None]:
    """Let the last layer's queries, and what is added to their output, be those of the first token.

    Keys and values are still made of all tokens. BERT and its kin name these modules alike.
    """
    attention = model.base_model.encoder.layer[-1].attention
    with (
        attention.output.register_forward_pre_hook(lambda _, inputs: (inputs[0], inputs[1][:, :1])),
        computing(attention.self, _bert_attention(attention.self, slice(1), weigh)),
    ):
        yield


@contextlib.contextmanager
def modernbert_last_layer(model: Any) -> Iterator[None]:
    """As for BERT, where the head reads the first token. Its position is 0, where rotary positions turn nothing.

    The one matrix of queries, keys and values becomes three, so that queries have one of their own.
    """
    if model.config.classifier_pooling != "cls":
        yield
        return
    layer = model.model.layers[-1]
    attention, whole = layer.attn, layer.attn.Wqkv
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    module: Any = sys.modules[type(layer).__module__]

    def part_of(whole: Any, rows: slice) -> Any:
        part = type(whole)(whole.in_features, width, bias=whole.bias is not None)
        part.load_state_dict({name: values[rows] for name, values in whole.state_dict().items()})
        return part

    def attend(tokens: Any, mask: Any, rotation: Callable[[Any], tuple[Any, Any]]) -> Any:
        query, keys, values = (
            part(some).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, some in ((attention.Wq, tokens[:, :1]), (attention.Wk, tokens), (attention.Wv, tokens))
        )
        cos, sin = rotation(keys)
        keys = module.apply_rotary_pos_emb(keys, keys, cos, sin)[1]
        weights = query @ keys.transpose(2, 3) * attention.head_dim**-0.5 + mask[:, :, :1]
        return attention.Wo((weights.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))

    def after(tokens: Any, *attended: Any) -> Any:
        first = tokens[:, :1] + attention(layer.attn_norm(tokens), *attended)
        return first + layer.mlp(layer.mlp_norm(first))

    def compute(tokens: Any, attention_mask: Any, position_embeddings: Any = None, **more: Any) -> Any:
        if position_embeddings is not None:
            return after(tokens, attention_mask, lambda _: position_embeddings)
        is_global = attention.local_attention == (-1, -1)  # of transformers 4
        mask = attention_mask if is_global else more["sliding_window_mask"]
        return (after(tokens, mask, lambda keys: attention.rotary_emb(keys, position_ids=more["position_ids"])),)

    for number, name in enumerate(("Wq", "Wk", "Wv")):
        setattr(attention, name, part_of(whole, slice(number * width, (number + 1) * width)))
    del attention.Wqkv
    try:
        with computing(attention, attend), computing(layer, compute):
            yield
    finally:
        attention.Wqkv = whole


@contextlib.contextmanager
def deberta_of_equal_lengths(model: Any) -> Iterator[None]:
    """Every layer of DeBERTa asks whether there are as many queries as keys, by an If that OpenVINO cannot load.

    There are, and then it takes the relative positions that were computed once for all layers.
    """
    module: Any = sys.modules[type(model).__module__]
    asked = module.build_rpos
    module.build_rpos = lambda _query, _key, relative_positions, *_: relative_positions
    try:
        yield
    finally:
        module.build_rpos = asked


def last_token(model: Any) -> AbstractContextManager[None]:
    """Read the last token under the attention mask; transformers looks for the last id that is not the padding's."""

    def forward(input_ids: Any, attention_mask: Any) -> Any:
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return {LOGITS: model.score(_at(hidden, attention_mask.sum(dim=1) - 1)[:, 0])}

    return computing(model, forward)


@contextlib.contextmanager
def decoder_last_layer(model: Any) -> Iterator[None]:
    """Let the last layer's queries, and all that follows them, be those of the last token under the attention mask.

    Keys and values are still made of all tokens. Qwen2, Qwen3 and Gemma name these modules alike.
    """
    layer = model.base_model.layers[-1]
    attention, module = layer.self_attn, sys.modules[type(layer).__module__]

    def attend(tokens: Any, read: Any, mask: Any, rotations: tuple[Any, Any]) -> Any:
        heads = [
            part(some).view(*some.shape[:-1], -1, attention.head_dim)  # a traced unflatten keeps the example's length
            for part, some in ((attention.q_proj, read), (attention.k_proj, tokens), (attention.v_proj, tokens))
        ]
        if hasattr(attention, "q_norm"):
            heads[:2] = attention.q_norm(heads[0]), attention.k_norm(heads[1])
        query, keys, values = (some.transpose(1, 2) for some in heads)
        query = module.apply_rotary_pos_emb(query, query, *rotations[0])[0]
        keys = module.apply_rotary_pos_emb(keys, keys, *rotations[1])[1]
        attended = module.eager_attention_forward(attention, query, keys, values, mask, attention.scaling)[0]
        return attention.o_proj(attended.flatten(2))

    def compute(place: Any, tokens: Any, attention_mask: Any, position_embeddings: Any, **_: Any) -> Any:
        read = _at(tokens, place)
        mask = attention_mask.gather(2, place[:, None, None, None].expand(-1, 1, 1, attention_mask.shape[-1]))
        turned = tuple(some[0].index_select(0, place)[:, None] for some in position_embeddings)
        normed = layer.input_layernorm(tokens)
        last = read + attention(normed, _at(normed, place), mask, (turned, position_embeddings))
        return last + layer.mlp(layer.post_attention_layernorm(last))

    def forward(input_ids: Any, attention_mask: Any) -> Any:
        place = attention_mask.sum(dim=1) - 1
        with computing(layer, functools.partial(compute, place)):
            hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        return {LOGITS: model.score(hidden[:, 0])}

    with computing(attention, attend), computing(model, forward):
        yield


def _at(tokens: Any, place: Any) -> Any:
    """One token of each row: ``(rows, tokens, width)`` -> ``(rows, 1, width)``."""
    return tokens.gather(1, place[:, None, None].expand(-1, 1, tokens.shape[-1]))


@contextlib.contextmanager
def last_token_of_gemma(model: Any) -> Iterator[None]:
    """As `last_token`. Gemma's norms multiply by 1 + weight; traced without values, all of them would share the sum.

    So the sum is made before, and is the weight.
    """
    module: Any = sys.modules[type(model).__module__]

    def scaled(norm: Any) -> Callable[[Any], Any]:
        return lambda tokens: norm._norm(tokens) * norm.weight

    with contextlib.ExitStack() as stack:
        stack.enter_context(last_token(model))
        for norm in [norm for norm in model.modules() if isinstance(norm, module.GemmaRMSNorm)]:
            stack.callback(setattr, norm, "weight", norm.weight)
            norm.weight = type(norm.weight)(1 + norm.weight.detach())
            stack.enter_context(computing(norm, scaled(norm)))
        yield
