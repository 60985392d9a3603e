"""Fine-tuning of a cross-encoder on groups of one query with its documents.

Loss: margin-MSE (the mean squared error of group-centred scores) to a teacher plus a little InfoNCE on the positive;
InfoNCE alone where there is no teacher. torch and transformers are imported inside functions only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from triton_rerank_export.checkpoint.families import FAMILIES, Family
from triton_rerank_export.demo.demo_model import check_replaceable, staged_folder
from triton_rerank_export.errors import ExportError
from triton_rerank_export.finetune.config import FinetuneConfig, FinetuneReport, Quality
from triton_rerank_export.finetune.data import FloatArray, Group, Sample, sample, split, training_order
from triton_rerank_export.finetune.progress import CURVES, Meter, bar, draw

if TYPE_CHECKING:
    import torch

MOST_POINTS = 200  # of the curve of the loss
HELD_OUT_DOCUMENTS = 24  # of a held-out query, at most: enough to tell two models apart, few enough to be quick
_HEAD = re.compile(r"(pre_)?classifier|head\.")  # what an encoder without a classifier lacks
WARM_UP = 0.05  # share of the run in which the learning rates rise


class _Engine(NamedTuple):
    """A model with what it takes to run it."""

    model: Any
    tokenizer: Any
    device: torch.device
    bf16: bool
    config: FinetuneConfig
    family: Family


class _Recorder:
    """The curves of a run, and the time that measuring took."""

    def __init__(self, engine: _Engine, held_out: Sequence[Group], console: Console | None) -> None:
        self._engine, self._held_out, self._console = engine, held_out, console
        self._losses: list[float] = []
        self._started, self._measuring_s = time.monotonic(), 0.0
        self.measured: list[tuple[int, Quality]] = []

    @property
    def training_s(self) -> float:
        """Seconds so far, without those of the measurements."""
        return time.monotonic() - self._started - self._measuring_s

    def measure(self, step: int) -> Quality | None:
        """Of the held-out groups now; None where there are none."""
        if not self._held_out:
            return None
        started = time.monotonic()
        self.measured.append((step, _measure(self._engine, self._held_out, self._console)))
        self._measuring_s += time.monotonic() - started
        return self.measured[-1][1]

    def step(self, loss: float, done: float) -> None:
        """Record the loss of a step; measure where the share of the run that is done passed the next mark."""
        self._losses.append(loss)
        marks = self._engine.config.evaluations
        if len(self.measured) <= marks and len(self.measured) <= done * (marks + 1) and done < 1:
            self.measure(len(self._losses))

    def losses(self) -> tuple[tuple[int, float], ...]:
        """Step and mean loss of each window."""
        n_steps = len(self._losses)
        size = max(1, math.ceil(n_steps / MOST_POINTS))
        ends = [*range(size, n_steps, size), n_steps] if n_steps else []
        starts = [0, *ends[:-1]]
        return tuple((end, float(np.mean(self._losses[at:end]))) for at, end in zip(starts, ends, strict=True))


def finetune(
    checkpoint: Path, groups: Sequence[Group], output: Path, config: FinetuneConfig, console: Console | None = None
) -> FinetuneReport:
    """Train a cross-encoder and write it as a checkpoint folder.

    ``output`` appears, or is replaced, only when all went well; an interrupt or an error leaves it as it was. With
    the same arguments, versions, machine and number of threads, and no ``minutes``, the result is the same.

    Args:
        checkpoint: local folder of a classifier with one label, of a family that export knows, or of such an encoder
            without a classifier, which then starts from random numbers.
        groups: training groups; some are held out, as the config says.
        output: folder to write.
        config: the knobs.
        console: where progress is shown; None shows none.

    Raises:
        ExportError: the checkpoint cannot be used, ``output`` holds something else, or the loss is not finite.
    """
    check_replaceable(output)
    _load_options(checkpoint, config)  # before torch is imported and weights are read, which takes long
    import torch

    if not groups:
        raise ExportError("there is no training group; give at least one, or two where some are held out")
    training, held_out = split(groups, fraction=config.held_out_fraction, limit=config.held_out_limit, seed=config.seed)
    torch.manual_seed(config.seed)
    engine = _load(checkpoint, config)
    report = _train(engine, training, held_out, console)
    with staged_folder(output) as folder:
        _save(engine, checkpoint, folder, report)
        draw(report, folder / CURVES)
    return report


def evaluate(
    checkpoint: Path, groups: Sequence[Group], config: FinetuneConfig, console: Console | None = None
) -> Quality:
    """Measure a checkpoint on groups, at most 24 documents of each, drawn the same way every time."""
    return _measure(_load(checkpoint, config), groups, console)


def ndcg_at_10(logits: FloatArray) -> float:
    """Return nDCG@10 of one query whose first document is the relevant one; among equal logits it comes last."""
    rank = int((logits[1:] >= logits[0]).sum())
    return 1 / math.log2(rank + 2) if rank < 10 else 0.0


def pairwise_accuracy(logits: FloatArray, targets: Sequence[float]) -> float:
    """Return the share of pairs with unequal targets that the logits order alike; equal logits count half."""
    wanted = np.sign(np.subtract.outer(np.asarray(targets), np.asarray(targets)))
    found = np.sign(np.subtract.outer(logits, logits))
    above = wanted > 0
    return float((found[above] + 1).mean() / 2) if above.any() else 1.0


def group_loss(
    logits: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, info_nce_weight: float
) -> torch.Tensor:
    """Return the loss of a step, a scalar.

    Args:
        logits: (groups, documents) float32, the positive in column 0; anything where not ``valid``.
        teacher: same shape, the teacher's scores; NaN in the whole row of a group without a teacher.
        valid: same shape, bool; false where a group is shorter than the longest.
        info_nce_weight: weight of InfoNCE in groups with a teacher.
    """
    import torch

    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    masked = logits.masked_fill(~valid, -math.inf)
    info_nce = torch.nn.functional.cross_entropy(masked, target, reduction="none")  # (groups,)
    taught = ~teacher[:, 0].isnan()
    difference = _centred(logits, valid) - _centred(teacher.nan_to_num(), valid)
    margin_mse = (difference.square() * valid).sum(1) / valid.sum(1)  # (groups,)
    return torch.where(taught, margin_mse + info_nce_weight * info_nce, info_nce).mean()


def _centred(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    mean = (scores * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return (scores - mean) * valid


def _load(checkpoint: Path, config: FinetuneConfig) -> _Engine:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and device.type == "cpu":
        raise ExportError("device is 'cuda', but torch finds no CUDA device; use 'auto' or 'cpu'")
    family, options = _load_options(checkpoint, config)
    try:
        # On a CPU, torch's fused attention has a slow backward pass: eager trains twice as fast.
        model, info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, attn_implementation="eager" if device.type == "cpu" else "sdpa", **options
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{checkpoint} cannot be loaded: {error}") from error
    if missing := [name for name in info["missing_keys"] if not re.search(rf"^({_HEAD.pattern})|pooler", name)]:
        raise ExportError(f"{checkpoint} lacks {len(missing)} parameters of its encoder, such as {missing[0]!r}")
    # In evaluation mode, which in these models differs by nothing but dropout: the recipe has none.
    bf16 = fast_bf16(device) if config.precision == "auto" else config.precision == "bf16"
    if not tokenizer.is_fast:
        raise ExportError(f"{checkpoint} has no tokenizer.json, and none can be made of its files; add one")
    _check_length(checkpoint, config, tokenizer.model_max_length)
    return _Engine(model.float().eval().to(device), tokenizer, device, bf16, config, family)


def _load_options(checkpoint: Path, config: FinetuneConfig) -> tuple[Family, dict[str, Any]]:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ExportError(f"{checkpoint} is no checkpoint folder: it has no config.json; give a local folder")
    if not any(checkpoint.glob("*.safetensors")):
        raise ExportError(f"{checkpoint} has no *.safetensors; convert it: model.save_pretrained(folder)")
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON ({error}); get the checkpoint anew") from error
    family = _family(checkpoint, stated.get("model_type"))
    positions, pad = stated.get("max_position_embeddings"), stated.get("pad_token_id", family.pad_token_id)
    if isinstance(positions, int):
        taken = pad + 1 if family.positions_after_padding and isinstance(pad, int) else 0
        _check_length(checkpoint, config, positions - taken)
    classifier = any("ForSequenceClassification" in name for name in stated.get("architectures") or ())
    labels = len(stated.get("id2label", (0, 1)))  # transformers leaves the default of two unsaid
    if classifier and labels != 1:
        raise ExportError(f"{checkpoint} has a classifier of {labels} labels; a reranker's has 1")
    options = {"local_files_only": True, "output_loading_info": True}
    return family, options if classifier else options | {"num_labels": 1}


def _family(checkpoint: Path, model_type: object) -> Family:
    """Of export's table: a classifier whose head is the class's own, and whose pairs have no prompt."""
    known = {name: row for row in FAMILIES.values() if not (row.causal or row.modules) for name in row.model_types}
    if model_type not in known:
        raise ExportError(f"{checkpoint} has model_type {model_type!r}; it must be one of {', '.join(sorted(known))}")
    return known[str(model_type)]


def _check_length(checkpoint: Path, config: FinetuneConfig, limit: int) -> None:
    if config.max_length > limit:
        raise ExportError(
            f"max_length is {config.max_length}, but {checkpoint} takes {limit} tokens at most: give "
            f"--max-length {limit}"
        )


def fast_bf16(device: torch.device) -> bool:
    """Tell whether bf16 is worth while: on CUDA where the GPU has it, on a CPU where it multiplies matrices in it."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and "amx_bf16" in facts.read_text(encoding="utf-8", errors="replace")


