"""TensorRT's road without a GPU: refusals for real, shapes, and what is made of TensorRT's answers.

No TensorRT runs here. `FakeTensorRT` only records, and fails on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.parity import BOUNDS
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.triton_config import length_ladder
from triton_rerank_export.tensorrt import plans, tensorrt_package
from triton_rerank_export.tensorrt.plans import CONTAINER_COMMAND, SERVED_VERSION, build_plan, check_available
from triton_rerank_export.tensorrt.profiles import (
    CACHE_FOLDER,
    Profile,
    accelerator_parameters,
    name_graph,
    profile_index,
    profiles,
    whole_range,
)
from triton_rerank_export.tensorrt.tensorrt_package import PlanEngine

INPUTS = ("input_ids", "attention_mask")
LADDER = (32, 64, 512)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_package, "load", lambda: None)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return _write_graph(tmp_path / "model.onnx", weight=1.0)


def _write_attention(path: Path) -> Path:
    """One operator, which gives its values: a key each."""
    shape: tuple[str | int, ...] = ("n", 1, 1, 4)
    model_graph = helper.make_graph(
        [helper.make_node("Attention", ["x", "x", "x"], ["logits"])],
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(model_graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path)
    return path


def _write_graph(path: Path, *, weight: float, domain: str = "") -> Path:
    weights = numpy_helper.from_array(np.full((4, 1), weight, dtype=np.float32), "weights")
    node = helper.make_node("MatMul", ["x", "weights"], ["logits"], domain=domain)
    model_graph = helper.make_graph(
        [node],
        "main_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
        [weights],
    )
    onnx.save(helper.make_model(model_graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _build(graph: Path, output: Path, timing_cache: Path, steps: list[str] | None = None) -> tuple[str, ...]:
    return build_plan(
        graph,
        output,
        inputs=INPUTS,
        ladder=LADDER,
        max_batch_size=8,
        timing_cache=timing_cache,
        on_step=(lambda _: None) if steps is None else steps.append,
    )


# --- what is missing -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_refusal_is_one_line_with_the_docker_command() -> None:
    with pytest.raises(ExportError, match="no NVIDIA GPU") as caught:
        check_available()
    assert str(caught.value).endswith(CONTAINER_COMMAND)
    assert CONTAINER_COMMAND.startswith("docker run --rm --gpus all -v ")
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_named(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_gpu_fault", lambda: None)
    with pytest.raises(ExportError, match="the Python package tensorrt is not installed; in"):
        check_available()


@pytest.mark.parametrize("served", ["11.2.1.2", "11.2.1.2+cuda13.0", "11.2.1.2-1+cuda13.0"])
def test_another_version_than_the_serving_one_is_refused(monkeypatch: pytest.MonkeyPatch, served: str) -> None:
    monkeypatch.setattr(plans, "_gpu_fault", lambda: None)
    monkeypatch.setattr(tensorrt_package, "load", lambda: SimpleNamespace(__version__="10.16.11"))
    monkeypatch.setenv(SERVED_VERSION, served)
    with pytest.raises(ExportError, match=r"TensorRT is 10\.16\.11, but TRT_VERSION says that 11\.2\.1\.2 will serve"):
        check_available()


def test_outside_the_image_nobody_says_which_version_will_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_gpu_fault", lambda: None)
    monkeypatch.setattr(tensorrt_package, "load", lambda: SimpleNamespace(__version__="11.2.1.2"))
    monkeypatch.delenv(SERVED_VERSION, raising=False)
    with pytest.raises(ExportError, match="which TensorRT will serve is not known: TRT_VERSION is not set"):
        check_available()


def test_the_package_needs_a_pytorch_that_can_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_gpu_fault", lambda: None)
    monkeypatch.setattr(tensorrt_package, "load", lambda: SimpleNamespace(__version__="11.2.1.2.post1"))
    monkeypatch.setenv(SERVED_VERSION, "11.2.1.2+cuda13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExportError, match=f"PyTorch {torch.__version__} cannot use the GPU".replace("+", r"\+")):
        check_available()


# --- profiles ------------------------------------------------------------------------------------------------------


def test_two_profiles_a_rung() -> None:
    assert profiles(LADDER, 256) == (
        Profile((1, 1), (1, 32), (8, 32)),
        Profile((1, 1), (256, 32), (256, 32)),
        Profile((1, 33), (1, 64), (8, 64)),
        Profile((1, 33), (256, 64), (256, 64)),
        Profile((1, 65), (1, 512), (8, 512)),
        Profile((1, 65), (256, 512), (256, 512)),
    )
    assert [profile.maximum for profile in profiles(LADDER, 8)] == [(8, 32), (8, 64), (8, 512)]


@pytest.mark.parametrize("max_length", [16, 32, 100, 512, 1024])
def test_every_length_has_two_profiles_and_every_rung_is_their_optimum(max_length: int) -> None:
    ladder = length_ladder(max_length)
    found = profiles(ladder, 256)
    holding = [sum(p.minimum[1] <= n <= p.maximum[1] for p in found) for n in range(1, max_length + 1)]
    assert holding == [2] * max_length
    for pairs, optimum in ((1, 1), (8, 1), (9, 256), (256, 256), (300, 256)):
        chosen = [found[profile_index(found, pairs, rung)] for rung in ladder]
        assert [profile.optimum for profile in chosen] == [(optimum, rung) for rung in ladder]
    span = whole_range(ladder, 256)
    assert (span.minimum, span.maximum) == ((1, 1), (256, max_length))
    assert span.optimum[1] in ladder


def test_a_length_beyond_the_ladder_is_refused() -> None:
    with pytest.raises(ExportError, match="513 tokens long: the plan takes 1 to 512"):
        profile_index(profiles(LADDER, 8), 1, 513)


# --- ONNX Runtime's accelerator ------------------------------------------------------------------------------------

# onnxruntime_backend/src/onnxruntime.cc: the chain of `param_key ==` for this accelerator; another key fails the load.
KNOWN_KEYS = {
    *("precision_mode", "max_workspace_size_bytes", "int8_calibration_table_name", "int8_use_native_calibration_table"),
    *("trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_enable", "trt_dla_core"),
    *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_dump_subgraphs"),
    *("trt_force_sequential_engine_build", "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback"),
    *("trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache", "trt_detailed_build_log"),
    *("trt_build_heuristics_enable", "trt_sparsity_enable", "trt_builder_optimization_level", "trt_auxiliary_streams"),
    *("trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes", "trt_profile_max_shapes"),
    *("trt_profile_opt_shapes", "trt_cuda_graph_enable", "trt_dump_ep_context_model", "trt_ep_context_file_path"),
    "trt_ep_context_embed_mode",
}


def test_accelerator_parameters() -> None:
    parameters = accelerator_parameters(inputs=INPUTS, ladder=LADDER, max_batch_size=8)
    assert parameters == {
        "max_workspace_size_bytes": "4294967296",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": CACHE_FOLDER,
        "trt_layer_norm_fp32_fallback": "1",
        "trt_profile_max_shapes": "input_ids:8x512,attention_mask:8x512",
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": "input_ids:8x64,attention_mask:8x64",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": CACHE_FOLDER,
    }
    assert parameters.keys() <= KNOWN_KEYS


def _name(graph: Path) -> str:
    return str(onnx.load(graph, load_external_data=False).graph.name)


def test_graphs_that_differ_in_weights_only_get_different_names(tmp_path: Path) -> None:
    one, other, same = (tmp_path / name / "model.onnx" for name in ("one", "other", "same"))
    for path, weight in ((one, 1.0), (other, 2.0), (same, 1.0)):
        path.parent.mkdir()
        name_graph(_write_graph(path, weight=weight))
    assert _name(one) == _name(same) != _name(other)
    assert one.read_bytes() == same.read_bytes()


def test_a_named_graph_scores_as_before(graph: Path) -> None:
    name_graph(graph)
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((2, 4), np.float32)})[0], [[4.0], [4.0]])


def test_weights_in_external_data_count_too(tmp_path: Path) -> None:
    names = []
    for weight in (1.0, 2.0):
        path = tmp_path / str(weight) / "model.onnx"
        path.parent.mkdir()
        model = onnx.load(_write_graph(path, weight=weight))
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
        before = (path.parent / "model.onnx.data").read_bytes()
        name_graph(path)
        assert (path.parent / "model.onnx.data").read_bytes() == before
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].item() == 4 * weight
        names.append(_name(path))
    assert names[0] != names[1]


# --- the engine ----------------------------------------------------------------------------------------------------


def _run_plans_by(monkeypatch: pytest.MonkeyPatch, open_plan: Callable[[Path], Any]) -> None:
    """In place of TensorRT: what opens a plan, and computes rows by a profile."""

    def start(self: Any, plan: Path, profiles: Any) -> None:
        self._profiles, self._run = profiles, open_plan(plan)

    monkeypatch.setattr(PlanEngine, "__init__", start)


def test_the_engine_splits_batches_and_chooses_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logit is the sum of the row's ids, plus a thousand times the profile."""

    def open_plan(plan: Path) -> Callable[[int, dict[str, Any]], Any]:
        assert plan == tmp_path / "model.plan"

        def run(profile: int, rows: dict[str, Any]) -> Any:
            assert len(rows["input_ids"]) <= 2
            return (rows["input_ids"].sum(axis=1, keepdims=True) + 1000 * profile).astype(np.float32)

        return run

    _run_plans_by(monkeypatch, open_plan)
    engine = PlanEngine(tmp_path / "model.plan", profiles(LADDER, 2))
    short = np.arange(5 * 32, dtype=np.int64).reshape(5, 32)
    long = np.ones((1, 64), dtype=np.int64)
    logits = engine.logits([dict.fromkeys(INPUTS, short), dict.fromkeys(INPUTS, long)])
    np.testing.assert_array_equal(logits[0], short.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(logits[1], [[1064.0]])


# --- the Python package --------------------------------------------------------------------------------------------


class FakeTensorRT:
    """A recording fake of TensorRT's Python package with the few names that `tensorrt_package.build` calls.

    It proves what is made of TensorRT's answers, not that TensorRT gives them.
    """

    __version__ = "11.2.1.2"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        def __init__(self) -> None:
            pass

    def __init__(
        self,
        *,
        parser_errors: tuple[str, ...] = (),
        plan: bytes | None = b"plan",
        old: bool = True,
        whole_attention: bool = True,
    ) -> None:
        self.parser_errors, self.plan, self.accepts_old_timings = parser_errors, plan, old
        self.whole_attention = whole_attention
        self.parsed: list[onnx.ModelProto] = []
        self.network_flags = 0
        self.shapes: list[tuple[Any, ...]] = []
        self.offered: list[bytes] = []

    def Builder(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        def create_network(flags: int) -> str:
            self.network_flags = flags
            return "network"

        def build_serialized_network(network: str, config: Any) -> bytes | None:
            if self.plan is not None and (self.whole_attention or self._may_fall_apart()):
                return self.plan
            logger.log(2, "a warning")
            logger.log(1, "Error Code 10: no implementation\n for node /layer.0")
            return None

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=self._config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *a: self.shapes.append(a)),
            build_serialized_network=build_serialized_network,
        )

    def OnnxParser(self, network: str, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        errors = [
            SimpleNamespace(node_operator=lambda: "Erf", node_name=lambda: "/gelu", desc=lambda text=text: text)
            for text in self.parser_errors
        ]

        def parse_from_file(path: str) -> bool:
            self.parsed.append(onnx.load(path))
            return not errors

        return SimpleNamespace(parse_from_file=parse_from_file, num_errors=len(errors), get_error=errors.__getitem__)

    def _may_fall_apart(self) -> bool:
        nodes = [node for node in self.parsed[-1].graph.node if node.op_type == "Attention"]
        return all("TRT_decomposable" in [each.name for each in node.attribute] for node in nodes)

    def _config(self) -> Any:
        def create_timing_cache(stored: bytes) -> Any:
            self.offered.append(stored)
            return SimpleNamespace(stored=stored, serialize=lambda: stored + b" and new")

        return SimpleNamespace(
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=create_timing_cache,
            set_timing_cache=lambda cache, ignore_mismatch: self.accepts_old_timings or not cache.stored,
        )


@pytest.fixture
def with_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTensorRT], FakeTensorRT]:
    def put(package: FakeTensorRT) -> FakeTensorRT:
        monkeypatch.setattr(tensorrt_package, "load", lambda: package)
        return package

    return put


