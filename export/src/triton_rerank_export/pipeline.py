"""One export from start to end: checkpoint → ONNX → precision → parity gate → model repository."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.contract import ENCODER_BACKEND
from triton_rerank_export.checkpoint.families import check_form
from triton_rerank_export.checkpoint.licence import is_restricted
from triton_rerank_export.checkpoint.resolve import Checkpoint, resolve
from triton_rerank_export.errors import ExportError, about, explained
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.graph import trace
from triton_rerank_export.graph.static_int8 import calibration_feeds
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
            notes, report = _Build(checkpoint, served, staged, Path(work), options, on_step).built()
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


@dataclass(frozen=True)
class _Build:
    """The files of one export, and what the user should know of them."""

    checkpoint: Checkpoint
    served: ServedModel
    staged: Path
    work: Path
    options: ExportOptions
    on_step: Progress

    def built(self) -> tuple[tuple[str, ...], parity.ParityReport]:
        """Hold them against PyTorch. An fp16 graph for CUDA that fails with fp16 residuals gets fp32."""
        half = (self.served.packed or self._fused) and not self.options.fp32_residuals
        try:
            return self._compared(half_residuals=half)
        except parity.DisagreementError as exc:
            if not half:
                raise
            self.on_step("fp16 does not hold what passes from layer to layer: once more, with fp32 there")
            for folder in version_folders(self.staged, self.served):
                shutil.rmtree(folder)
            notes, report = self._compared(half_residuals=False)
            told = f"What passes from layer to layer (residuals) is fp32: in fp16 the {'; '.join(exc.misses)}."
            return (*notes, told), report

    @property
    def _fused(self) -> bool:
        return self.options.fused and self.checkpoint.family.fusion is not None

    def _compared(self, *, half_residuals: bool) -> tuple[tuple[str, ...], parity.ParityReport]:
        """Make the files of the version folders, and ask the gate."""
        from triton_rerank_export.graph.precision import convert

        path, options = self._fp32_graph(), self.options
        self.on_step(f"converting to {options.precision}")
        file, feeds = self.checkpoint.folder / "tokenizer.json", None
        if options.static:
            tokenizer = PairTokenizer.of_parameters(file, self.served.tokenizer_parameters)
            feeds = calibration_feeds(tokenizer, self.served.tensors)
        converted = convert(
            path,
            options.precision,
            self.work,
            family=self.checkpoint.family,
            reduce_range=options.reduce_range,
            feeds=feeds,
            half_residuals=half_residuals,
        )
        files, notes = self._graph_files(converted.path)
        store.lay_out(self.staged, self.served, file, files)
        asked = ("What passes from layer to layer (residuals) is fp32, as was asked for.",) * options.fp32_residuals
        report = run_gate(self.checkpoint, self.staged, self.served, on_step=self.on_step)
        return (*converted.notes, *notes, *asked), report

    def _fp32_graph(self) -> Path:
        from triton_rerank_export.tensorrt.plans import imports_attention

        checkpoint, served, work = self.checkpoint, self.served, self.work
        self.on_step("tracing the graph")
        if served.graph == "flat":
            with about(checkpoint.label):
                check_form(checkpoint.family, served.precision, flat=True)  # it may be as there was
            return trace.export_flat_graph(checkpoint, work, packed=served.packed)
        # In a plan only: ONNX Runtime, through which TensorRT may run too, does not know how to let it fall apart.
        one = served.engine == "tensorrt" and checkpoint.family.has_bert_layers and imports_attention()
        path = trace.export_graph(checkpoint, work, cut_last_layer=not self._fused, one_attention=one)
        if self._fused:
            self.on_step("fusing attention, layer norm and GELU")
            traced, path = path, trace.fuse(path, checkpoint, work)
            shutil.rmtree(traced.parent)  # as large as the weights
        return path

    def _graph_files(self, path: Path) -> tuple[list[Path], tuple[str, ...]]:
        """What the encoder's version folder holds, and what the user should know of it."""
        from triton_rerank_export.tensorrt import plans
        from triton_rerank_export.tensorrt.profiles import name_graph

        served = self.served
        if served.accelerator == "tensorrt":
            plans.check_operators(path)
            name_graph(path)
        if served.engine != "tensorrt":
            return trace.graph_files(path), ()
        plan = self.work / served.graph_file
        notes = plans.build_plan(
            path,
            plan,
            inputs=served.tensors,
            ladder=served.ladder,
            max_batch_size=served.max_batch_size,
            timing_cache=self.options.timing_cache or self.work / "timing.cache",
            on_step=self.on_step,
        )
        return [plan], notes


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the user should know of the checkpoint itself."""
    label, licence, notes = checkpoint.one_of, checkpoint.licence, []
    if label is not None:
        notes.append(f"The score is the logit of label {label}, one of {label.of}; the others are not computed.")
    if is_restricted(licence):
        notes.append(f"The licence of the weights is {licence}, accepted with --accept-licence; see what it allows.")
    return tuple(notes)
