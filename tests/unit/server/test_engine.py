from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from triton_rerank_export.checkpoint.resolve import read_checkpoint
from triton_rerank_export.graph.trace import export_graph
from triton_rerank_server.backends.encoder import cuda, onnxruntime_session
from triton_rerank_server.backends.encoder.engine import Engine, Rows, flattened, micro_batches, options_of
from triton_rerank_server.backends.encoder.onnxruntime_session import OnnxRuntimeOptions
from triton_rerank_server.backends.encoder.openvino_session import OpenVinoOptions
from triton_rerank_server.backends.encoder.session import EngineError


@pytest.fixture(params=["onnxruntime", "openvino", "openvino bf16"])
def engine(request: pytest.FixtureRequest, tiny_repository: Path) -> Engine:
    path = tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx"
    if request.param == "onnxruntime":
        return Engine(path, OnnxRuntimeOptions(intra_op_thread_count=1))
    return Engine(path, OpenVinoOptions(inference_num_threads=1, hint_bf16=request.param.endswith("bf16")))


@pytest.fixture
def close(request: pytest.FixtureRequest) -> float:
    """How far two logits of one pair may lie apart: bf16 has 8 bits, and kernels differ with the shape."""
    return 2e-2 if request.node.callspec.params["engine"].endswith("bf16") else 1e-5


def pairs(lengths: list[int], width: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, 200, size=mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


def test_batches_keep_the_token_budget_and_go_shortest_first() -> None:
    lengths = np.array([50, 10, 10, 100, 30])
    batches = [batch.tolist() for batch in micro_batches(lengths, 100)]
    assert batches == [[1, 2, 4], [0], [3]]


@pytest.mark.parametrize(
    ("batch_cost", "expected"), [(100, [[10, 10, 10, 30]]), (60, [[10, 10, 10, 30]]), (59, [[10, 10, 10], [30]])]
)
def test_a_batch_ends_where_its_padding_would_cost_more_than_another_batch(
    batch_cost: int, expected: list[list[int]]
) -> None:
    lengths = np.array([10, 30, 10, 10])
    assert [lengths[batch].tolist() for batch in micro_batches(lengths, 1000, batch_cost)] == expected


def test_no_rows_make_no_batch() -> None:
    assert micro_batches(np.array([], np.intp), 100) == []


def test_a_row_over_the_budget_goes_alone() -> None:
    assert [batch.tolist() for batch in micro_batches(np.array([500, 400]), 100)] == [[1], [0]]


def test_without_padding_a_batch_ends_where_its_tokens_do() -> None:
    lengths = np.array([50, 10, 10, 100, 30])
    assert [batch.tolist() for batch in micro_batches(lengths, 100, 1, flat=True)] == [[1, 2, 4, 0], [3]]


def test_a_flat_graph_gets_rows_one_after_the_other_without_what_pads_them() -> None:
    first, second = Rows(pairs([3, 5, 1], 8, seed=1)), Rows(pairs([2], 4, seed=2))
    feed = flattened([(first, [2, 0]), (second, np.array([0]))], ["input_ids", "attention_mask"])
    assert feed["widths"].dtype == np.int32
    assert feed["widths"].tolist() == [1, 3, 2]
    ids = [first.inputs["input_ids"][2, :1], first.inputs["input_ids"][0, :3], second.inputs["input_ids"][0, :2]]
    np.testing.assert_array_equal(feed["input_ids"], np.concatenate(ids))
    assert feed["attention_mask"].tolist() == [1] * 6


def test_padding_does_not_change_a_logit(engine: Engine, close: float) -> None:
    narrow, wide = pairs([9, 20], 20), pairs([9, 20], 20)
    wide = {name: np.pad(array, ((0, 0), (0, 44))) for name, array in wide.items()}
    np.testing.assert_allclose(engine.logits([narrow])[0], engine.logits([wide])[0], atol=close)


def test_requests_of_different_widths_are_computed_together(engine: Engine, close: float) -> None:
    first, second = pairs([9, 20, 3], 32, seed=1), pairs([60], 64, seed=2)
    together = engine.logits([first, second])
    assert [logits.shape for logits in together] == [(3, 1), (1, 1)]
    np.testing.assert_allclose(together[0], engine.logits([first])[0], atol=close)
    np.testing.assert_allclose(together[1], engine.logits([second])[0], atol=close)


def test_a_mask_with_holes_is_cut_after_its_last_token_only() -> None:
    mask = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.int64)
    assert Rows({"attention_mask": mask}).lengths.tolist() == [3, 2, 1]


def test_ids_outside_the_vocabulary_are_an_error_and_not_a_crash(engine: Engine) -> None:
    bad = pairs([5], 32)
    bad["input_ids"][0, 0] = 10**9
    with pytest.raises(EngineError, match="cannot score these tensors"):
        engine.logits([bad])