def _train(
    engine: _Engine, groups: Sequence[Group], held_out: Sequence[Group], console: Console | None
) -> FinetuneReport:
    """Run the loop, and measure before, in between and after."""
    import torch

    config, optimizer = engine.config, _optimizer(engine)
    total = config.steps or config.epochs * math.ceil(len(groups) / config.groups_per_step)
    recorder = _Recorder(engine, held_out, console)
    before = recorder.measure(0)
    steps, pairs = 0, 0
    with Meter(console, total, config.minutes) as meter:
        for samples in _batches(groups, config, total):
            spent = recorder.training_s / (60 * (config.minutes or math.inf))
            if spent >= 1:
                break
            done = max(steps / total, spent)
            for options in optimizer.param_groups:
                options["lr"] = options["highest"] * min(1.0, (done + 1 / total) / WARM_UP) * (1 - done)
            loss = _loss(engine, samples)
            steps, pairs = steps + 1, pairs + sum(len(s.documents) for s in samples)
            if not torch.isfinite(loss):
                raise ExportError(f"the loss is {loss.item()} at step {steps}; lower the learning rates and try again")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(engine.model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            meter.update(steps, pairs, loss.item())
            recorder.step(loss.item(), max(steps / total, spent))
    duration_s = recorder.training_s
    after = recorder.measure(steps)
    return FinetuneReport(steps, pairs, duration_s, before, after, recorder.losses(), tuple(recorder.measured))


def _optimizer(engine: _Engine) -> torch.optim.Optimizer:
    import torch

    config, model = engine.config, engine.model
    if config.freeze_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[_HEAD.match(name) is not None].append(parameter)
    rates = ((parts[False], config.learning_rate), (parts[True], config.head_learning_rate))
    options = [{"params": parameters, "lr": rate, "highest": rate} for parameters, rate in rates]
    return torch.optim.AdamW(options, weight_decay=config.weight_decay, fused=True)


def _batches(groups: Sequence[Group], config: FinetuneConfig, total: int) -> Iterator[list[Sample]]:
    n_batches, epoch, rng = 0, 0, np.random.default_rng(config.seed)
    while True:
        order = training_order(len(groups), epoch=epoch, seed=config.seed)
        for start in range(0, len(order), config.groups_per_step):
            if n_batches == total:
                return
            chosen = order[start : start + config.groups_per_step]
            yield [sample(groups[i], size=config.group_size, rng=rng) for i in chosen]
            n_batches += 1
        epoch += 1


def _loss(engine: _Engine, samples: Sequence[Sample]) -> torch.Tensor:
    import torch

    shape = (len(samples), max(len(s.documents) for s in samples))
    valid = torch.zeros(shape, dtype=torch.bool, device=engine.device)
    teacher = torch.full(shape, math.nan, device=engine.device)
    for row, s in enumerate(samples):
        valid[row, : len(s.documents)] = True
        if s.scores is not None:
            teacher[row, : len(s.documents)] = torch.tensor(s.scores, device=engine.device)
    flat = _logits(engine, [(s.query, document) for s in samples for document in s.documents])
    logits = torch.zeros(shape, device=engine.device).masked_scatter(valid, flat)
    return group_loss(logits, teacher, valid, engine.config.info_nce_weight)


def _logits(engine: _Engine, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Return the logits of pairs (query, document), (n,) float32, in their order."""
    import torch

    # Chunks of similar length: a title padded to an abstract's length costs as much as the abstract.
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    size = 8 if engine.device.type == "cpu" else 64
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    logits = torch.cat([_chunk_logits(engine, [pairs[i] for i in chunk]) for chunk in chunks])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return logits[back.to(engine.device)]


def _chunk_logits(engine: _Engine, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    import torch

    batch = engine.tokenizer(
        [_cut(engine, query) for query, _ in pairs],
        [document for _, document in pairs],
        truncation="only_second",
        max_length=engine.config.max_length,
        padding=True,
        return_tensors="pt",
    ).to(engine.device)
    if not engine.family.reads_segments:
        batch.pop("token_type_ids", None)  # of a tokenizer of another class
    with torch.autocast(engine.device.type, dtype=torch.bfloat16, enabled=engine.bf16):
        logits: torch.Tensor = engine.model(**batch).logits[:, 0]
    return logits.float()


def _cut(engine: _Engine, query: str) -> str:
    limit = engine.config.max_query_tokens
    if len(query) <= limit:  # a token is at least a character
        return query
    ends = engine.tokenizer(query, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = ends["offset_mapping"]
    return query[: offsets[limit - 1][1]] if len(offsets) > limit else query


def _measure(engine: _Engine, groups: Sequence[Group], console: Console | None) -> Quality:
    import torch

    ndcg, accuracy = [], []
    with torch.no_grad(), bar(console) as progress:
        for number, group in enumerate(progress.track(groups, description="measuring the held-out queries")):
            rng = np.random.default_rng((engine.config.seed, number))
            drawn = sample(group, size=HELD_OUT_DOCUMENTS, rng=rng)
            logits = _logits(engine, [(drawn.query, document) for document in drawn.documents]).cpu().numpy()
            ndcg.append(ndcg_at_10(logits))
            accuracy.append(pairwise_accuracy(logits, drawn.scores or (1.0,) + (0.0,) * (len(logits) - 1)))
    return Quality(float(np.mean(ndcg)), float(np.mean(accuracy)), len(groups))


def _save(engine: _Engine, checkpoint: Path, folder: Path, report: FinetuneReport) -> None:
    from transformers import AutoTokenizer

    engine.model.config._name_or_path = ""  # else the folder's name on this machine
    engine.model.save_pretrained(folder, safe_serialization=True)
    for weights in folder.glob("*.safetensors"):  # whoever may read the config may read them
        weights.chmod((folder / "config.json").stat().st_mode & 0o777)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)  # the used one remembers its padding
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    record = {"config": dataclasses.asdict(engine.config), "report": dataclasses.asdict(report)}
    (folder / "finetune.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
