"""Facts that stand in one place hold everywhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import triton_rerank
from triton_rerank import contract
from triton_rerank_export import demo_model
from triton_rerank_export.checkpoint import resolve
from triton_rerank_export.pipeline import served_model
from triton_rerank_export.triton_config import ServedModel, encoder_inputs, from_text, length_ladder, to_text

DEMO = "minilm-l6-demo"


def string_literals(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def contract_values() -> set[str]:
    return {value for name, value in vars(contract).items() if name.isupper() and isinstance(value, str)}


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        ("tokenizer", {contract.QUERY, contract.DOCUMENT, contract.MAX_LENGTH, contract.MAX_QUERY_TOKENS,
                       contract.LENGTH_LADDER, contract.PAD_TOKEN_ID}),
        ("onnxruntime", {contract.LOGITS}),
    ],
)  # fmt: skip
def test_the_backends_use_the_contracts_names(root: Path, backend: str, names: set[str]) -> None:
    source = root / "server/src/triton_rerank_server/backends" / backend / "model.py"
    assert names <= string_literals(source) & contract_values()


def test_the_tensors_of_the_tokenizer_backend_are_the_contracts() -> None:
    from triton_rerank_server.backends.tokenizer.pairs import PairTensors

    expected = {*encoder_inputs(token_type_ids=True), contract.TOKEN_COUNT, contract.TRUNCATED}
    assert set(PairTensors.__dataclass_fields__) == expected


def test_the_committed_configs_are_what_export_writes(root: Path, checkpoints: dict[str, Path]) -> None:
    served = served_model(resolve(DEMO, checkpoints[DEMO].parent), "int8")
    committed = {path.parent.name for path in (root / "model_repository").glob("*/config.pbtxt")}
    assert set(served.configs()) <= committed
    for name, config in served.configs().items():
        assert (root / "model_repository" / name / "config.pbtxt").read_text() == to_text(config)


@pytest.mark.parametrize("token_type_ids", [True, False])
def test_every_tensor_of_the_ensemble_is_made_once_and_used_with_its_dtype(token_type_ids: bool) -> None:
    model = ServedModel("m", "sigmoid", 512, "int8", "s", token_type_ids, 0)
    configs = model.configs()
    ensemble = configs["m"]
    made = {tensor.name: tensor.data_type for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        config = configs[step.model_name]
        for tensor in config.input:
            assert made[step.input_map[tensor.name]] == tensor.data_type
        for tensor in config.output:
            assert step.output_map[tensor.name] not in made
            made[step.output_map[tensor.name]] = tensor.data_type
    assert {(tensor.name, tensor.data_type) for tensor in ensemble.output} <= set(made.items())


@pytest.mark.parametrize("max_length", [8, 32, 100, 128, 512, 1024])
def test_the_ladder_is_short_and_ends_at_max_length(max_length: int) -> None:
    ladder = length_ladder(max_length)
    assert list(ladder) == sorted(set(ladder))
    assert ladder[-1] == max_length
    assert len(ladder) <= 10


def test_a_config_survives_text_and_back() -> None:
    for config in ServedModel("m", "identity", 128, "fp32", "s", False, 1, queue_delay_us=500).configs().values():
        assert from_text(to_text(config)) == config


def test_all_is_sorted_and_is_what_is_public() -> None:
    public = {name for name, value in vars(triton_rerank).items() if isinstance(value, type)}
    assert triton_rerank.__all__ == sorted(triton_rerank.__all__)
    assert set(triton_rerank.__all__) == public


def test_the_demo_model_is_at_most_6_mb() -> None:
    assert demo_model.PACKAGED_DELTA.stat().st_size <= 6_000_000


@pytest.mark.timeout(240)
def test_the_client_wheel_alone_in_a_clean_environment_imports_fast(root: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*wheel, str(root / "client")], check=True, timeout=120)
    (built,) = tmp_path.glob("triton_rerank-*.whl")
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    pins = root / "requirements" / f"constraints-{sys.version_info.major}.{sys.version_info.minor}.txt"
    subprocess.run([*pip, "--python", str(python), "install", "-c", str(pins), str(built)], check=True, timeout=200)
    script = (
        "import sys, time; begin = time.perf_counter(); import triton_rerank; took = time.perf_counter() - begin\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'onnxruntime', 'rich', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert triton_rerank.RerankClient('127.0.0.1:1', model='m').is_ready() is False\n"
        "print(took)"
    )
    run = [str(python), "-Ic", script]
    took = [float(subprocess.run(run, check=True, capture_output=True, timeout=60).stdout) for _ in range(4)]
    assert min(took) < 1.0, f"import took {min(took):.2f} s"  # busy cores have a share in it; alone it is under 0.5 s
