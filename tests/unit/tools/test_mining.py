import numpy as np
import pytest

from tools.demo_training.mining import groups_of, mine


def test_mining_finds_the_source_and_its_likes_and_scores_them_above_the_rest() -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    topics = ["compilers", "databases", "networks", "graphics"]
    documents = [f"{topics[i % 4]} are explained in volume {i} of the series" for i in range(400)]
    documents[5] = "databases with transactions and indexes"
    vectors = np.eye(4, dtype=np.float32)[[i % 4 for i in range(400)]]
    queries, sources = ["transactions in databases", "the"], [5, 6]
    query_vectors = np.eye(4, dtype=np.float32)[[1, 2]]
    mined = mine(queries, sources, documents, (query_vectors, vectors), seed=0)
    again = mine(queries, sources, documents, (query_vectors, vectors), seed=0)
    assert np.array_equal(mined.indices, again.indices)
    group, only_stop_words = groups_of(queries, documents, mined)
    assert group.documents[0] == documents[5]
    assert len(set(group.documents)) == len(group.documents) >= 100
    assert group.scores is not None
    assert group.scores[0] == max(group.scores)
    assert min(group.scores) >= -3
    same_topic = [s for d, s in zip(group.documents, group.scores, strict=True) if d.startswith("databases")]
    others = [s for d, s in zip(group.documents, group.scores, strict=True) if not d.startswith("databases")]
    assert min(same_topic) > max(others)
    assert only_stop_words.documents[0] == documents[6]
