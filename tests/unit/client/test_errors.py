"""The tree at the head of errors.py is the classes: same parents, same attributes."""

from __future__ import annotations

import pickle
import re

import pytest

import triton_rerank
from triton_rerank import Attempt, errors

ROW = re.compile(r"[├└]─ (\w+)(?: \((\w+)\))?\s+(?:\((base)|(yes|no)\s+(yes|no)\s+(\d+)\s+(\d+))")
CLASSES = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.RerankError)}


def test_the_drawn_tree_is_the_class_tree() -> None:
    drawn = {row[1]: row for row in ROW.finditer(errors.__doc__ or "")}
    assert set(drawn) == set(CLASSES) - {"RerankError"}
    for name, row in drawn.items():
        cls = CLASSES[name]
        if row[2]:
            assert row[2] in [base.__name__ for base in cls.__mro__]
        if not row[3]:
            told = (row[4] == "yes", row[5] == "yes", int(row[6]), int(row[7]))
            assert (cls.retryable, cls.falls_back, cls.http_status, cls.exit_code) == told


def test_every_error_is_exported() -> None:
    assert set(CLASSES) <= set(triton_rerank.__all__)


def test_classes_that_are_raised_have_exit_codes_of_their_own() -> None:
    leaves = [cls for cls in CLASSES.values() if sum(issubclass(other, cls) for other in CLASSES.values()) == 1]
    raised: list[type[errors.RerankError]] = [*leaves, errors.InvalidRequestError]
    codes = [cls.exit_code for cls in raised if cls is not errors.RequestTooLargeError]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 130, 141} & set(codes)  # done, cannot write, interrupted, broken pipe


def test_what_may_be_retried_may_be_asked_elsewhere_too() -> None:
    assert all(cls.falls_back for cls in CLASSES.values() if cls.retryable)


def test_what_python_code_catches_by_habit_is_caught() -> None:
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.DeadlineExceededError, TimeoutError)


def made(cls: type[errors.RerankError], request_id: str | None = None) -> errors.RerankError:
    if cls is errors.AllScorersFailedError:
        attempts = (Attempt("a", "Skipped", "why", 0.0),)
        return errors.AllScorersFailedError("what was wrong", attempts=attempts, request_id=request_id)
    return cls("what was wrong", request_id=request_id)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=list(CLASSES))
def test_an_error_holds_its_message_and_the_requests_id(cls: type[errors.RerankError]) -> None:
    assert (str(made(cls, "7")), made(cls, "7").request_id) == ("what was wrong", "7")
    assert made(cls).request_id is None


@pytest.mark.parametrize("cls", CLASSES.values(), ids=list(CLASSES))
def test_an_error_passes_between_processes(cls: type[errors.RerankError]) -> None:
    """lancedb/lancedb#3447, python/cpython#103061, python/cpython#79492: an error without a pickle hung a pool."""
    error = made(cls, "7")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (cls, str(error), vars(error))
