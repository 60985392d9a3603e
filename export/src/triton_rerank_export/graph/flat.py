"""BERT's kind of model as a flat graph: the tokens of all rows one after the other, and nothing computed for padding.

Its inputs are int64 ``(tokens,)``, rows of any widths flattened one after the other, and ``widths``, int32 ``(rows,)``:
how many of these numbers are a row's, padding included. NVIDIA's backends make that of requests that they merge
(``batch_input`` of the kind BATCH_ITEM_SHAPE_FLATTEN), our encoder of the rows that it computes together. The graph
drops the padding; its embeddings, linear layers and norms see real tokens only: ``(real tokens, width)``.

Attention is the one operator that has to know the rows. `packed` is ``PackedMultiHeadAttention``, which ONNX Runtime
has for CUDA alone. The other form runs on a CPU: ``MultiHeadAttention`` over rectangles of rows of about one length, in
four classes. One rectangle for all would be quadratic in the longest row for every row: 24 s instead of 1 s for one row
of 512 tokens among 96 short ones (docs/LOG.md).
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from triton_rerank.contract import LOGITS
from triton_rerank_export.graph.as_traced import computing, operator

_CLASSES = (0, 48, 96, 192, sys.maxsize)  # tokens a row: above the one, up to the next

Attention = Callable[[Any, Any], Any]  # a layer's module, (tokens, width) -> (tokens or rows, width)


def flat(model: Any, pad_token_id: int | None, *, packed: bool) -> AbstractContextManager[None]:
    """Let a model take flat inputs while it is traced; in its last layer, what follows attention is for first tokens.

    Args:
        model: a classifier whose layers are BERT's, and which reads the first token.
        pad_token_id: where positions are counted from behind it; None: from 0, whatever the ids.
        packed: attention is for CUDA, else for CPUs.
    """
    base = model.base_model

    def forward(input_ids: Any, attention_mask: Any, widths: Any, token_type_ids: Any = None) -> Any:
        """The model's own, over real tokens only."""
        tokens = _Tokens(attention_mask, widths.long())
        ids = input_ids[tokens.at]
        segments = ids * 0 if token_type_ids is None else token_type_ids[tokens.at]
        positions = tokens.column if pad_token_id is None else tokens.counted(ids, pad_token_id)
        given = {"input_ids": ids, "token_type_ids": segments, "position_ids": positions}
        hidden = base.embeddings(**{name: some[None] for name, some in given.items()}).squeeze(0)
        if hasattr(base, "embeddings_project"):
            hidden = base.embeddings_project(hidden)
        with _attending(base.encoder.layer, tokens, *(_packed(tokens) if packed else _in_classes(tokens))):
            first = base.encoder(hidden)[0][:, None]
        pooler = getattr(base, "pooler", None)
        return {LOGITS: model.classifier(first if pooler is None else pooler(first))}

    return computing(model, forward)


class _Tokens:
    """The real tokens of a ragged batch, row after row. A row's first token is always real.

    Attributes:
        lengths: real tokens of each row: ``(rows,)``, as all numbers here int64.
        first: of them, the number of each row's first: ``(rows,)``.
        row, column: of each token, in the batch as it came: ``(tokens,)``.
        at: of each token, its place in the flat inputs: ``(tokens,)``.
        rank: of each token, its number among its row's: ``(tokens,)``.
    """

    def __init__(self, attention_mask: Any, widths: Any) -> None:
        import torch

        columns = torch.arange(widths.max())
        starts = widths.cumsum(0) - widths
        inside = columns < widths[:, None]
        seen = attention_mask[torch.where(inside, starts[:, None] + columns, 0)] != 0
        real = inside & (seen | (columns == 0))
        self.lengths = real.sum(1)
        self.first = self.lengths.cumsum(0) - self.lengths
        self.row, self.column = real.nonzero().unbind(1)
        self.at = starts[self.row] + self.column
        self.rank = torch.arange(self.row.shape[0]) - self.first[self.row]

    def counted(self, ids: Any, pad_token_id: int) -> Any:
        """Positions as RoBERTa has them: behind the padding's id, which itself is not counted."""
        counts = (ids != pad_token_id).long()
        sums = counts.cumsum(0)
        before = (sums - counts)[self.first]
        return (sums - before[self.row]) * counts + pad_token_id


@contextlib.contextmanager
def _attending(layers: Any, tokens: _Tokens, attend: Attention, attend_first: Attention) -> Iterator[None]:
    """Every layer attends within rows; of the last one, what is added to attention is that of the first tokens."""

    def attention(module: Any, how: Attention) -> Callable[..., Any]:
        return lambda hidden, *_, **__: (how(module, hidden), None)

    last = layers[-1].attention
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            last.output.register_forward_pre_hook(lambda _, inputs: (inputs[0], inputs[1][tokens.first]))
        )
        for layer in layers:
            module = layer.attention.self
            how = attend_first if layer.attention is last else attend
            stack.enter_context(computing(module, attention(module, how)))
        yield


