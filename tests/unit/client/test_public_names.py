"""What users import, and what they read of it in a traceback, a repr or a pickle."""

from __future__ import annotations

import importlib
import pickle
import traceback
import typing
from dataclasses import is_dataclass
from typing import Any

import pytest

import triton_rerank
from triton_rerank import OverloadedError, RerankClient, TritonOptions, TritonScorer

PUBLIC: dict[str, Any] = {name: getattr(triton_rerank, name) for name in triton_rerank.__all__}
MODULES = {  # that docs, examples or another distribution name, with one thing that is asked of each
    "cli": "main",
    "confidence": "ConfidenceBands",
    "console": "use_utf8",
    "contract": "LOGITS",
    "documents": "read_documents",
    "errors": "RerankError",
    "extending": "PairRequest",
    "repository": "exported_models",
    "testing": "FakeScorer",
    "types": "RerankResult",
}


def test_all_is_sorted() -> None:
    assert triton_rerank.__all__ == sorted(triton_rerank.__all__)


@pytest.mark.parametrize(("module", "name"), MODULES.items())
def test_public_modules_keep_their_place(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"triton_rerank.{module}"), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_where_it_is_imported_from(name: str) -> None:
    told = PUBLIC[name].__module__
    assert getattr(importlib.import_module(told), name) is PUBLIC[name]
    assert told == "triton_rerank" or is_dataclass(PUBLIC[name])


@pytest.mark.parametrize("name", [name for name, public in PUBLIC.items() if is_dataclass(public)])
def test_annotations_can_be_read(name: str) -> None:
    assert typing.get_type_hints(PUBLIC[name])


def test_a_traceback_names_an_error_as_it_is_caught() -> None:
    assert traceback.format_exception_only(OverloadedError("full")) == ["triton_rerank.OverloadedError: full\n"]


def test_a_repr_names_a_class_as_it_is_imported() -> None:
    scorer = TritonScorer("localhost:8001", "m")
    assert repr(scorer).startswith("<triton_rerank.TritonScorer object at ")
    assert repr(RerankClient(scorer=scorer)).startswith("<triton_rerank.RerankClient object at ")


@pytest.mark.parametrize(
    "value", [OverloadedError("full"), TritonOptions(retries=2)], ids=lambda value: type(value).__name__
)
def test_a_pickle_names_them_so_too(value: object) -> None:
    pickled = pickle.dumps(value)
    assert type(value).__module__.encode() in pickled
    assert type(pickle.loads(pickled)) is type(value)
