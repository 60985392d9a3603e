"""Other people's retrievers as first stages: any callable, LangChain's and LlamaIndex'. Neither is imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from triton_rerank import ConfigurationError, InferenceError, InvalidResponseError, RerankError
from triton_rerank_retrieval.candidates import Candidate, Filter, field_of, matches
from triton_rerank_retrieval.corpus import Key, check_search
from triton_rerank_retrieval.files import digest_of

Find = Callable[[str, int], Iterable[Any]]


class Foreign:
    """A first stage that somebody else's code is: `of_callable`, `langchain` and `llama_index` make one.

    A document that comes twice is kept once. A filter is applied to what came back, since the code behind is not asked:
    lists may be shorter than ``k``.

    Args:
        find: query and ``k`` -> candidates, best first.
        name: what results call it.
    """

    def __init__(self, find: Callable[[str, int], Iterable[Candidate[Any]]], *, name: str) -> None:
        self._find = find
        self.name = name

    def search(self, query: str, k: int, filter: Filter | None = None) -> list[Candidate[Any]]:
        """See `Retriever.search`.

        Raises:
            InferenceError: the code behind failed.
            InvalidResponseError: what it gave is not of the form.
        """
        check_search(query, k)
        try:
            found = list(self._find(query, k))
        except RerankError:
            raise
        except Exception as exc:
            raise InferenceError(f"the first stage {self.name} failed: {type(exc).__name__}: {str(exc)[:200]}") from exc
        first: dict[str, Candidate[Any]] = {}
        for one in found:
            if matches(filter, one.document):
                first.setdefault(one.id, one)
        return list(first.values())[:k]


def of_callable(find: Find, *, text_key: Key = "text", id_key: Key = "id", name: str = "callable") -> Foreign:
    """Any function as a first stage.

    Args:
        find: query and ``k`` -> documents, or pairs of document and score, best first. Strings, mappings or objects.
        text_key: where a document has its text.
        id_key: where it has its id; a document without one is named by its text.
        name: what results call it.
    """

    def candidates(query: str, k: int) -> list[Candidate[Any]]:
        """Candidates from what the function found."""
        return [_candidate(item, text_key, id_key, name) for item in find(query, k)]

    return Foreign(candidates, name=name)


def langchain(retriever: Any, *, id_key: str = "id", name: str = "langchain") -> Foreign:
    """A LangChain retriever: anything with ``invoke(query) -> documents``.

    Args:
        retriever: how many it gives is its own setting (``search_kwargs={"k": …}``).
        id_key: metadata key of an id, where the document itself has none.
        name: what results call it.
    """
    _check_has(retriever, "invoke")

    def named(document: Any) -> Any:
        """The document's own id, or the one in its metadata."""
        return document.id or document.metadata.get(id_key)

    def candidates(query: str, k: int) -> list[Candidate[Any]]:
        """Candidates from LangChain's documents."""
        return [_candidate(found, "page_content", named, name) for found in retriever.invoke(query)]

    return Foreign(candidates, name=name)


def llama_index(retriever: Any, *, name: str = "llama-index") -> Foreign:
    """A LlamaIndex retriever: anything with ``retrieve(query) -> nodes with scores``; the document is the node."""
    _check_has(retriever, "retrieve")

    def candidates(query: str, k: int) -> list[Candidate[Any]]:
        """Candidates from LlamaIndex's nodes."""
        return [
            Candidate(found.node.node_id, found.node.get_content(), found.node, found.score)
            for found in retriever.retrieve(query)
        ]

    return Foreign(candidates, name=name)


def _candidate(item: Any, text_key: Key, id_key: Key, name: str) -> Candidate[Any]:
    document, score = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    text = document if isinstance(document, str) else _get(document, text_key)
    if not isinstance(text, str):
        raise InvalidResponseError(f"the first stage {name} gave a document without a text; name it in text_key=")
    known = None if isinstance(document, str) else _get(document, id_key)
    return Candidate(
        digest_of(text) if known is None else str(known), text, document, None if score is None else float(score)
    )


def _get(document: Any, key: Key) -> Any:
    return key(document) if callable(key) else field_of(document, key)


def _check_has(retriever: Any, method: str) -> None:
    if not callable(getattr(retriever, method, None)):
        raise ConfigurationError(f"a {type(retriever).__name__} has no {method}(): give a retriever of that framework")
