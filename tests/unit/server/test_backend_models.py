"""The thin shells that run inside Triton, with a stand-in for the one module that only Triton has."""

from __future__ import annotations

import importlib.util
import json
import queue
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import json_format

from triton_rerank import contract
from triton_rerank.contract import ENCODER_BACKEND
from triton_rerank.repository import read_config
from triton_rerank_server.launch.installation import find_installation, lay_out_backends


@dataclass
class Tensor:
    name: str
    value: npt.NDArray[Any]

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.value


FINAL = 1
TOKENS = ("input_ids", "attention_mask", "token_type_ids", "token_count", "truncated")


class TritonError(Exception):
    INTERNAL = 1
    INVALID_ARG = 3
    UNAVAILABLE = 4
    CANCELLED = 5

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Response:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


@dataclass
class Request:
    tensors: dict[str, npt.NDArray[Any]]
    values: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    timeout_us: int = 0
    outputs: tuple[str, ...] = TOKENS
    answers: queue.SimpleQueue[Response] = field(default_factory=queue.SimpleQueue)

    def parameters(self) -> str:
        return json.dumps(self.values)

    def timeout(self) -> int:
        return self.timeout_us

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Response, flags: int) -> None:
        assert flags == FINAL
        self.answers.put(response)


def tokenized(shell: Any, requests: list[Request]) -> list[Response]:
    """The answers to one execution of the tokenizer, which come from a thread of its own."""
    assert shell.execute(requests) is None
    return [request.answers.get(timeout=60) for request in requests]


Loader = Callable[..., Any]


