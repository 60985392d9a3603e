"""Training groups for the demo model, from texts that PyPI and Debian's packages bring along.

Each text gives a document and, cut from it, a query. All is cached; to begin anew, remove the cache folder.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tools.demo_training.mining import Candidates, groups_of, mine
from tools.demo_training.texts import Text, collect, digest
from triton_rerank_export.demo.demo_model import BODY_SHA256, body_path
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.data import FloatArray, Group
from triton_rerank_export.finetune.train import fast_bf16
from triton_rerank_server.atomic import write_file

RECIPE_VERSION = 1  # part of the caches' names: raise it when the same machine would give other groups
QUERY_WORDS = (22, 65)  # of a passage that becomes a query
TITLE_ONLY_SHARE = 0.25
EMBEDDED_TOKENS = 128  # what the body was trained for

# Question forms by kind of title.
_QUESTIONS = {
    "term": ("what is {}?", "what does {} mean?", "define {}", "meaning of {}"),
    "summary": ("is there a package for {}?", "I need {}", "looking for {}", "which program offers {}?"),
    "task": ("how do I {}?", "how to {}", "function to {}", "what is used to {}?"),
    "heading": ("{}", "tell me about {}", "explain {}"),
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_T = TypeVar("_T")


@dataclass(frozen=True)
class CorpusConfig:
    """How much is built: at most so many documents, and queries made from them, drawn evenly with ``seed``."""

    documents: int = 30_000
    queries: int = 12_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 50 <= self.queries <= self.documents:
            raise ExportError(f"{self.queries} queries of {self.documents} documents; need 50 <= queries <= documents")


class Example(NamedTuple):
    """A document, and the query made from what it no longer holds; None where too little would be left."""

    query: str | None
    document: str


def build(cache: Path, config: CorpusConfig, console: Console) -> list[Group]:
    """Return mined training groups with a teacher's scores: built once, then read from the cache.

    Args:
        cache: folder for what is downloaded and computed, some 300 MB; made if missing.
        config: sizes and seed.
        console: where progress and missing sources are shown.

    Raises:
        ExportError: no source at all could be had; or the body, bm25s or PyStemmer is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    texts = _drawn(_cached_texts(cache, console), config.documents, config.seed)
    examples = [make_example(text, np.random.default_rng((config.seed, i))) for i, text in enumerate(texts)]
    documents = [example.document for example in examples]
    asked = [(example.query, i) for i, example in enumerate(examples) if example.query is not None]
    pairs = _drawn(asked, config.queries, config.seed)
    queries, sources = [query for query, _ in pairs], [source for _, source in pairs]
    candidates = _cached_candidates(cache, queries, sources, documents, config.seed, console)
    return groups_of(queries, documents, candidates)


def make_example(text: Text, rng: np.random.Generator) -> Example:
    """Make a document and a query of a text: its title, a question, a sentence or a passage, taken out of it."""
    sentences = _SENTENCE_END.split(text.body)
    if rng.random() < TITLE_ONLY_SHARE and len(text.title.split()) >= 3:
        return Example(_passage(sentences, rng)[0], text.title)
    form = rng.random()
    if form < 0.15:
        return Example(text.title, text.body)
    if form < 0.35:
        return Example(_question(text, rng), text.body)
    cut, rest = _sentence(sentences, rng) if form < 0.65 else _passage(sentences, rng)
    if min(len(cut.split()), len(rest.split())) < 6:
        return Example(None, f"{text.title}. {text.body}")
    return Example(cut, f"{text.title}. {rest}")


def _question(text: Text, rng: np.random.Generator) -> str:
    title, forms = text.title, _QUESTIONS[text.kind]
    if title.endswith("?"):
        return title
    if text.kind == "task":
        title = title[:1].lower() + title[1:]
    return forms[int(rng.integers(len(forms)))].format(title)


def _sentence(sentences: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Take one sentence out; returns (it, the rest)."""
    i = int(rng.integers(len(sentences)))
    return sentences[i], " ".join(sentences[:i] + sentences[i + 1 :])


def _passage(sentences: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Take neighbouring sentences out, of 22 to 65 words in all where there are so many; returns (them, the rest)."""
    first = end = int(rng.integers(len(sentences)))
    words: list[str] = []
    least = int(rng.integers(*QUERY_WORDS))
    while end < len(sentences) and len(words) < least:
        words += sentences[end].split()
        end += 1
    return " ".join(words[: QUERY_WORDS[1]]), " ".join(sentences[:first] + sentences[end:])


def _drawn(items: Sequence[_T], n: int, seed: int) -> list[_T]:
    """Return at most n items, drawn evenly, in their order."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:n])
    return [items[int(i)] for i in chosen]


def _cached_texts(cache: Path, console: Console) -> list[Text]:
    path = cache / f"texts-{RECIPE_VERSION}.jsonl"
    if not path.is_file():
        lines = [json.dumps(asdict(text)) for text in collect(cache, console)]
        write_file(path, "\n".join(lines).encode())
    return [Text(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _cached_candidates(
    cache: Path, queries: list[str], sources: list[int], documents: list[str], seed: int, console: Console
) -> Candidates:
    key = digest(json.dumps([RECIPE_VERSION, BODY_SHA256, seed, queries, documents]))[:16]
    path = cache / f"candidates-{key}.npz"
    if not path.is_file():
        vectors = _cached_vectors(cache, queries, console), _cached_vectors(cache, documents, console)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("finding candidates", total=len(queries))
            mined = mine(queries, sources, documents, vectors, seed=seed, advance=lambda n: progress.advance(task, n))
        buffer = io.BytesIO()
        np.savez(buffer, indices=mined.indices, scores=mined.scores)
        write_file(path, buffer.getvalue())
    with np.load(path) as stored:
        return Candidates(stored["indices"], stored["scores"])


def _cached_vectors(cache: Path, texts: list[str], console: Console) -> FloatArray:
    path = cache / f"vectors-{digest(json.dumps([RECIPE_VERSION, BODY_SHA256, texts]))[:16]}.npy"
    if not path.is_file():
        buffer = io.BytesIO()
        np.save(buffer, _embed(texts, console))
        write_file(path, buffer.getvalue())
    vectors: FloatArray = np.load(path)
    return vectors


def _embed(texts: list[str], console: Console) -> FloatArray:
    """Return the body's unit vectors of the texts, (n, 384) float32: mean of the token vectors, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = body_path()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode(), Progress(console=console, disable=not console.is_terminal) as progress:
        for start in progress.track(range(0, len(order), 32), description="embedding texts"):
            chunk = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in chunk],
                truncation=True,
                max_length=EMBEDDED_TOKENS,
                padding=True,
                return_tensors="pt",
            )
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bf16(torch.device("cpu"))):
                hidden = model(**batch).last_hidden_state.float()  # (n, L, 384)
            mask = batch["attention_mask"][:, :, None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[chunk] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return vectors
