import numpy as np
import pytest

from triton_rerank_export.demo.demo_model import State, apply_delta
from triton_rerank_export.errors import ExportError


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _body() -> State:
    rng = _rng()
    shapes = {"words.weight": (50, 16), "dense.weight": (40, 32), "dense.bias": (32,), "types.weight": (2, 16)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_factors_are_multiplied_and_added_to_the_matrix() -> None:
    body = _body()
    left, right = _rng().normal(size=(40, 3)).astype(np.float16), _rng().normal(size=(3, 32)).astype(np.float16)
    tuned = apply_delta(body, {"dense.weight.left": left, "dense.weight.right": right})
    expected = body["dense.weight"] + left.astype(np.float32) @ right.astype(np.float32)
    np.testing.assert_allclose(tuned["dense.weight"], expected, rtol=1e-6, atol=1e-6)
    assert tuned["dense.weight"].dtype == np.float32


def test_a_delta_is_added_and_any_other_name_replaces_or_adds_a_parameter() -> None:
    body = _body()
    delta: State = {
        "dense.bias.delta": np.ones(32, np.float16),
        "types.weight": np.zeros((2, 16), np.float16),
        "classifier.weight": np.ones((1, 16), np.float32),
    }
    tuned = apply_delta(body, delta)
    np.testing.assert_allclose(tuned["dense.bias"], body["dense.bias"] + 1, rtol=1e-6)
    assert not tuned["types.weight"].any()
    assert tuned["classifier.weight"].shape == (1, 16)
    assert set(tuned) == {*body, "classifier.weight"}


def test_applying_changes_neither_argument() -> None:
    body, copy = _body(), _body()
    apply_delta(body, {"dense.bias.delta": np.ones(32, np.float32)})
    assert all(np.array_equal(body[name], copy[name]) for name in copy)


def test_the_sum_of_the_factors_products_does_not_depend_on_their_order() -> None:
    rng = _rng()
    left = (rng.normal(size=(40, 24)) * 0.3).astype(np.float16)
    right = (rng.normal(size=(24, 32)) * 0.3).astype(np.float16)
    body = {"m": rng.normal(size=(40, 32)).astype(np.float32)}
    shuffled = rng.permutation(24)
    one = apply_delta(body, {"m.left": left, "m.right": right})
    other = apply_delta(body, {"m.left": left[:, shuffled], "m.right": right[shuffled]})
    assert one["m"].tobytes() == other["m"].tobytes()


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"dense.weight.left": np.zeros((40, 3))}, "lacks 'dense.weight.right'"),
        ({"dense.weight.right": np.zeros((3, 32))}, "lacks 'dense.weight.left'"),
        ({"other.delta": np.zeros(3)}, "'other', which the body lacks"),
        ({"dense.bias.delta": np.zeros(31)}, r"\(31,\).*\(32,\)"),
        ({"dense.weight.left": np.zeros((40, 3)), "dense.weight.right": np.zeros((4, 32))}, "do not multiply"),
        ({"dense.weight.left": np.zeros((41, 3)), "dense.weight.right": np.zeros((3, 32))}, r"\(41, 32\).*\(40, 32\)"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_with_the_reason(delta: State, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        apply_delta(_body(), delta)