def _packed(tokens: _Tokens) -> tuple[Attention, Attention]:
    """Attention over packed tokens, by the places that they and the padding would have in a rectangle."""
    import torch

    live = torch.arange(tokens.lengths.max()) < tokens.lengths[:, None]
    places = torch.cat([some.reshape(-1).nonzero().squeeze(1) for some in (live, ~live)])
    offsets = places.reshape(live.shape).int()  # (rows, longest): those of the tokens first
    bounds = torch.cat([tokens.first[:1], tokens.lengths.cumsum(0)]).int()  # (rows + 1,)

    def attend(module: Any, hidden: Any) -> Any:
        made = (module.query(hidden), module.key(hidden), module.value(hidden))
        return _operator("PackedMultiHeadAttention", module, *made, None, offsets, bounds)

    return attend, lambda module, hidden: attend(module, hidden)[tokens.first]


@dataclass(frozen=True)
class _Class:
    """Rows of about one length. Where there are none, the first token of all stands in for one, and is left out again.

    ONNX Runtime 1.23, the last for Python 3.10, divides by the number of rows in attention: the process dies of none.
    """

    rows: Any  # (n,), without a stand-in
    asked: Any  # (max(n, 1),)
    tokens: Any  # (max(n, 1), longest), padding is the row's first token
    live: Any  # (max(n, 1), longest) int32: 0 for padding


def _classes(tokens: _Tokens) -> Iterator[_Class]:
    import torch

    for low, high in itertools.pairwise(_CLASSES):
        rows = ((tokens.lengths > low) & (tokens.lengths <= high)).nonzero().squeeze(1)
        asked = torch.cat([rows, torch.zeros(1, dtype=torch.int64)])
        lengths = torch.cat([tokens.lengths[rows], torch.ones(1, dtype=torch.int64)])
        numbers = torch.arange(asked.shape[0])
        kept = (numbers < rows.shape[0]) | (numbers == 0)
        asked, lengths = asked[kept], lengths[kept]
        longest: Any = lengths.max()
        columns = torch.arange(longest)
        live = columns < lengths[:, None]
        yield _Class(rows, asked, tokens.first[asked][:, None] + torch.where(live, columns, 0), live.int())


def _in_classes(tokens: _Tokens) -> tuple[Attention, Attention]:
    """Attention over a rectangle for each class, whose rows then find their places again."""
    import torch

    classes = list(_classes(tokens))
    rows = torch.cat([some.rows for some in classes])

    def places(sizes: list[Any], steps: list[Any]) -> Any:
        """Of each row of ``rows``: where it begins if class follows class, so large, its rows so far apart."""
        ends = itertools.accumulate(sizes[:-1], initial=torch.zeros(1, dtype=torch.int64))
        return torch.cat(
            [
                end + torch.arange(some.rows.shape[0]) * step
                for end, step, some in zip(ends, steps, classes, strict=True)
            ]
        )

    longest = [some.tokens.shape[1] for some in classes]
    starts = places([some.tokens.shape[0] * step for some, step in zip(classes, longest, strict=True)], longest)
    again = tokens.lengths.scatter(0, rows, starts)[tokens.row] + tokens.rank
    rows_again = tokens.lengths.scatter(0, rows, places([some.tokens.shape[0] for some in classes], [1] * len(classes)))

    def attend(module: Any, hidden: Any) -> Any:
        queries = module.query(hidden)
        return over(module, hidden, [queries[some.tokens] for some in classes])[again]

    def attend_first(module: Any, hidden: Any) -> Any:
        queries = module.query(hidden[tokens.first])
        return over(module, hidden, [queries[some.asked[:, None]] for some in classes])[rows_again]

    def over(module: Any, hidden: Any, queries: list[Any]) -> Any:
        keys, values = module.key(hidden), module.value(hidden)
        attended = [
            _operator("MultiHeadAttention", module, some, keys[of.tokens], values[of.tokens], None, of.live)
            for some, of in zip(queries, classes, strict=True)
        ]
        return torch.cat([some.reshape(-1, module.all_head_size) for some in attended])

    return attend, attend_first


def _operator(name: str, module: Any, *inputs: Any) -> Any:
    """One of ONNX Runtime's own attention operators; what it gives is shaped like the queries."""
    return operator(f"com.microsoft::{name}", *inputs, num_heads_i=module.num_attention_heads)
