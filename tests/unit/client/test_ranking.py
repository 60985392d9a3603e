from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from triton_rerank.core.ranking import activate, order


def logits(*values: float) -> npt.NDArray[Any]:
    return np.array(values, np.float32)


def test_best_first() -> None:
    assert order(logits(0.5, 2.0, -1.0)).tolist() == [1, 0, 2]


def test_ties_keep_the_callers_order() -> None:
    assert order(logits(1.0, 3.0, 1.0, 3.0)).tolist() == [1, 3, 0, 2]


def test_documents_whose_sigmoids_tie_are_still_ordered_by_logit() -> None:
    close = logits(40.0, 41.0)
    assert activate(close, "sigmoid")[0] == activate(close, "sigmoid")[1] == 1.0
    assert order(close).tolist() == [1, 0]


def test_sigmoid_has_no_overflow_at_either_end() -> None:
    with np.errstate(all="raise", under="ignore"):
        scores = activate(logits(-1000.0, -1.0, 0.0, 1.0, 1000.0), "sigmoid")
    np.testing.assert_allclose(scores, [0.0, 0.2689414213699951, 0.5, 0.7310585786300049, 1.0], atol=1e-15)


def test_identity_leaves_the_logits() -> None:
    assert activate(logits(-4.25, 8.5), "identity").tolist() == pytest.approx([-4.25, 8.5])
