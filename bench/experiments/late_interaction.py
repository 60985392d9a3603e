"""What would late interaction (ColBERT) take within this contract, and what would a cache of document vectors save?

    python bench/experiments/late_interaction.py

First a tiny model: one graph takes the contract's tensors of a pair, makes a query row and a document row of them
([Q] and [D] behind [CLS], the query filled up with [MASK] to 32, punctuation left out), encodes both and sums MaxSim.
Its scores are held against the plain way, one text at a time. Then random weights of a true shape (12 layers of 384,
vectors of 96, as answerai-colbert-small): that graph, the two encoders apart, and a cross-encoder of the same body, in
turns. docs/LOG.md has what came of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from triton_rerank_bench.machine import OtherLoad, describe_machine

PAD, CLS, SEP, MASK, QUERY, DOCUMENT = range(6)
PUNCTUATION = range(6, 16)
FIRST_WORD = 16
QUERY_LENGTH = 32
BATCH_TOKENS = 1024  # of a micro-batch, as the encoder on a CPU computes them
TENSORS = ["input_ids", "attention_mask", "token_type_ids"]
TINY = BertConfig(
    vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=256, initializer_range=0.3,
)  # fmt: skip
TRUE = BertConfig(
    hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536, num_labels=1
)  # fmt: skip

Feed = dict[str, npt.NDArray[np.int64]]


class Colbert(nn.Module):
    """BERT, a projection without bias, and MaxSim over the tokens of a pair."""

    def __init__(self, config: BertConfig, width: int) -> None:
        super().__init__()
        self.body = BertModel._from_config(config, attn_implementation="eager", add_pooling_layer=False)
        self.projection = nn.Linear(config.hidden_size, width, bias=False)
        skipped = torch.zeros(config.vocab_size, dtype=torch.bool)
        skipped[[PAD, *PUNCTUATION]] = True
        self.register_buffer("skipped", skipped)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors ``(rows, length, width)`` of ids and mask, int64 ``(rows, length)``."""
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(self.projection(hidden), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Scores ``(rows, 1)`` of pairs ``[CLS] query [SEP] document [SEP]``, int64 ``(rows, length)`` each."""
        of_query = (attention_mask * (1 - token_type_ids)).sum(dim=1, keepdim=True)
        of_document = (attention_mask * token_type_ids).sum(dim=1, keepdim=True)
        place = torch.arange(QUERY_LENGTH).expand(input_ids.shape[0], -1)
        in_query = place <= of_query
        from_pair = input_ids.gather(1, (place - 1).clamp(min=0).minimum(of_query - 1))
        query_ids = torch.where(in_query, torch.where(place == 1, QUERY, from_pair), MASK)
        queries = self.encode(query_ids, in_query.to(torch.int64))
        place = torch.arange(input_ids.shape[1]).expand(input_ids.shape[0], -1)
        in_document = place < of_document + 2
        source = (place - 2 + of_query).clamp(max=input_ids.shape[1] - 1)
        from_pair = torch.where(place == 0, CLS, torch.where(place == 1, DOCUMENT, input_ids.gather(1, source)))
        document_ids = torch.where(in_document, from_pair, PAD)
        documents = self.encode(document_ids, in_document.to(torch.int64))
        return self.maxsim(queries, documents, document_ids)[:, None]

    def maxsim(self, queries: Tensor, documents: Tensor, document_ids: Tensor) -> Tensor:
        """``(rows, 32, width)``, ``(rows, length, width)`` and its ids ``(rows, length)`` -> scores ``(rows,)``."""
        likeness = queries @ documents.transpose(1, 2)
        left_out = self.skipped[document_ids][:, None, :]  # type: ignore[index]
        return likeness.masked_fill(left_out, -2.0).max(dim=2).values.sum(dim=1)


class Encoder(nn.Module):
    """One side alone."""

    def __init__(self, model: Colbert) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As ``Colbert.encode``."""
        return self.model.encode(input_ids, attention_mask)


def session(model: nn.Module, inputs: Sequence[str]) -> ort.InferenceSession:
    """A model in ONNX Runtime, of any number of rows and any length."""
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in inputs}
    if TENSORS[2] in inputs:
        example[TENSORS[2]][:, :5] = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (example,), path, input_names=list(inputs), output_names=["out"],
            dynamic_axes={name: {0: "rows", 1: "length"} for name in inputs}, opset_version=18, dynamo=False,
        )  # fmt: skip
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def words(numbers: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    """Ids of words and punctuation."""
    return [int(token) for token in numbers.integers(PUNCTUATION[0], vocabulary, count)]


def pairs(texts: Sequence[tuple[list[int], list[int]]]) -> Feed:
    """Query and document ids -> the contract's tensors of their pairs, padded on the right."""
    rows = [([CLS, *query, SEP], [*document, SEP]) for query, document in texts]
    feed = {name: np.zeros((len(rows), max(len(a) + len(b) for a, b in rows)), np.int64) for name in TENSORS}
    for number, (query, document) in enumerate(rows):
        feed["input_ids"][number, : len(query) + len(document)] = query + document
        feed["attention_mask"][number, : len(query) + len(document)] = 1
        feed["token_type_ids"][number, len(query) : len(query) + len(document)] = 1
    return feed


def query_row(query: list[int]) -> Feed:
    """A query by itself; the filling is not attended to, but its vectors are read."""
    ids = [CLS, QUERY, *query, SEP]
    mask = [1] * len(ids) + [0] * (QUERY_LENGTH - len(ids))
    ids += [MASK] * (QUERY_LENGTH - len(ids))
    return {"input_ids": np.array([ids]), "attention_mask": np.array([mask])}


def document_rows(documents: Sequence[list[int]]) -> Feed:
    """Documents of one length."""
    ids = np.array([[CLS, DOCUMENT, *document, SEP] for document in documents])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def largest_difference(seed: int) -> float:
    """Of the pair graph's scores to those of each text by itself, in torch."""
    torch.manual_seed(seed)
    numbers, model = np.random.default_rng(seed), Colbert(TINY, 16).eval()
    lengths = [(3, 9), (1, 0), (12, 40), (28, 5), (7, 120)]
    texts = [(words(numbers, q, TINY.vocab_size), words(numbers, d, TINY.vocab_size)) for q, d in lengths]
    scores = session(model, TENSORS).run(None, pairs(texts))[0][:, 0]
    expected = []
    with torch.no_grad():
        for query, document in texts:
            sides = [query_row(query), document_rows([document])]
            q, d = (model.encode(*(torch.from_numpy(row[name]) for name in TENSORS[:2]))[0] for row in sides)
            kept = [place for place, token in enumerate(sides[1]["input_ids"][0]) if token not in PUNCTUATION]
            expected.append(sum(max(float(a @ d[place]) for place in kept) for a in q))
    return float(np.max(np.abs(scores - np.array(expected))))


def maxsim(query: npt.NDArray[np.float32], documents: Sequence[npt.NDArray[np.float32]]) -> float:
    """Time of MaxSim alone is in here: ``(32, width)`` against n of ``(length, width)``; the best score."""
    return max(float((document @ query.T).max(axis=0).sum()) for document in documents)


def contestants(numbers: np.random.Generator, count: int, length: int, width: int) -> dict[str, Callable[[], Any]]:
    """What is timed, for one query of ten tokens and its documents."""
    query = words(numbers, 10, TRUE.vocab_size)
    documents = [words(numbers, length, TRUE.vocab_size) for _ in range(count)]
    rows = max(1, BATCH_TOKENS // length)
    batches = [documents[start : start + rows] for start in range(0, count, rows)]
    late = Colbert(TRUE, width)
    encoder, pair_graph = session(Encoder(late), TENSORS[:2]), session(late, TENSORS)
    cross_encoder = session(BertForSequenceClassification._from_config(TRUE, attn_implementation="eager"), TENSORS)
    feeds, sides = [pairs([(query, one) for one in batch]) for batch in batches], [*map(document_rows, batches)]
    kept = [vectors for side in sides for vectors in encoder.run(None, side)[0]]

    def apart(cached: int) -> float:
        """Score by vectors of which the first ``cached`` are at hand, the others computed now."""
        fresh = [vectors for side in sides[cached:] for vectors in encoder.run(None, side)[0]]
        found = [*kept[: count - len(fresh)], *fresh]
        return maxsim(encoder.run(None, query_row(query))[0][0], found)

    return {
        "cross-encoder": lambda: [cross_encoder.run(None, feed) for feed in feeds],
        "late, pairs in one graph": lambda: [pair_graph.run(None, feed) for feed in feeds],
        "late, nothing kept": lambda: apart(0),
        "late, half of the documents kept": lambda: apart(len(sides) // 2),
        "late, all documents kept": lambda: apart(len(sides)),
        "MaxSim alone": lambda: maxsim(kept[0][:QUERY_LENGTH], kept),
    }


def main() -> None:
    """Print the difference, then the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--length", type=int, default=90, help="tokens of a document")
    parser.add_argument("--width", type=int, default=96, help="numbers of a vector")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options, console = parser.parse_args(), Console(width=110)
    difference = largest_difference(options.seed)
    console.print(f"largest difference of a score to one text at a time: {difference:.1e}")
    torch.manual_seed(options.seed)
    timed = contestants(np.random.default_rng(options.seed), options.documents, options.length, options.width)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with OtherLoad() as load:
        for _ in range(options.rounds + 1):  # the first one warms up
            for name, run in timed.items():
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    least = {name: min(taken[1:]) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        times = f"least {1e3 * least[name]:9.1f} ms {least[name] / least['cross-encoder']:6.3f} x"
        console.print(f"{name:34} {times}  median {1e3 * statistics.median(taken[1:]):9.1f} ms")
    stored = 2 * (options.length + 3) * options.width / 1e3
    console.print(f"vectors of a document: {stored:.1f} kB in fp16; others used {load.share():.0%} of the cores")
    console.print(str(describe_machine()))


if __name__ == "__main__":
    main()
