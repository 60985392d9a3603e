from __future__ import annotations

from triton_rerank_server.running.triton_log import explanation

LOG = """W1129 14:23:48.970342 30212 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1129 14:23:48.970551 30212 server.cc:241] "CudaDriverHelper has not been initialized."
I1129 14:23:50.000000 30212 model_lifecycle.cc:472] "loading: m-encoder:1"
E1129 14:23:52.870258 30212 backend_model.cc:692] "ERROR: Failed to create instance: EngineError: /m/model.onnx: bad

At:
  /b/encoder/engine.py(57): __init__
  /b/model.py(34): initialize
"
Traceback (most recent call last):
  File "/b/model.py", line 3, in <module>
    import tokenizers
ModuleNotFoundError: No module named 'tokenizers'
terminate called after throwing an instance of 'std::invalid_argument'
  what():  stol
+-----------+---------+--------+
| m-encoder | 1       | UNAVAILABLE: Internal: EngineError |
+-----------+---------+--------+
Error: Failed to initialize NVML
"""
NOISE = "".join(f'I1129 14:23:53.{n:06} 1 server.cc:345] "Timeout {n}: Found 4 live models"\n' for n in range(200))
END = "error: creating server: Internal - failed to load all models\n"


def test_the_errors_of_a_log_are_told_and_not_its_last_lines() -> None:
    assert explanation(LOG + NOISE + END).splitlines() == [
        "  ERROR: Failed to create instance: EngineError: /m/model.onnx: bad",
        "  ModuleNotFoundError: No module named 'tokenizers'",
        "  terminate called after throwing an instance of 'std::invalid_argument'",
        "  what():  stol",
        "  error: creating server: Internal - failed to load all models",
    ]


def test_a_log_without_an_error_is_told_by_its_end() -> None:
    told = explanation(NOISE).splitlines()
    assert len(told) == 25
    assert "Timeout 199" in told[-1]


def test_an_empty_log_is_said_so() -> None:
    assert explanation("") == "  (its log is empty)"


def test_an_error_that_comes_twice_is_told_once() -> None:
    assert explanation(END * 3) == f"  {END.strip()}"


def test_errors_of_earlier_are_no_reason_and_what_machines_without_a_gpu_say_is_none() -> None:
    """A switch of versions logs errors that pass; then Triton is killed."""
    quiet = 'I1129 14:24:00.000000 1 server.cc:674] "Started GRPCInferenceService"\n'
    noise = "E1129 14:24:01.000000 1 server.cc:241] unable to create stream: CUDA driver version is insufficient\n"
    told = explanation(LOG + quiet + noise, recent=noise)
    assert told.endswith('Started GRPCInferenceService"')
    assert "CUDA" not in told
    assert explanation(LOG + quiet + END, recent=END) == f"  {END.strip()}"
