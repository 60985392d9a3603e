"""Are long documents ranked better by their best chunk than cut? Collections whose documents are joined into long ones.

    python bench/experiments/long_documents.py --data ../shared/data/cisi --data ../shared/data/cacm --queries 30

Each long document holds one document of the collection, relevant to the query or not, at a random place among others
that are not relevant, and is more than twice as long as the model reads. "alone" ranks the same documents without the
others: what there is to lose. The demo model in process, as it is served.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from triton_rerank import LocalScorer, RerankClient
from triton_rerank_retrieval.eval.data import Collection, load_collection
from triton_rerank_retrieval.eval.measures import difference, evaluate, means

RELEVANT, OTHERS = 3, 9  # documents that a query ranks
CHARACTERS = 5000  # of each, at least
MEASURES = ("nDCG@10", "RR@10")
console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Long:
    """A long document: id and text of the one that it is about, and the whole."""

    id: str
    about: str
    text: str

    def is_hit(self, chunk: tuple[int, int]) -> bool:
        """Has a chunk some of what the document is about?"""
        start = self.text.index(self.about)
        return chunk[0] < start + len(self.about) and start < chunk[1]


def long_documents(collection: Collection, query: str, rng: random.Random) -> list[Long]:
    """Some about documents that are relevant, more about others, in any order."""
    texts = dict(zip(collection.corpus.ids, collection.corpus.texts, strict=True))
    relevant = sorted(id for id, grade in collection.qrels[query].items() if grade > 0)
    others = sorted(texts.keys() - set(relevant))
    made = []
    for id in [*rng.sample(relevant, min(RELEVANT, len(relevant))), *rng.sample(others, OTHERS)]:
        parts = [texts[id]]
        while sum(map(len, parts)) < CHARACTERS:
            parts.append(texts[rng.choice(others)])
        rng.shuffle(parts)
        made.append(Long(id, texts[id], "\n\n".join(parts)))
    rng.shuffle(made)
    return made


def measure(client: RerankClient, collection: Collection, n_queries: int) -> None:
    """Rank in three ways, and print what each is worth."""
    rng = random.Random(1)  # noqa: S311 - texts to rank, no secret
    runs: dict[str, dict[str, list[str]]] = {"cut": {}, "chunks": {}, "alone": {}}
    qrels, hits = {}, []
    for query, text in rng.sample([*collection.queries.items()], min(n_queries, len(collection.queries))):
        long = long_documents(collection, query, rng)
        qrels[query] = {each.id: collection.qrels[query].get(each.id, 0) for each in long}
        wholes = [each.text for each in long]
        ranked = {
            "cut": client.rerank(text, wholes),
            "chunks": client.rerank(text, wholes, long_documents="chunk"),
            "alone": client.rerank(text, [each.about for each in long]),
        }
        for way, found in ranked.items():
            runs[way][query] = [long[row.index].id for row in found]
        best = [(long[row.index], row.best_chunk) for row in ranked["chunks"] if row.best_chunk is not None]
        hits += [each.is_hit(chunk) for each, chunk in best if qrels[query][each.id]]
    values = {way: evaluate(qrels, run, MEASURES) for way, run in runs.items()}
    for way, value in values.items():
        told = ", ".join(f"{name} {mean:.4f}" for name, mean in means(value).items())
        console.print(f"{collection.name}, {len(qrels)} queries, {way}: {told}")
    for name in MEASURES:
        gain = difference(values["chunks"][name], values["cut"][name])
        console.print(
            f"{collection.name}, chunks − cut, {name}: {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        )
    console.print(
        f"{collection.name}: the best chunk of {sum(hits)} of {len(hits)} relevant documents has the relevant text"
    )


def main() -> None:
    """Measure every collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder in BEIR form; again for more")
    parser.add_argument("--queries", type=int, default=30, help="of each")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args()
    scorer = LocalScorer(options.model_repository, "minilm-l6-demo")
    with RerankClient(scorer=scorer, timeout_s=600.0) as client:
        for folder in options.data:
            measure(client, load_collection(folder), options.queries)


if __name__ == "__main__":
    main()
