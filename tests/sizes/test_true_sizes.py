"""The shapes of rerankers that people run, with random weights: do they export, load and score here?

Slow (an hour on two cores, 12 GB of memory, 12 GB of disk), so it has a make target of its own: `make true-sizes`.
It prints the table that docs/results.md shows, and keeps it as ``.cache/true-sizes.jsonl``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.tiny_families import write_tiny
from support.tiny_models import write_random_xlmr

from triton_rerank import RerankClient
from triton_rerank_export.gate import parity
from triton_rerank_server import ServerConfig, TritonServer

pytestmark = [pytest.mark.true_sizes, pytest.mark.timeout(3000)]

XLMR = {
    "bge-base-shape": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "max_position_embeddings": 514,
    },
    "v2-m3-shape": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 8194,
    },
}  # fmt: skip
MODERNBERT = {
    "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152,
    "vocab_size": 50_368, "max_position_embeddings": 8192, "local_attention": 128, "global_attn_every_n_layers": 3,
}  # fmt: skip
QWEN3 = {
    "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 3072, "vocab_size": 151_669, "max_position_embeddings": 40_960,
}  # fmt: skip
OTHERS = {
    "gte-modernbert-shape": ("ModernBertForSequenceClassification", MODERNBERT),
    "ettin-150m-shape": ("ModernBertModel", MODERNBERT),
    "qwen3-reranker-0.6b-shape": ("Qwen3ForCausalLM", QWEN3),  # its name tells its prompt
}
CASES = [(shape, precision) for shape in XLMR for precision in ("fp32", "fp16", "int8")]
CASES += [(shape, precision) for shape in OTHERS for precision in ("fp32", "int8")]
CASES += [(shape, "fp16") for shape, (architecture, _) in OTHERS.items() if architecture.startswith("ModernBert")]
VOCABULARY = 250_002
MEMORY_BOUND = 3.0  # × the fp32 weights
RESULTS = Path(".cache") / "true-sizes.jsonl"


@dataclass(frozen=True)
class Measured:
    """One export, served once."""

    shape: str
    precision: str
    weights_gb: float
    export_s: float
    export_peak_gb: float
    files_gb: float
    start_s: float
    server_gb: float
    ten_pairs_s: float
    parity: dict[str, float]


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights") / request.param
    if request.param in XLMR:
        write_random_xlmr(folder, vocabulary=VOCABULARY, **XLMR[request.param])
    else:
        architecture, shape = OTHERS[request.param]
        write_tiny(architecture, folder, initializer_range=0.02, **shape)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("checkpoint", "precision"), CASES, indirect=["checkpoint"])
def test_a_model_of_true_size_is_exported_loaded_and_scored(
    checkpoint: Path, precision: str, tmp_path: Path, passages: list[str]
) -> None:
    repository = tmp_path / "model_repository"
    weights_gb = (checkpoint / "model.safetensors").stat().st_size / 1e9
    seconds, peak_gb = export(checkpoint, repository, precision)
    (manifest,) = repository.glob(f"{checkpoint.name}/1/manifest.json")
    encoder = repository / f"{checkpoint.name}-encoder" / "1"
    begin = time.perf_counter()
    config = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, start_timeout_s=600.0)
    with TritonServer(config) as server, RerankClient(server.grpc_target, model=checkpoint.name) as client:
        started = time.perf_counter() - begin
        begin = time.perf_counter()
        logits = [
            ranked.logit for ranked in client.rerank("how do I make a file smaller?", passages[:10], timeout_s=300)
        ]
        took = time.perf_counter() - begin
        memory = server_memory_gb(server.pid)
    measured = Measured(
        shape=checkpoint.name,
        precision=precision,
        weights_gb=weights_gb,
        export_s=seconds,
        export_peak_gb=peak_gb,
        files_gb=sum(path.stat().st_size for path in encoder.iterdir()) / 1e9,
        start_s=started,
        server_gb=memory,
        ten_pairs_s=took,
        parity=json.loads(manifest.read_text())["parity"],
    )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(measured)) + "\n")
    print("\n" + json.dumps(asdict(measured)))
    shutil.rmtree(repository)
    assert np.isfinite(np.array(logits, dtype=np.float64)).all()
    assert peak_gb < MEMORY_BOUND * weights_gb
    if precision == "fp32" and weights_gb * 1e9 > 2**31:
        assert measured.files_gb > 2.0  # it took external data


# Random weights hold all documents close together, and int8 keeps no such order. Size is measured here, not order: the
# figures are recorded, only int8's bounds on the order are lifted. A shape whose gate takes most of an hour is held
# against PyTorch on some queries only.
EXPORT = """
import sys
from triton_rerank_export import cli
from triton_rerank_export.gate import parity
parity.BOUNDS["int8"] = parity.Bounds(float("inf"), -1.0, 0.0)
queries = parity.load_parity_set()[: int(sys.argv.pop(1))]
parity.load_parity_set = lambda: queries
sys.exit(cli.main(sys.argv[1:]))
"""
QUERIES = {"qwen3-reranker-0.6b-shape": 2}  # of the gate's


def export(checkpoint: Path, repository: Path, precision: str) -> tuple[float, float]:
    """Run the command in a process of its own; seconds, and the largest resident memory in GB."""
    arguments = ["export", "--model", str(checkpoint), "--model-repository", str(repository)]
    begin = time.perf_counter()
    queries = str(QUERIES.get(checkpoint.name, len(parity.load_parity_set())))
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, queries, *arguments, "--precision", precision, "--warmup", "light"]
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e9


def server_memory_gb(pid: int) -> float:
    """Proportional memory of Triton and its stubs, in GB."""
    server = psutil.Process(pid)
    total = sum(int(process.memory_full_info().pss) for process in [server, *server.children(recursive=True)])
    return total / 1e9
