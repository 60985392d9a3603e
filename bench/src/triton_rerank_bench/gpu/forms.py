"""One form of graph on a device, in process: where its nodes ran, whether it computes right, how fast it is."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from triton_rerank.repository import read_config
from triton_rerank_bench.compare.contestants import tokenizer_of
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.measure import Ground
from triton_rerank_bench.gpu.models import SHAPES, Prepared, Shape
from triton_rerank_bench.report import Json, Table
from triton_rerank_bench.served import read_model
from triton_rerank_bench.workloads import BY_NAME
from triton_rerank_server.backends.encoder.cuda import PROVIDER, provider_options
from triton_rerank_server.backends.encoder.engine import Engine, Rows, flattened
from triton_rerank_server.backends.encoder.onnxruntime_session import OnnxRuntimeOptions

PAIRS = (1, 10, 64, 256)  # scored at once, of natural lengths
_RUNS = 7
_MATRIX = {"cuda": (8_192, "float16"), "cpu": (1_024, "float32")}  # rows and columns, type


@dataclass
class Form:
    """One graph of one shape on the device.

    Attributes:
        form: of the graph, one of `models.FORMS`.
        nodes: provider and operator -> nodes that ran in one batch, as ONNX Runtime's own profile counts them.
        parity: the export's own gate: this graph's logits beside those that PyTorch made on the CPU in fp32.
        sizes: for each number of pairs: tokens, median milliseconds, pairs/s and the share of the matrix rate that the
            products of real tokens come to.
    """

    shape: str
    form: str
    nodes: dict[str, int]
    parity: dict[str, float]
    sizes: list[Json] = field(default_factory=list)


def measure_form(prepared: Prepared, form: str, on: Ground, rate: float) -> Form:
    """Open the graph as our encoder does, and time it; the rate is the device's, in operations a second.

    Raises:
        EngineError: the device does not take it.
    """
    shape, repository = prepared.shape, prepared.repository
    model, tokenizer = read_model(repository), tokenizer_of(read_model(repository))
    accelerators = read_config(repository, f"{shape}-encoder").optimization.execution_accelerators
    cuda = {name: told for each in accelerators.gpu_execution_accelerator for name, told in each.parameters.items()}
    device_id = on.device.index if on.device.kind == "cuda" else None
    settings = OnnxRuntimeOptions.of_parameters(model.parameters, device_id=device_id, cuda_options=cuda)
    engine = Engine(model.encoder_file, settings)
    manifest = repository / shape / model.encoder_file.parent.name / "manifest.json"
    parity = json.loads(manifest.read_text())["parity"]
    lists = BY_NAME["passages"](on.seed)
    documents = [document for each in lists for document in each.documents]

    def batch(n_pairs: int) -> dict[str, Any]:
        """Input name -> int64 ``(n_pairs, padded length)``."""
        texts = [documents[at % len(documents)] for at in range(n_pairs)]
        pairs = tokenizer.encode(lists[0].query, texts)
        return {name: getattr(pairs, name) for name in engine.input_names}

    found = Form(shape, form, _nodes(model.encoder_file, engine, batch(PAIRS[1]), device_id, cuda), parity)
    for n_pairs in PAIRS:
        inputs = batch(n_pairs)
        lengths = np.count_nonzero(inputs["attention_mask"], axis=1)
        seconds = _seconds(lambda inputs=inputs: engine.logits([inputs]))  # type: ignore[misc]
        share = flops(SHAPES[shape], lengths) / seconds / rate
        found.sizes.append(
            {"pairs": n_pairs, "tokens": int(lengths.sum()), "ms": 1e3 * seconds, "pairs_per_s": n_pairs / seconds,
             "share_of_matrix_rate": share}
        )  # fmt: skip
    return found


def flops(shape: Shape, lengths: Any) -> float:
    """Floating-point operations of the products that so many tokens a pair need: linear layers, and attention's two."""
    layer = 24 * shape.hidden**2 * float(np.sum(lengths)) + 4 * shape.hidden * float(np.sum(np.square(lengths)))
    return shape.layers * layer


def matrix_rate(device: Device) -> float:
    """Operations a second of one large product of matrices by torch, the best of several: what the device can do."""
    import torch

    size, dtype = _MATRIX[device.kind]
    one = torch.randn((size, size), device=device.torch_name).to(getattr(torch, dtype))

    def multiply() -> None:
        """One product, and the wait for its end."""
        torch.matmul(one, one)
        if device.kind == "cuda":
            torch.cuda.synchronize()

    return 2 * float(size) ** 3 / _seconds(multiply, best=True)


def _seconds(work: Callable[[], object], *, best: bool = False) -> float:
    """Of one call after two that warm up: the median, or the least."""
    taken = []
    for _ in range(2 + _RUNS):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken[2:]) if best else statistics.median(taken[2:])


def _nodes(
    model_file: Path, engine: Engine, inputs: dict[str, Any], device_id: int | None, cuda: dict[str, str]
) -> dict[str, int]:
    """Where each node of the optimised graph ran, by ONNX Runtime's profile of one batch."""
    import onnxruntime as ort

    rows = Rows(inputs)
    feed = flattened([(rows, np.arange(len(rows.lengths)))], engine.input_names) if engine.is_flat else inputs
    with tempfile.TemporaryDirectory(prefix="triton-rerank-profile-") as folder:
        settings = ort.SessionOptions()
        settings.enable_profiling, settings.profile_file_prefix = True, str(Path(folder) / "profile")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device_id is not None:
            providers.insert(0, (PROVIDER, provider_options(device_id, cuda, graphs=False)))
        session = ort.InferenceSession(str(model_file), settings, providers=providers)
        session.run(["logits"], dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text())
    told = [each["args"] for each in events if each.get("cat") == "Node" and "provider" in each.get("args", {})]
    counts = Counter(f"{each['provider'].removesuffix('ExecutionProvider')} {each['op_name']}" for each in told)
    return dict(counts.most_common())


def show(form: Form, console: Console) -> None:
    """What was found, for people."""
    nodes = ", ".join(f"{count} {name}" for name, count in form.nodes.items())
    parity = ", ".join(f"{name} {value:.4g}" for name, value in form.parity.items())
    columns = {"pairs": "pairs:,d", "tokens": "tokens:,d", "ms": "ms:,.2f", "pairs/s": "pairs_per_s:,.1f"}
    columns["of the matrix rate"] = "share_of_matrix_rate:.1%"
    console.print(f"{form.shape}, {form.form}: {nodes}\nbeside PyTorch on the CPU: {parity}", highlight=False)
    console.print(Table("in process, natural lengths", columns, form.sizes).grid())
