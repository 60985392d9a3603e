import numpy as np
import pytest

from tools.demo_training.compress import compress
from triton_rerank_export.demo.demo_model import State, apply_delta
from triton_rerank_export.errors import ExportError


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _body() -> State:
    rng = _rng()
    shapes = {"words.weight": (50, 16), "dense.weight": (40, 32), "dense.bias": (32,), "types.weight": (2, 16)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


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