def test_the_package_gets_a_strongly_typed_network_with_every_profile(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], graph: Path, tmp_path: Path
) -> None:
    package = with_package(FakeTensorRT())
    _build(graph, tmp_path / "model.plan", tmp_path / "timing.cache")
    assert package.network_flags == 1 << 1
    assert package.shapes == [
        (name, profile.minimum, profile.optimum, profile.maximum) for profile in profiles(LADDER, 8) for name in INPUTS
    ]
    assert (tmp_path / "model.plan").read_bytes() == b"plan"
    assert (tmp_path / "timing.cache").read_bytes() == b" and new"


def test_timings_of_an_earlier_build_are_read(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], graph: Path, tmp_path: Path
) -> None:
    package = with_package(FakeTensorRT())
    (tmp_path / "timing.cache").write_bytes(b"old")
    _build(graph, tmp_path / "model.plan", tmp_path / "timing.cache")
    assert package.offered == [b"old"]
    assert (tmp_path / "timing.cache").read_bytes() == b"old and new"


def test_timings_of_another_gpu_are_left_behind(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], graph: Path, tmp_path: Path
) -> None:
    package = with_package(FakeTensorRT(old=False))
    (tmp_path / "timing.cache").write_bytes(b"old")
    _build(graph, tmp_path / "model.plan", tmp_path / "timing.cache")
    assert package.offered == [b"old", b""]
    assert (tmp_path / "timing.cache").read_bytes() == b" and new"