def test_an_unknown_graph_level_is_refused(tiny_repository: Path) -> None:
    with pytest.raises(EngineError, match=r"optimization\.graph\.level is 7"):
        Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", OnnxRuntimeOptions(graph_level=7))


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
def test_every_graph_level_gives_the_same_logits(tiny_repository: Path, level: int) -> None:
    engine = Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx")
    other = Engine(
        tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx",
        OnnxRuntimeOptions(graph_level=level, enable_mem_arena=False, enable_mem_pattern=False),
    )
    request = pairs([9, 20], 32)
    np.testing.assert_allclose(other.logits([request])[0], engine.logits([request])[0], atol=1e-5)


def test_cuda_is_there_only_with_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image that exports has the provider on machines without a GPU too."""
    import ctypes

    import onnxruntime as ort

    loaded: list[str] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert not onnxruntime_session.cuda_available()
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert onnxruntime_session.cuda_available()
    assert loaded == ["libcuda.so.1"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert not onnxruntime_session.cuda_available()


def test_a_device_puts_the_cuda_provider_first(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    opened = ort.InferenceSession

    def open_on_cpu(path: str, settings: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return opened(path, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", open_on_cpu)
    with pytest.raises(EngineError, match="opened the model on the CPU"):  # as it is here
        Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", OnnxRuntimeOptions(device_id=3))
    assert asked == [("CUDAExecutionProvider", {"device_id": "3"}), "CPUExecutionProvider"]


@pytest.mark.parametrize(("short", "batches"), [(20, 1), (60, 2)])
def test_on_a_gpu_a_batch_ends_where_its_padding_would_cost_more_than_another_one(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, short: int, batches: int
) -> None:
    """20 rows of 20 tokens beside one of 100 are 1,600 tokens of padding, 60 rows are 4,800."""
    opened = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, **_: opened(*a, providers=["CPUExecutionProvider"]))
    monkeypatch.setattr(cuda, "check_on_gpu", lambda _: None)
    engine = Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", OnnxRuntimeOptions(device_id=0))
    engine.logits([pairs([20] * short + [100], 128)])
    assert engine.computed.batches == batches


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        ("fpu avx2 fma", True),
        ("fpu avx2 avx512f avx512bw", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu avx2 avx_vnni", False),
        (None, False),
    ],
)
def test_a_cpu_without_vnni_gets_the_exact_int8_products(
    flags: str | None, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if flags:
        info.write_text(f"model name\t: some CPU\nflags\t\t: {flags}\nbugs\t\t: none\n")
    monkeypatch.setattr(onnxruntime_session, "_CPU_INFO", info)
    assert onnxruntime_session.int8_saturates() is saturates


def test_the_last_layer_for_the_first_token_only_gives_the_same_logits(
    checkpoints: dict[str, Path], tiny_repository: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(checkpoints["tiny-bert"], name="tiny-bert", source="here")
    whole, cut = export_graph(checkpoint, tmp_path), tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx"
    request = pairs([9, 20, 3, 40], 64)
    np.testing.assert_allclose(Engine(cut).logits([request])[0], Engine(whole).logits([request])[0], atol=1e-5)


def test_lengths_go_up_to_the_sessions_step_but_not_beyond_the_rows() -> None:
    mask = (np.arange(40) < np.array([1, 16, 17, 40])[:, None]).astype(np.int64)
    assert Rows({"attention_mask": mask}).padded(16).tolist() == [16, 16, 32, 40]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"HINT_BF16": "maybe"}, "HINT_BF16 is 'MAYBE': it must be YES or NO"),
        ({"INFERENCE_NUM_THREADS": "-1"}, "INFERENCE_NUM_THREADS is '-1': it must be a whole number"),
        ({"NUM_STREAMS": "AUTO"}, "NUM_STREAMS is 'AUTO': it must be a whole number"),
    ],
)
def test_settings_of_openvino_that_make_no_sense_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        options_of("openvino", parameters)


def test_threads_that_the_caller_chose_win_over_the_configs() -> None:
    assert options_of("openvino", {"INFERENCE_NUM_THREADS": "4"}, threads=1) == OpenVinoOptions(inference_num_threads=1)
    assert options_of("onnxruntime", {"intra_op_thread_count": "4"}) == OnnxRuntimeOptions(intra_op_thread_count=4)


def test_without_openvino_its_models_name_the_extra(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"pip install 'triton-rerank-server\[openvino\]'"):
        Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", OpenVinoOptions())


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    for options in (OnnxRuntimeOptions(), OpenVinoOptions()):
        with pytest.raises(EngineError, match=r"model\.onnx: .* cannot load it"):
            Engine(path, options)