@pytest.fixture
def load(tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Load a backend as Triton does: its folder on sys.path, the config as JSON."""
    pb_utils = types.ModuleType("triton_python_backend_utils")
    pb_utils.__dict__.update(Tensor=Tensor, TritonError=TritonError, InferenceResponse=Response)
    pb_utils.__dict__["TRITONSERVER_RESPONSE_COMPLETE_FINAL"] = FINAL
    pb_utils.__dict__["get_input_tensor_by_name"] = lambda request, name: Tensor(name, request.tensors[name])
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.setattr(sys, "path", list(sys.path))
    backends = lay_out_backends(find_installation(), tmp_path / "backends")

    def load(backend: str, model: str, edit: Callable[[Any], None] = lambda config: None, kind: str = "CPU") -> Any:
        spec = importlib.util.spec_from_file_location(f"{backend}_model", backends / backend / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        spec.loader.exec_module(module)
        config = read_config(tiny_repository, model)
        config.parameters.pop("scheduling", None)  # continuous: test_continuous.py, of unit and of integration tests
        edit(config)
        shell = module.TritonPythonModel()
        arguments = {"model_repository": str(tiny_repository / model), "model_version": "1", "model_name": model}
        as_json = json_format.MessageToJson(config, preserving_proto_field_name=True)
        shell.initialize(
            {**arguments, "model_config": as_json, "model_instance_kind": kind, "model_instance_device_id": "0"}
        )
        return shell

    return load


def texts(*values: str | bytes) -> npt.NDArray[Any]:
    array = np.empty((len(values), 1), dtype=np.object_)
    array[:, 0] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


def test_all_requests_of_an_execution_are_tokenised_in_one_call(load: Loader) -> None:
    shell = load("tokenizer", "tiny-bert-tokenizer")
    calls: list[list[str]] = []
    tokenize = shell._tokenizer.tokenize

    def counted(values: Any) -> Any:
        calls.append(list(values))
        return tokenize(calls[-1])

    shell._tokenizer.tokenize = counted
    requests = [Request({"query": texts("heap", "heap"), "document": texts("a", "b")}) for _ in range(3)]
    responses = tokenized(shell, requests)
    assert len(calls) == 1
    assert [response.error for response in responses] == [None] * 3
    assert tuple(tensor.name for tensor in responses[0].output_tensors) == TOKENS


def test_an_answer_has_the_outputs_that_were_asked_for(load: Loader) -> None:
    """Triton 2.51 drops others from a sender's answer without Python's lock: on 3.12 the process dies of it."""
    shell = load("tokenizer", "tiny-bert-tokenizer")
    pair = {"query": texts("heap"), "document": texts("a")}
    few, none, every = tokenized(
        shell, [Request(pair, outputs=("truncated", "input_ids")), Request(pair, outputs=()), Request(pair)]
    )
    names = [[tensor.name for tensor in response.output_tensors] for response in (few, none, every)]
    assert names == [["input_ids", "truncated"], [], list(TOKENS)]


def test_the_family_without_segment_ids_gets_none(load: Loader) -> None:
    shell = load("tokenizer", "tiny-xlmr-tokenizer")
    (response,) = tokenized(shell, [Request({"query": texts("heap"), "document": texts("a")})])
    assert "token_type_ids" not in [tensor.name for tensor in response.output_tensors]


def test_bad_requests_get_their_errors_and_the_others_their_answers(load: Loader) -> None:
    shell = load("tokenizer", "tiny-bert-tokenizer")
    good = {"query": texts("heap"), "document": texts("a")}
    responses = tokenized(
        shell,
        [
            Request(good),
            Request({"query": texts("heap"), "document": texts(b"\xff")}),
            Request(good, {"max_length": 4000}),
            Request(good, cancelled=True),
            Request(good, {"max_length": 64, "max_query_tokens": 8}),
        ],
    )
    errors = [str(response.error) if response.error else None for response in responses]
    assert errors[0] is None and errors[4] is None
    assert "document is not UTF-8" in str(errors[1])
    assert "max_length is 4000: it must be a whole number from 5 to 128" in str(errors[2])
    assert "cancelled" in str(errors[3])
    assert [response.error and response.error.code for response in responses[1:4]] == [TritonError.INVALID_ARG] * 3


def test_a_text_over_the_bound_is_refused_by_name_size_and_bound(load: Loader) -> None:
    shell = load("tokenizer", "tiny-bert-tokenizer")
    most = contract.MAX_TEXT_BYTES
    for name, other in (("query", "document"), ("document", "query")):
        large, good = tokenized(
            shell,
            [
                Request({name: texts(b"x" * (most + 1)), other: texts("a")}),
                Request({name: texts("b"), other: texts("a")}),
            ],
        )
        assert f"{name} has {most + 1} bytes: the bound is {most}" in str(large.error)
        assert "so cut it" in str(large.error) and len(str(large.error)) < 200
        assert good.error is None
    (largest,) = tokenized(shell, [Request({"query": texts("heap"), "document": texts(b"x" * most)})])
    assert largest.error is None


@pytest.mark.parametrize("letter", ["-", "ü", "東", "🍚"])
def test_a_huge_text_may_be_cut_inside_a_letter_and_is_checked_as_far_as_it_is_read(load: Loader, letter: str) -> None:
    shell = load("tokenizer", "tiny-bert-tokenizer")
    huge = letter.encode() * 2**20
    for lead in range(4):
        value = b"x" * lead + huge
        broken = b"x" * lead + b"\xff" + huge
        right, wrong = tokenized(
            shell, [Request({"query": texts("heap"), "document": texts(text)}) for text in (value, broken)]
        )
        assert right.error is None
        assert dict((tensor.name, tensor.value) for tensor in right.output_tensors)["truncated"].tolist() == [[True]]
        assert f"document is not UTF-8: invalid start byte at byte {lead}" in str(wrong.error)


def test_the_prompt_of_the_config_is_put_before_every_query(load: Loader) -> None:
    def edit(config: Any) -> None:
        config.parameters["query_prompt"].string_value = "what keeps "

    prompted, plain = load("tokenizer", "tiny-bert-tokenizer", edit), load("tokenizer", "tiny-bert-tokenizer")
    pairs = [("heap", "what keeps heap"), ("", "what keeps ")]
    for short, whole in pairs:
        (ours,) = tokenized(prompted, [Request({"query": texts(short), "document": texts("heap")})])
        (theirs,) = tokenized(plain, [Request({"query": texts(whole), "document": texts("heap")})])
        assert ours.output_tensors[0].value.tolist() == theirs.output_tensors[0].value.tolist()


def test_a_request_that_waited_longer_than_it_may_is_refused_untokenised(load: Loader) -> None:
    """As Triton's queue does. The first request keeps the thread busy until the others are late."""

    def edit(config: Any) -> None:
        config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 60_000_000

    shell = load("tokenizer", "tiny-bert-tokenizer", edit)
    tokenize, begun, may, seen = shell._tokenizer.tokenize, threading.Event(), threading.Event(), []

    def slow(values: Any) -> Any:
        seen.append(list(values))
        begun.set()
        assert may.wait(timeout=30)
        return tokenize(seen[-1])

    shell._tokenizer.tokenize = slow
    first, late, patient = (
        Request({"query": texts("heap"), "document": texts(name)}, timeout_us=us)
        for name, us in (("first", 0), ("late", 50_000), ("patient", 0))
    )
    shell.execute([first])
    assert begun.wait(timeout=30)
    shell.execute([late, patient])
    time.sleep(0.1)
    may.set()
    answers = [request.answers.get(timeout=60) for request in (first, late, patient)]
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    assert answers[1].error and answers[1].error.code == TritonError.UNAVAILABLE
    assert "Request timeout expired" in str(answers[1].error)
    assert not any("late" in values for values in seen)


def test_the_queues_own_timeout_holds_for_what_waits_for_the_tokenizer(load: Loader) -> None:
    """The default, and a caller who asks for more gets no more."""

    def edit(config: Any) -> None:
        config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 1

    shell = load("tokenizer", "tiny-bert-tokenizer", edit)
    take = shell._handover._work

    def late(requests: Any) -> None:
        time.sleep(0.01)
        take(requests)

    shell._handover._work = late
    good = {"query": texts("heap"), "document": texts("a")}
    for answer in tokenized(shell, [Request(good), Request(good, timeout_us=60_000_000)]):
        assert answer.error and answer.error.code == TritonError.UNAVAILABLE


class Panic(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.mark.parametrize(
    "error", [RuntimeError("thread pool is poisoned"), MemoryError(), Panic("index out of bounds")]
)
def test_a_tokenizer_that_fails_is_not_the_callers_fault_and_fails_one_request_only(
    load: Loader, error: BaseException
) -> None:
    shell = load("tokenizer", "tiny-bert-tokenizer")
    tokenize = shell._tokenizer.tokenize

    def fragile(values: Any) -> Any:
        found = list(values)
        if any("poison" in value for value in found):
            raise error
        return tokenize(found)

    shell._tokenizer.tokenize = fragile
    requests = [Request({"query": texts("heap"), "document": texts(text)}) for text in ("a", "poison", "b")]
    first, bad, last = tokenized(shell, requests)
    assert first.error is None and last.error is None
    assert bad.error is not None and bad.error.code == TritonError.INTERNAL
    assert type(error).__name__ in str(bad.error)


def test_tokens_that_shared_memory_has_no_room_for_are_the_servers_fault(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before they are sent: Triton 2.51's sender raises, and takes no other answer after that."""
    shell = load("tokenizer", "tiny-bert-tokenizer")
    monkeypatch.setattr(sys.modules["tokenizer_model"], "_free_shared_memory", lambda: 4096)
    pairs = [{"query": texts(*["heap"] * n), "document": texts(*["a"] * n)} for n in (1, 200)]
    few, many = tokenized(shell, [Request(tensors) for tensors in pairs])
    assert few.error is None
    assert many.error is not None and many.error.code == TritonError.INTERNAL
    assert "bytes of shared memory, and /dev/shm has 4096 left: give the server more of it" in str(many.error)


def test_a_request_that_cannot_be_copied_fails_alone(load: Loader) -> None:
    """And an execution of none but such is no end."""
    shell = load("tokenizer", "tiny-bert-tokenizer")
    good, bad, last = (Request({"query": texts("heap"), "document": texts("a")}) for _ in range(3))
    del bad.tensors["document"]
    answers = [tokenized(shell, [bad])[0], *tokenized(shell, [good, bad, last])]
    assert [answer.error.code if answer.error else None for answer in answers] == [
        TritonError.INTERNAL,
        None,
        TritonError.INTERNAL,
        None,
    ]


@pytest.mark.parametrize("name", ["max_length", "length_ladder", "pad_token_id"])
def test_a_tokenizer_config_without_a_parameter_is_refused_by_name(load: Loader, name: str) -> None:
    with pytest.raises(ValueError, match=f"config.pbtxt has no parameter '{name}'"):
        load("tokenizer", "tiny-bert-tokenizer", lambda config: config.parameters.pop(name))


def encoder_request(vocabulary_id: int = 7) -> Request:
    ids = np.full((2, 32), vocabulary_id, dtype=np.int64)
    return Request({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})


def test_the_encoder_gives_a_bad_request_its_error_and_the_others_their_logits(load: Loader) -> None:
    shell = load(ENCODER_BACKEND, "tiny-bert-encoder")
    first, bad, last = shell.execute([encoder_request(), encoder_request(10**8), encoder_request()])
    assert first.output_tensors[0].value.shape == (2, 1)
    assert np.allclose(first.output_tensors[0].value, last.output_tensors[0].value)
    assert "cannot score these tensors" in str(bad.error)
    assert bad.error.code == TritonError.INVALID_ARG


def test_the_continuous_encoder_fails_a_request_that_cannot_be_copied_alone(load: Loader) -> None:
    def edit(config: Any) -> None:
        config.parameters["scheduling"].string_value = "continuous"

    shell = load(ENCODER_BACKEND, "tiny-bert-encoder", edit)
    requests = [encoder_request() for _ in range(3)]
    del requests[1].tensors["attention_mask"]
    assert shell.execute(requests) is None
    answers = [request.answers.get(timeout=60) for request in requests]
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    assert answers[1].error and answers[1].error.code == TritonError.INTERNAL
    shell.finalize()


def set_id(tensors: dict[str, npt.NDArray[Any]], name: str, value: int) -> None:
    tensors[name][1, 3] = value


WRONG_TENSORS: dict[str, Callable[[dict[str, npt.NDArray[Any]]], None]] = {
    "an id over the vocabulary": lambda tensors: set_id(tensors, "input_ids", 10**8),
    "an id below zero": lambda tensors: set_id(tensors, "input_ids", -1),
    "a segment that the model does not have": lambda tensors: set_id(tensors, "token_type_ids", 2),
    "inputs of two widths": lambda tensors: tensors.update(attention_mask=np.ones((2, 31), np.int64)),
    "no token": lambda tensors: tensors.update({name: np.ones((2, 0), np.int64) for name in tensors}),
}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_tensors_that_nothing_could_score_are_the_callers_fault(load: Loader, engine: str, wrong: str) -> None:
    shell = load(ENCODER_BACKEND, "tiny-bert-encoder", lambda config: set_engine(config, engine))
    request = encoder_request()
    WRONG_TENSORS[wrong](request.tensors)
    good, bad = shell.execute([encoder_request(), request])
    assert good.output_tensors[0].value.shape == (2, 1)
    assert bad.error.code == TritonError.INVALID_ARG
    assert "cannot score these tensors" in str(bad.error)


def set_engine(config: Any, engine: str) -> None:
    config.parameters["engine"].string_value = engine


class FailingLibrary:
    """A session whose library fails, always or on large batches only."""

    def __init__(self, error: Exception, *, rows: int = 0) -> None:
        self._error, self._rows = error, rows

    def run(self, names: list[str], feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        if len(feed["input_ids"]) > self._rows:
            raise self._error
        return [np.zeros((len(feed["input_ids"]), 1), np.float32)]

    def infer(self, feed: dict[str, npt.NDArray[Any]], **_: object) -> None:
        raise self._error


def onnxruntime_error(name: str) -> Exception:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    error: Exception = getattr(state, name)(f"[ONNXRuntimeError] : {name}: failed to allocate memory, CUDA error 719")
    return error


@pytest.mark.parametrize("name", ["RuntimeException", "EPFail", "Fail", "NotImplemented", "NoSuchFile"])
def test_an_onnx_runtime_that_fails_is_not_the_callers_fault(load: Loader, name: str) -> None:
    shell = load(ENCODER_BACKEND, "tiny-bert-encoder")
    shell._engine._session._session = FailingLibrary(onnxruntime_error(name))
    check_internal(shell, "CUDA error 719")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Exception from src/x.cpp:1:\nout of memory")])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_that_is_out_of_memory_is_not_the_callers_fault(load: Loader, engine: str, error: Exception) -> None:
    shell = load(ENCODER_BACKEND, "tiny-bert-encoder", lambda config: set_engine(config, engine))
    attribute = "_request" if engine == "openvino" else "_session"
    setattr(shell._engine._session, attribute, FailingLibrary(error))
    check_internal(shell, "out of memory" if str(error) else "MemoryError")


def check_internal(shell: Any, fragment: str) -> None:
    responses = shell.execute([encoder_request(), encoder_request()])
    assert [response.error.code for response in responses] == [TritonError.INTERNAL] * 2
    assert all(fragment in str(response.error) for response in responses)


def test_requests_that_fail_together_only_are_answered_one_by_one(load: Loader) -> None:
    """Out of memory on four rows, and not on two."""
    shell = load(ENCODER_BACKEND, "tiny-bert-encoder")
    shell._engine._session._session = FailingLibrary(onnxruntime_error("RuntimeException"), rows=2)
    assert [response.error for response in shell.execute([encoder_request(), encoder_request()])] == [None, None]


def test_the_encoder_reads_the_keys_of_nvidias_backend(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(config: Any) -> None:
        values = {"intra_op_thread_count": "1", "inter_op_thread_count": "1", "execution_mode": "0"}
        for key, value in {**values, "enable_mem_arena": "0", "enable_mem_pattern": "1"}.items():
            config.parameters[key].string_value = value
        config.optimization.graph.level = -1

    shell = load(ENCODER_BACKEND, "tiny-bert-encoder", edit)
    options = shell._engine._session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, True)
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"


def test_a_setting_that_is_not_a_number_is_refused(load: Loader) -> None:
    def edit(config: Any) -> None:
        config.parameters["intra_op_thread_count"].string_value = "many"

    with pytest.raises(ValueError, match="intra_op_thread_count is 'many': it must be a whole number"):
        load(ENCODER_BACKEND, "tiny-bert-encoder", edit)


def test_a_gpu_that_this_onnxruntime_cannot_use_is_refused(load: Loader) -> None:
    with pytest.raises(ValueError, match="there is no driver; install onnxruntime-gpu, or set the kind to KIND_CPU"):
        load(ENCODER_BACKEND, "tiny-bert-encoder", kind="GPU")


def test_an_engine_that_is_not_known_is_refused_with_those_that_are(load: Loader) -> None:
    with pytest.raises(ValueError, match="the encoder's engine is 'tensorrt': it must be one of onnxruntime, openvino"):
        load(ENCODER_BACKEND, "tiny-bert-encoder", lambda config: set_engine(config, "tensorrt"))


def test_a_scheduling_that_is_not_known_is_refused(load: Loader) -> None:
    def edit(config: Any) -> None:
        config.parameters["scheduling"].string_value = "random"

    with pytest.raises(ValueError, match="parameter scheduling is 'random': it must be 'continuous', or be left out"):
        load(ENCODER_BACKEND, "tiny-bert-encoder", edit)


def test_a_config_of_another_family_is_refused_with_both_lists_of_names(load: Loader) -> None:
    def edit(config: Any) -> None:
        del config.input[2]

    with pytest.raises(ValueError, match=r"the graph's inputs are .*token_type_ids.*config.pbtxt declares"):
        load(ENCODER_BACKEND, "tiny-bert-encoder", edit)
