"""One export from start to end: checkpoint → ONNX → precision → parity gate → model repository."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.contract import ENCODER_BACKEND
from triton_rerank_export.checkpoint.families import check_form
from triton_rerank_export.checkpoint.licence import is_restricted
from triton_rerank_export.checkpoint.resolve import Checkpoint, resolve
from triton_rerank_export.errors import ExportError, explained
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.graph import trace
from triton_rerank_export.graph.calibration import Feed, calibration_feeds
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.repository import staging, store
from triton_rerank_export.repository.check import holding
from triton_rerank_export.repository.manifest import build_manifest, version_folders
from triton_rerank_export.repository.settings import Settings
from triton_rerank_export.repository.triton_config import GPU_TOKENIZERS, Graph, ServedModel
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

Progress = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class ExportResult(store.Installed):
    """What an export did: what the repository holds now, and how it came about.

    Attributes:
        report: how it compared with PyTorch.
        changed: False if the repository already held the very same export.
    """

    report: parity.ParityReport
    changed: bool = True


def export_model(
    model: str, model_repository: Path, options: ExportOptions | None = None, *, on_step: Progress
) -> ExportResult:
    """Export a model into a repository; the repository changes only if every step succeeded.

    Args:
        model: a name of the catalogue, a Hugging Face id, or a checkpoint folder.
        model_repository: made if it is missing.
        options: precision, engine, limits.
        on_step: called with what is being done.

    Returns:
        What was installed, and how it compared with PyTorch.

    Raises:
        ExportError: the checkpoint cannot be had or served, the export does not agree with it, the disk is full, or a
            path is not UTF-8.
        KeyboardInterrupt: after Ctrl-C; its message says what is active.
    """
    options = options or ExportOptions()
    _check_tools(options)
    _check_names(model, model_repository)
    with (
        staging.told(model_repository),
        staging.staging(model_repository) as staged,
        tempfile.TemporaryDirectory(dir=staged) as work,
    ):
        on_step(f"reading {model}")
        checkpoint = resolve(model, Path(work), options, on_step=on_step)
        beside = None if options.replace else store.active_manifest(model_repository, checkpoint.name)
        served = served_model(checkpoint, options, beside.model if beside else None)
        if not options.replace:
            store.check_compatible(model_repository, served)
        with explained(f"{checkpoint.label}: it cannot be exported", hidden=str(staged)):
            notes, report = _built(checkpoint, served, staged, Path(work), options, on_step)
        manifest = build_manifest(staged, served, report, (*_notes(checkpoint), *notes, *report.notes))
        on_step("installing")
        with staging.locked(model_repository, served.name, on_step) as target:
            there = None if options.replace else holding(target, manifest)
            if there is not None:
                versions = list(store.installed_versions(target, served.name))
                return ExportResult(manifest=there, versions=versions, report=report, changed=False)
            done = store.install(staged, target, manifest, replace=options.replace, keep=options.keep_versions)
            return ExportResult(**vars(done), report=report)


def served_model(checkpoint: Checkpoint, options: ExportOptions, beside: ServedModel | None = None) -> ServedModel:
    """What the configs of a checkpoint are made from.

    Args:
        checkpoint: that is exported.
        options: what is chosen.
        beside: whose settings are kept where the options say nothing; None for the defaults.

    Raises:
        ExportError: a setting that this model cannot be served with.
    """
    default: Graph = (
        "flat" if options.native and options.may_be_flat and checkpoint.family.has_bert_layers else "padded"
    )
    model = _served_model(checkpoint, options, options.graph or (beside.graph if beside else default))
    kept = {} if beside is None else Settings.of(beside).given
    if model.backend != ENCODER_BACKEND:
        kept.pop("scheduling", None)  # ours alone has it
    return Settings(**{**kept, **options.given}).applied(model)


def _served_model(checkpoint: Checkpoint, options: ExportOptions, graph: Graph) -> ServedModel:
    return ServedModel(
        name=checkpoint.name,
        activation=checkpoint.activation,
        query_prompt=checkpoint.query_prompt,
        label=str(checkpoint.one_of or ""),
        prompt={} if checkpoint.asked is None else checkpoint.asked.prompt.parameters,
        special_tokens_in_text=options.special_tokens_in_text,
        max_length=checkpoint.max_length,
        precision=options.precision,
        source=checkpoint.source,
        token_type_ids=checkpoint.token_type_ids,
        pad_token_id=checkpoint.pad_token_id,
        revision=checkpoint.revision,
        licence=checkpoint.licence,
        engine=options.effective_engine,
        accelerator=options.accelerator,
        graph=graph,
        native=options.native,
        scheduling="executions" if options.precision == "fp16" else "continuous",  # not tried on a GPU yet
        tokenizers=GPU_TOKENIZERS if options.precision == "fp16" else 1,
        warmup=options.effective_warmup,
        response_cache=options.response_cache,
    )


def _check_tools(options: ExportOptions) -> None:
    """Fail before the download, not after it."""
    if options.effective_engine == "tensorrt":
        from triton_rerank_export.tensorrt.plans import check_available

        check_available()
    if options.effective_engine == "openvino" and importlib.util.find_spec("openvino") is None:
        raise ExportError("--engine openvino needs OpenVINO for the gate: pip install 'triton-rerank-export[openvino]'")


def _check_names(*paths: str | Path) -> None:
    """PyTorch, ONNX Runtime and protobuf take UTF-8 only, and would fail one after the other."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as exc:
            raise ExportError(f"{path}: its name is not UTF-8; rename it, or set LC_ALL=C.UTF-8 if it is") from exc


