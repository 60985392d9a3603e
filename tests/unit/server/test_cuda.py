"""Tensors that stay on a device, on the CPU's: the binding is the same there, only the graphs are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from triton_rerank_server.backends.encoder.cuda import (
    BoundRunner,
    DeviceError,
    check_on_gpu,
    parse_shapes,
    provider_options,
)

Feed = dict[str, npt.NDArray[Any]]
SHAPES = [(4, 32), (1, 32), (4, 64)]


@pytest.fixture(params=["tiny-bert", "tiny-xlmr"])
def session(request: pytest.FixtureRequest, tiny_repository: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = tiny_repository / f"{request.param}-encoder" / "1" / "model.onnx"
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pairs(session: Any, lengths: list[int], width: int, seed: int = 0) -> Feed:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, 200, size=mask.shape) * mask
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    return {node.name: feed[node.name] for node in session.get_inputs()}


class Counting:
    """A session that counts its runs, bound and unbound."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.bound = self.unbound = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *arguments: Any) -> Any:
        self.unbound += 1
        return self._session.run(*arguments)

    def run_with_iobinding(self, *arguments: Any) -> None:
        self.bound += 1
        self._session.run_with_iobinding(*arguments)


@pytest.mark.parametrize(
    ("lengths", "width"), [([32, 9, 20, 1], 32), ([7], 7), ([5, 30, 12], 30), ([64, 40], 64), ([33, 3, 50], 50)]
)
def test_held_tensors_give_the_logits_of_an_ordinary_run(session: Any, lengths: list[int], width: int) -> None:
    runner = BoundRunner(session, SHAPES, device="cpu")
    feed = pairs(session, lengths, width)
    np.testing.assert_allclose(runner.run(feed), session.run(["logits"], feed)[0], atol=1e-5)


def test_a_run_leaves_nothing_of_the_one_before(session: Any) -> None:
    runner = BoundRunner(session, [(4, 64)], device="cpu")
    full, small = pairs(session, [64] * 4, 64, seed=1), pairs(session, [3], 3, seed=2)
    first = runner.run(full)
    before = first.copy()
    np.testing.assert_allclose(runner.run(small), session.run(["logits"], small)[0], atol=1e-5)
    np.testing.assert_array_equal(first, before)  # a caller's logits are its own


def test_the_smallest_shape_that_holds_a_feed_is_taken_and_others_run_unbound(session: Any) -> None:
    counting = Counting(session)
    runner = BoundRunner(counting, SHAPES, device="cpu")
    counting.bound = counting.unbound = 0
    for lengths, width, bound in (([9], 9, 1), ([9] * 5, 9, 0), ([65], 65, 0), ([64] * 4, 64, 1)):
        before = counting.bound
        assert runner.run(pairs(session, lengths, width)).shape == (len(lengths), 1)
        assert counting.bound - before == bound
    assert (counting.bound, counting.unbound) == (2, 2)


def test_every_shape_is_proved_before_it_serves(session: Any) -> None:
    class Stale(Counting):
        """Replays the first run for ever, as a graph does whose inputs were bound elsewhere."""

        def run_with_iobinding(self, *arguments: Any) -> None:
            if not self.bound:
                super().run_with_iobinding(*arguments)

    with pytest.raises(DeviceError, match=r"4x32 gives logits that are [0-9.e-]+ off"):
        BoundRunner(Stale(session), [(4, 32)], device="cpu")


def test_without_shapes_every_run_is_an_ordinary_one(session: Any) -> None:
    counting = Counting(session)
    BoundRunner(counting, [], device="cpu").run(pairs(session, [5], 5))
    assert (counting.bound, counting.unbound) == (0, 1)


def test_each_shape_has_an_id_of_its_own_and_other_runs_have_none(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnGpu(Counting):
        """Notes the graph of each run; the tensors are the CPU's."""

        seen: list[str]

        def run(self, names: list[str], feed: Feed, options: Any) -> Any:
            self.seen.append(options.get_run_config_entry("gpu_graph_id"))
            return self._session.run(names, feed)

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            self.seen.append(options.get_run_config_entry("gpu_graph_id"))
            self._session.run_with_iobinding(binding)

    make = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, *_: make(shape, kind))
    on_gpu = OnGpu(session)
    on_gpu.seen = []
    runner = BoundRunner(on_gpu, SHAPES, device="cuda")
    assert on_gpu.seen == ["1", "1", "-1", "2", "2", "-1", "3", "3", "-1"]  # captured, replayed, compared
    on_gpu.seen.clear()
    for lengths, width in (([9], 9), ([64], 64), ([9] * 9, 9)):
        runner.run(pairs(session, lengths, width))
    assert on_gpu.seen == ["1", "3", "-1"]


def test_shapes_are_rows_and_widths() -> None:
    assert parse_shapes("1x32,8x512") == [(1, 32), (8, 512)]
    assert parse_shapes("") == []


@pytest.mark.parametrize("text", ["32", "1x", "x32", "0x32", "1x0", "1x32;2x32", "-1x32", "1x32x2"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="must be rows x width"):
        parse_shapes(text)


def test_the_accelerators_options_reach_the_provider() -> None:
    options = provider_options(1, {"use_ep_level_unified_stream": "1"}, graphs=True)
    assert options == {"use_ep_level_unified_stream": "1", "device_id": "1", "enable_cuda_graph": "1"}
    assert provider_options(0, {}, graphs=False) == {"device_id": "0"}


def test_graphs_without_shapes_are_refused() -> None:
    with pytest.raises(DeviceError, match="cuda_graph_shapes"):
        provider_options(0, {"enable_cuda_graph": "1"}, graphs=False)


def test_a_session_that_fell_back_to_the_cpu_is_refused(session: Any) -> None:
    with pytest.raises(DeviceError, match="opened the model on the CPU"):
        check_on_gpu(session)
