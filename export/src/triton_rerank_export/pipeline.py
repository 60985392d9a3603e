"""One export from start to end: checkpoint → ONNX → fused → precision → parity gate → model repository."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_export import graph, parity, repository
from triton_rerank_export.checkpoint import Checkpoint, resolve
from triton_rerank_export.errors import ExportError
from triton_rerank_export.reference import Reference
from triton_rerank_export.triton_config import Precision, ServedModel, encoder_inputs, length_ladder
from triton_rerank_server.backends.onnxruntime.engine import Engine, EngineError
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

Progress = Callable[[str], object]


def export_model(
    model: str, model_repository: Path, *, precision: Precision, name: str | None = None, on_step: Progress
) -> parity.ParityReport:
    """Export a model into a repository; the repository changes only if every step succeeded.

    Args:
        model: a name of the catalogue, or a checkpoint folder.
        model_repository: made if it is missing.
        precision: of the encoder.
        name: public name, by default the catalogue's or the folder's.
        on_step: called with what is being done.

    Returns:
        How the export compared with PyTorch.

    Raises:
        ExportError: the checkpoint cannot be served, the export does not agree with it, or the disk is full.
    """
    try:
        with repository.staging(model_repository) as staged, tempfile.TemporaryDirectory(dir=staged) as work:
            on_step(f"reading {model}")
            checkpoint = resolve(model, Path(work), name=name)
            return _export(checkpoint, staged, Path(work), model_repository, precision, on_step)
    except OSError as exc:
        raise ExportError(f"{model_repository}: cannot be written ({exc}); the repository is as it was") from exc


def _export(
    checkpoint: Checkpoint, staged: Path, work: Path, target: Path, precision: Precision, on_step: Progress
) -> parity.ParityReport:
    served = served_model(checkpoint, precision)
    on_step("tracing the graph")
    traced = graph.export_graph(checkpoint, work)
    on_step("fusing attention, layer norm and GELU")
    fused = graph.fuse(traced, checkpoint, work)
    on_step(f"converting to {precision}")
    repository.lay_out(staged, served, checkpoint, graph.to_precision(fused, precision, work))
    report = run_parity(checkpoint, staged, served, on_step)
    parity.check(report, precision)
    on_step("installing")
    repository.finish(staged, served, report)
    repository.install(staged, target, served.configs())
    return report


def served_model(checkpoint: Checkpoint, precision: Precision) -> ServedModel:
    """What the configs of a checkpoint are made from."""
    return ServedModel(
        name=checkpoint.name,
        activation=checkpoint.activation,
        max_length=checkpoint.max_length,
        precision=precision,
        source=checkpoint.source,
        token_type_ids=checkpoint.token_type_ids,
        pad_token_id=checkpoint.pad_token_id,
    )


def run_parity(checkpoint: Checkpoint, staged: Path, served: ServedModel, on_step: Progress) -> parity.ParityReport:
    """Compare the files of a staged repository with the checkpoint in PyTorch."""
    scorer = ServedScorer(staged, served)
    limits = scorer.tokenizer.limits()
    reference = Reference(checkpoint.folder, max_length=limits.max_length, max_query_tokens=limits.max_query_tokens)
    queries = parity.load_parity_set()
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_step(f"comparing with PyTorch, query {done} of {len(queries)}")

    try:
        return parity.compare(queries, reference.logits, scorer.logits, on_query=count)
    except EngineError as exc:
        raise ExportError(f"{checkpoint.name}: the exported graph does not take its tokenizer's tokens: {exc}") from exc


class ServedScorer:
    """The files of a repository through the code that runs inside Triton, in process.

    Args:
        repository: model repository.
        model: the model's data.
    """

    def __init__(self, repository: Path, model: ServedModel) -> None:
        self.tokenizer = PairTokenizer(
            repository / model.tokenizer_name / "1" / "tokenizer.json",
            max_length=model.max_length,
            length_ladder=length_ladder(model.max_length),
            pad_token_id=model.pad_token_id,
        )
        self._engine = Engine(repository / model.encoder_name / "1" / "model.onnx")
        self._inputs = encoder_inputs(token_type_ids=model.token_type_ids)

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``."""
        tensors = self.tokenizer.encode(query, documents)
        return self._engine.logits([{name: getattr(tensors, name) for name in self._inputs}])[0][:, 0]
