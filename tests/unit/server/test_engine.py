from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from triton_rerank_server.backends.onnxruntime import engine as engine_module
from triton_rerank_server.backends.onnxruntime.engine import Engine, EngineError, EngineOptions, Rows, micro_batches


@pytest.fixture
def engine(tiny_repository: Path) -> Engine:
    return Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", EngineOptions(intra_op_thread_count=1))


def pairs(lengths: list[int], width: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, 200, size=mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


def test_batches_keep_the_token_budget_and_go_shortest_first() -> None:
    lengths = np.array([50, 10, 10, 100, 30])
    batches = [batch.tolist() for batch in micro_batches(lengths, 100)]
    assert batches == [[1, 2, 4], [0], [3]]


def test_a_row_over_the_budget_goes_alone() -> None:
    assert [batch.tolist() for batch in micro_batches(np.array([500, 400]), 100)] == [[1], [0]]


def test_padding_does_not_change_a_logit(engine: Engine) -> None:
    narrow, wide = pairs([9, 20], 20), pairs([9, 20], 20)
    wide = {name: np.pad(array, ((0, 0), (0, 44))) for name, array in wide.items()}
    np.testing.assert_allclose(engine.logits([narrow])[0], engine.logits([wide])[0], atol=1e-5)


def test_requests_of_different_widths_are_computed_together(engine: Engine) -> None:
    first, second = pairs([9, 20, 3], 32, seed=1), pairs([60], 64, seed=2)
    together = engine.logits([first, second])
    assert [logits.shape for logits in together] == [(3, 1), (1, 1)]
    np.testing.assert_allclose(together[0], engine.logits([first])[0], atol=1e-5)
    np.testing.assert_allclose(together[1], engine.logits([second])[0], atol=1e-5)


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
        Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", EngineOptions(graph_level=7))


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
def test_every_graph_level_gives_the_same_logits(tiny_repository: Path, engine: Engine, level: int) -> None:
    other = Engine(
        tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx",
        EngineOptions(graph_level=level, enable_mem_arena=False, enable_mem_pattern=False),
    )
    request = pairs([9, 20], 32)
    np.testing.assert_allclose(other.logits([request])[0], engine.logits([request])[0], atol=1e-5)


def test_a_device_puts_the_cuda_provider_first(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    opened = ort.InferenceSession

    def open_on_cpu(path: str, settings: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return opened(path, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", open_on_cpu)
    Engine(tiny_repository / "tiny-bert-encoder" / "1" / "model.onnx", EngineOptions(device_id=3))
    assert asked == [("CUDAExecutionProvider", {"device_id": 3}), "CPUExecutionProvider"]


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
    monkeypatch.setattr(engine_module, "_CPU_INFO", info)
    assert engine_module.int8_saturates() is saturates