def _built(
    checkpoint: Checkpoint, served: ServedModel, staged: Path, work: Path, options: ExportOptions, on_step: Progress
) -> tuple[tuple[str, ...], parity.ParityReport]:
    """Make the files and hold them against PyTorch. An fp16 graph for CUDA that fails with fp16 residuals gets fp32."""
    for_cuda = served.packed or (options.fused and checkpoint.family.fusion is not None)
    half = for_cuda and not options.fp32_residuals

    def build(*, half_residuals: bool) -> tuple[tuple[str, ...], parity.ParityReport]:
        """The files, and what the gate says of them."""
        notes = _build(checkpoint, served, staged, work, options, on_step, half_residuals=half_residuals)
        asked = ("What passes from layer to layer (residuals) is fp32, as was asked for.",) * options.fp32_residuals
        return (*notes, *asked), run_gate(checkpoint, staged, served, on_step=on_step)

    try:
        return build(half_residuals=half)
    except parity.DisagreementError as exc:
        if not half:
            raise
        on_step("fp16 does not hold what passes from layer to layer: once more, with fp32 there")
        for folder in version_folders(staged, served):
            shutil.rmtree(folder)
        notes, report = build(half_residuals=False)
        told = f"What passes from layer to layer (residuals) is fp32: in fp16 the {'; '.join(exc.misses)}."
        return (*notes, told), report


def _build(
    checkpoint: Checkpoint,
    served: ServedModel,
    staged: Path,
    work: Path,
    options: ExportOptions,
    on_step: Progress,
    *,
    half_residuals: bool,
) -> tuple[str, ...]:
    """Make the files of the version folders; what the user should know of them comes back."""
    from triton_rerank_export.graph.precision import convert

    path = _fp32_graph(checkpoint, served, work, options, on_step)
    on_step(f"converting to {options.precision}")
    feeds = _calibration(checkpoint, served) if options.static else None
    converted = convert(
        path,
        options.precision,
        work,
        family=checkpoint.family,
        reduce_range=options.reduce_range,
        feeds=feeds,
        half_residuals=half_residuals,
    )
    files, notes = _graph_files(converted.path, served, work, options, on_step)
    store.lay_out(staged, served, checkpoint.folder / "tokenizer.json", files)
    return (*converted.notes, *notes)


def _fp32_graph(
    checkpoint: Checkpoint, served: ServedModel, work: Path, options: ExportOptions, on_step: Progress
) -> Path:
    on_step("tracing the graph")
    if served.graph == "flat":
        check_form(checkpoint.family, served.precision, checkpoint.label, flat=True)  # it may be as there was
        return trace.export_flat_graph(checkpoint, work, packed=served.packed)
    fused = options.fused and checkpoint.family.fusion is not None
    path = trace.export_graph(
        checkpoint, work, cut_last_layer=not fused, one_attention=_one_attention(checkpoint, options)
    )
    if fused:
        on_step("fusing attention, layer norm and GELU")
        traced, path = path, trace.fuse(path, checkpoint, work)
        shutil.rmtree(traced.parent)  # as large as the weights
    return path


def _one_attention(checkpoint: Checkpoint, options: ExportOptions) -> bool:
    """In a plan only: ONNX Runtime, through which TensorRT may run too, does not know how to let it fall apart."""
    from triton_rerank_export.tensorrt.plans import imports_attention

    return options.effective_engine == "tensorrt" and checkpoint.family.has_bert_layers and imports_attention()


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know of the checkpoint itself."""
    label, licence, notes = checkpoint.one_of, checkpoint.licence, []
    if label is not None:
        notes.append(f"The score is the logit of label {label}, one of {label.of}; the others are not computed.")
    if is_restricted(licence):
        notes.append(f"The licence of the weights is {licence}, accepted with --accept-licence; see what it allows.")
    return tuple(notes)


def _calibration(checkpoint: Checkpoint, served: ServedModel) -> Iterator[Feed]:
    tokenizer = PairTokenizer.of_parameters(checkpoint.folder / "tokenizer.json", served.tokenizer_parameters)
    return calibration_feeds(tokenizer, served.tensors)


def _graph_files(
    path: Path, served: ServedModel, work: Path, options: ExportOptions, on_step: Progress
) -> tuple[list[Path], tuple[str, ...]]:
    """What the encoder's version folder holds, and what the user should know of it."""
    from triton_rerank_export.tensorrt import accelerator, plans

    if options.accelerator == "tensorrt":
        plans.check_operators(path)
        accelerator.name_graph(path)
    if options.effective_engine != "tensorrt":
        return trace.graph_files(path), ()
    plan = work / served.graph_file
    notes = plans.build_plan(
        path,
        plan,
        inputs=served.tensors,
        ladder=served.ladder,
        max_batch_size=served.max_batch_size,
        timing_cache=options.timing_cache or work / "timing.cache",
        on_step=on_step,
    )
    return [plan], notes
