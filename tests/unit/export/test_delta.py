import numpy as np
import pytest

from triton_rerank_export.demo.delta import State, apply_delta, compress
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


def test_a_low_rank_difference_survives_compression() -> None:
    body = _body()
    rng = _rng()
    change = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 32)) * 0.05
    tuned = body | {"dense.weight": (body["dense.weight"] + change).astype(np.float32)}
    delta = compress(body, tuned, rank=4)
    assert {name: array.dtype for name, array in delta.items()} == {
        "dense.weight.left": np.float16,
        "dense.weight.right": np.float16,
    }
    np.testing.assert_allclose(apply_delta(body, delta)["dense.weight"], tuned["dense.weight"], atol=2e-3)


def test_truncation_keeps_the_largest_singular_values() -> None:
    body = {"m": np.zeros((30, 30), np.float32)}
    change = _rng().normal(size=(30, 30)).astype(np.float32)
    singular = np.linalg.svd(change, compute_uv=False)
    restored = apply_delta(body, compress(body, {"m": change}, rank=10))["m"]
    assert np.linalg.norm(restored - change) == pytest.approx(np.sqrt((singular[10:] ** 2).sum()), rel=1e-2)


def test_what_did_not_change_is_left_out_and_small_tensors_stay_whole() -> None:
    body = _body()
    tuned = body | {
        "dense.bias": body["dense.bias"] + np.float32(0.1),
        "types.weight": body["types.weight"] + np.float32(0.1),
        "classifier.weight": np.ones((1, 16), np.float32),
    }
    delta = compress(body, tuned, rank=8)
    assert {name: array.dtype for name, array in delta.items()} == {
        "dense.bias.delta": np.float32,
        "types.weight.delta": np.float16,
        "classifier.weight": np.float32,
    }
    restored = apply_delta(body, delta)
    assert all(np.allclose(restored[name], tuned[name], atol=1e-3) for name in tuned)


def test_compression_gives_the_same_bytes_twice() -> None:
    body = _body()
    tuned = {name: array + np.float32(0.01) for name, array in body.items()}
    one, other = compress(body, tuned, rank=4), compress(body, tuned, rank=4)
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense.bias": np.zeros(31, np.float32)}, r"\(31,\)"),
        ({"dense.bias": np.full(32, np.nan, np.float32)}, "not finite"),
        ({"types.weight": np.full((2, 16), 1e6, np.float32)}, "beyond fp16's 65504"),
    ],
)
def test_a_tuned_model_that_cannot_be_compressed_is_refused_with_the_reason(change: State, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compress(_body(), _body() | change)


def test_a_missing_parameter_and_a_rank_of_zero_are_refused() -> None:
    body = _body()
    with pytest.raises(ExportError, match=r"lacks 'dense\.bias'"):
        compress(body, {name: array for name, array in body.items() if name != "dense.bias"})
    with pytest.raises(ExportError, match="rank is 0"):
        compress(body, body, rank=0)