def test_parser_errors_are_told_with_node_and_operator(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], graph: Path, tmp_path: Path
) -> None:
    with_package(FakeTensorRT(parser_errors=("input type is unknown", "no output")))
    with pytest.raises(ExportError) as caught:
        _build(graph, tmp_path / "model.plan", tmp_path / "timing.cache")
    assert str(caught.value) == (
        "model.onnx: TensorRT cannot read it: Erf '/gelu': input type is unknown | Erf '/gelu': no output"
    )
    assert not (tmp_path / "model.plan").exists()


def test_no_engine_is_an_error_with_tensorrts_words_and_the_old_timings_stay(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], graph: Path, tmp_path: Path
) -> None:
    with_package(FakeTensorRT(plan=None))
    (tmp_path / "timing.cache").write_bytes(b"old")
    with pytest.raises(ExportError, match="built no engine: Error Code 10: no implementation for node /layer.0$"):
        _build(graph, tmp_path / "model.plan", tmp_path / "timing.cache")
    assert (tmp_path / "timing.cache").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "timing.cache"]


# --- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving", "imports"),
    [
        ("10.3.0.26", False),
        ("10.13.3.9+cuda13.0", False),
        ("9.99.0.1", False),
        ("10.14.1.48-1+cuda13.0", True),
        ("11.2.1.2", True),
        ("", False),
    ],
)
def test_which_tensorrt_imports_attention_as_one_operator(
    monkeypatch: pytest.MonkeyPatch, serving: str, imports: bool
) -> None:
    monkeypatch.setenv(SERVED_VERSION, serving)
    assert plans.imports_attention() is imports


def test_attention_is_one_kernel_where_there_is_one(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], tmp_path: Path
) -> None:
    package = with_package(FakeTensorRT())
    assert _build(_write_attention(tmp_path / "model.onnx"), tmp_path / "model.plan", tmp_path / "timing.cache") == ()
    (parsed,) = package.parsed
    assert not parsed.graph.node[0].attribute


def test_attention_falls_apart_where_there_is_no_kernel_for_the_whole_and_that_is_told(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], tmp_path: Path
) -> None:
    package, steps = with_package(FakeTensorRT(whole_attention=False)), list[str]()
    told = _build(_write_attention(tmp_path / "model.onnx"), tmp_path / "model.plan", tmp_path / "cache", steps)
    assert told == (
        "attention is computed by several kernels: with one for the whole model.onnx: TensorRT built no engine: "
        "Error Code 10: no implementation for node /layer.0",
    )
    assert [len(model.graph.node[0].attribute) for model in package.parsed] == [0, 1]
    assert steps == [
        "building the TensorRT plan, 3 profiles up to 512; this takes minutes",
        "building the TensorRT plan with attention by several kernels, 3 profiles up to 512; this takes minutes",
    ]
    assert (tmp_path / "model.plan").read_bytes() == b"plan"


def test_no_engine_of_attention_in_any_form_is_an_error(
    with_package: Callable[[FakeTensorRT], FakeTensorRT], tmp_path: Path
) -> None:
    package = with_package(FakeTensorRT(plan=None))
    with pytest.raises(ExportError, match="built no engine: Error Code 10"):
        _build(_write_attention(tmp_path / "model.onnx"), tmp_path / "model.plan", tmp_path / "timing.cache")
    assert len(package.parsed) == 2


@pytest.mark.parametrize(("serving", "operators"), [("10.13.3.9", (0, 2)), ("10.14.1.48", (2, 0))])
def test_an_export_gives_tensorrt_the_form_that_it_imports(
    with_package: Callable[[FakeTensorRT], FakeTensorRT],
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    serving: str,
    operators: tuple[int, int],
) -> None:
    """The whole export, gate included; the plan is run by ONNX Runtime, as the graph that the parser was given."""
    package = with_package(FakeTensorRT())
    monkeypatch.setattr(plans, "check_available", lambda: None)
    monkeypatch.setenv(SERVED_VERSION, serving)

    def open_plan(plan: Path) -> Callable[[int, dict[str, Any]], Any]:
        assert plan.read_bytes() == b"plan"
        session = ort.InferenceSession(package.parsed[0].SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda profile, rows: session.run(["logits"], rows)[0]

    _run_plans_by(monkeypatch, open_plan)
    options = ExportOptions(precision="fp16", engine="tensorrt", max_batch_size=64)
    result = export_model(str(checkpoints["tiny-bert"]), tmp_path / "r", options, on_step=lambda _: None)
    assert result.report.max_logit_difference <= BOUNDS["fp16"].max_logit_difference
    names = [node.op_type for node in package.parsed[0].graph.node]
    assert (names.count("Attention"), names.count("Softmax")) == operators
