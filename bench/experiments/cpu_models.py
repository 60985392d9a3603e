"""Which small reranker should a CPU serve? Three shapes, our exports and sentence-transformers' backends, in one run.

    make .venv-peers/onnx/.installed .venv-peers/sentence-transformers/.installed .cache/checkpoint/config.json
    python bench/experiments/cpu_models.py --prepare            # checkpoints, exports and the peers' files
    python bench/experiments/cpu_models.py --workload passages  # 100 passages; "short": ten of them, and one pair

MiniLM-L6 is the demo model. ettin-reranker's shapes get random weights and the demo model's words, so that all have
the same tokens: right for times, nothing for quality. docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from triton_rerank import RerankClient
from triton_rerank_bench import workloads
from triton_rerank_bench.compare.catalogue import (
    INSTALLED,
    ONNX_FILES,
    OPENVINO_FILES,
    PEERS,
    PLAIN,
    Peer,
    Setting,
)
from triton_rerank_bench.compare.contestants import (
    CALL_TIMEOUT_S,
    Contestant,
    n_threads,
    token_counts,
    tokenizer_of,
)
from triton_rerank_bench.compare.folders import ModelFolders
from triton_rerank_bench.compare.process import PeerContestant, Workers
from triton_rerank_bench.compare.race import kendall_tau, ratio, run_rounds, timing
from triton_rerank_bench.errors import PeerError
from triton_rerank_bench.machine import OtherLoad, describe_machine
from triton_rerank_bench.report import Json, Table, others
from triton_rerank_bench.served import read_model
from triton_rerank_bench.workloads import token_statistics
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_server import ServerConfig, TritonServer

DEMO = Path(".cache/checkpoint")
MINILM = "minilm-l6"
ETTIN = {  # hidden size, layers, heads, intermediate size
    "ettin-17m": (256, 7, 4, 384),
    "ettin-32m": (384, 10, 6, 576),
}
FORMS = {
    "fp32": ExportOptions(precision="fp32"),
    "int8": ExportOptions(precision="int8"),
    "bf16": ExportOptions(precision="bf16"),  # OpenVINO, which computes fp32 where the processor has no bf16
    "int8-openvino": ExportOptions(precision="int8", engine="openvino", reduce_range=True),
}
BESIDE = ("ONNX fp32", "ONNX int8", "OpenVINO", "OpenVINO int8")
BATCHES = ("batch 32", "batch 8")  # predict's default, and what small caches like
MAX_LENGTH = 512
QUERIES = 5  # of the gate's


class ServedForm:
    """One export of one model, through client and Triton."""

    def __init__(self, client: RerankClient, name: str) -> None:
        self.name, self._client = name, client

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores after the model's activation."""
        return self._client.score(query, documents, timeout_s=CALL_TIMEOUT_S)


class Named:
    """A contestant under the name of its model."""

    def __init__(self, model: str, contestant: PeerContestant) -> None:
        self.name, self._contestant = f"{model}: {contestant.name}", contestant

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """The contestant's own."""
        return self._contestant.scores(query, documents)


def write_ettin(name: str, folder: Path) -> None:
    """The five modules of an ettin reranker with random weights."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
    from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

    hidden, layers, heads, intermediate = ETTIN[name]
    torch.manual_seed(1)
    config = ModernBertConfig(
        vocab_size=50_368, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=intermediate, max_position_embeddings=8192, local_attention=128, global_attn_every_n_layers=3,
        pad_token_id=0, bos_token_id=101, cls_token_id=101, eos_token_id=102, sep_token_id=102, reference_compile=False,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(folder)
    words = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(DEMO / "tokenizer.json"), model_max_length=MAX_LENGTH, **words,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    modules = [
        Transformer(str(folder), transformer_task="feature-extraction"),
        Pooling(hidden, "cls"),
        Dense(hidden, hidden, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(hidden),
        Dense(hidden, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    CrossEncoder(modules=modules, activation_fn=torch.nn.Identity(), device="cpu").save_pretrained(str(folder))


def prepare(work: Path, models: Sequence[str], forms: Sequence[str], console: Console) -> None:
    """Make what is not there yet: checkpoints and exports."""
    for model in models:
        folder = checkpoint(work, model)
        if not folder.is_dir():
            beside = folder.with_name(f"{model}.new")
            shutil.rmtree(beside, ignore_errors=True)
            write_ettin(model, beside)
            beside.rename(folder)
        for form in forms:
            name = f"{model}-{form}"
            if not (work / "repository" / name).is_dir():
                with _shorter_gate():
                    done = export_model(
                        str(folder), work / "repository", replace(FORMS[form], name=name, max_length=MAX_LENGTH),
                        on_step=lambda _: None,
                    )  # fmt: skip
                report = done.report
                told = f"{report.max_logit_difference:.3g}, tau {report.kendall_tau:.3f} ({report.clear_tau:.3f} clear)"
                console.print(f"{name}: largest logit difference {told}", highlight=False)


@contextlib.contextmanager
def _shorter_gate() -> Iterator[None]:
    """On some queries, and without bounds on the order, which random weights do not have."""
    some, free = parity.load_parity_set()[:QUERIES], parity.Bounds(float("inf"), -1.0, 0.0)
    with (
        mock.patch.dict(parity.BOUNDS, int8=free, bf16=free),
        mock.patch.object(parity, "load_parity_set", lambda: some),
    ):
        yield


def checkpoint(work: Path, model: str) -> Path:
    """The folder of a model."""
    return DEMO if model == MINILM else work / model


def folders_of(model: str, options: argparse.Namespace) -> ModelFolders:
    """What the peers load of a model; made once."""
    return ModelFolders(
        checkpoint(options.work, model), options.work / "peers", options.environments, max_length=MAX_LENGTH,
        on_step=lambda _: None,
    )  # fmt: skip


def prepare_peers(options: argparse.Namespace, console: Console) -> None:
    """Make the peers' files, and say which cannot be made."""
    for model in options.model:
        for files in (PLAIN, ONNX_FILES, OPENVINO_FILES):
            try:
                folders_of(model, options).get(files)
            except PeerError as exc:
                console.print(f"{model}: {exc}", markup=False, highlight=False)


def peers(
    model: str, options: argparse.Namespace, stack: contextlib.ExitStack, console: Console
) -> list[tuple[Peer, list[Setting], Workers]]:
    """Those that load a model, with the settings to time; the others are told."""
    workers = stack.enter_context(
        Workers(folders_of(model, options).locate, max_length=MAX_LENGTH, n_threads=options.threads)
    )
    found = []
    for peer in (INSTALLED, *PEERS):
        if peer is INSTALLED or peer.name.removeprefix("sentence-transformers ") in options.beside:
            settings = [each for each in peer.settings if each.text in options.batch]
            try:
                notes = workers.get(peer, settings[0]).process.notes
            except PeerError as exc:
                console.print(f"{model}: {peer.name} is not measured: {exc}", markup=False, highlight=False)
                continue
            console.print(f"{model}: {peer.name} {notes or ''}", markup=False, highlight=False)
            found.append((peer, settings, workers))
    return found


def measure(options: argparse.Namespace, console: Console) -> None:
    """Time everything in turns, and print a table for each workload."""
    repository, load = options.work / "repository", OtherLoad()
    hundred = workloads.passages(options.seed)
    ten = replace(workloads.passages(options.seed, 10), name="ten", calls=5)
    texts = {"passages": [hundred], "short": [ten, workloads.single(options.seed)]}[options.workload]
    files = read_model(repository, f"{options.model[0]}-fp32")
    options.threads = n_threads(files)
    expected: dict[str, dict[str, list[float]]] = {each.name: {} for each in texts}  # of torch fp32, by model
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0)))
        contestants: list[Contestant] = []
        for model in options.model:
            for form in options.form:
                client = RerankClient(server.grpc_target, model=f"{model}-{form}", timeout_s=CALL_TIMEOUT_S)
                contestants.append(ServedForm(stack.enter_context(client), f"{model}: served {form}"))
            for peer, settings, workers in peers(model, options, stack, console):
                counted = settings if options.workload == "passages" else settings[:1]
                if peer is INSTALLED:
                    reference = workers.get(peer, settings[0])
                    for each in texts:
                        expected[each.name][model] = reference.scores(each.query, each.documents)
                contestants += [Named(model, workers.get(peer, s)) for s in counted]
        rounds = run_rounds(contestants, texts, n_rounds=options.rounds, seed=options.seed, during=load)
    machine, tokenizer = describe_machine(), tokenizer_of(files)
    console.print(f"{machine.cpu} ({', '.join(machine.cpu_flags)}), {options.threads} threads, {options.rounds} rounds")
    console.print(others(load.share()), markup=False)
    for each in texts:
        tokens = token_statistics(each, token_counts(tokenizer, each.query, each.documents))
        rows = _rows(rounds.seconds[each.name], rounds.scores[each.name], expected[each.name], tokens)
        title = f"{each.name}: {tokens.pairs} pairs, {tokens.total:,} tokens"
        columns = {
            "model": "model", "form": "form", "median s": "timing.median_s:.4f", "least": "timing.min_s:.4f",
            "most": "timing.max_s:.4f",
            "/ served best": "own:.2f", "/ MiniLM served best": "across:.2f", "tau": "tau:.3f",
        }  # fmt: skip
        console.print(Table(title, columns, rows).markdown(), markup=False, highlight=False)


def _rows(
    seconds: dict[str, list[float]],
    scores: dict[str, list[float]],
    expected: dict[str, list[float]],
    tokens: Any,
) -> list[Json]:
    """Each contestant over the fastest export of its model, and over the fastest of the first model."""
    medians = {name: timing(name, of_rounds, tokens) for name, of_rounds in seconds.items()}
    fastest = {
        model: min((n for n in medians if n.startswith(f"{model}: served")), key=lambda n: medians[n].median_s)
        for model in expected
    }
    first, rows = next(iter(fastest.values())), []
    for name, timed in medians.items():
        model, _, form = name.partition(": ")
        row: Json = {"model": model, "form": form, "timing": timed}
        row |= {"own": ratio(name, fastest[model], seconds), "across": ratio(name, first, seconds)}
        rows.append(row | {"tau": kendall_tau(expected[model], scores[name]) if tokens.pairs > 1 else None})
    return rows


def main() -> int:
    """Prepare, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".cache/cpu-models"))
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--model", action="append", choices=(MINILM, *ETTIN))
    parser.add_argument("--form", action="append", choices=tuple(FORMS))
    parser.add_argument("--workload", choices=("passages", "short"), default="passages")
    parser.add_argument("--batch", action="append", choices=BATCHES, help="of the peers; both by default")
    parser.add_argument(
        "--beside", nargs="*", choices=BESIDE, default=list(BESIDE), help="torch, which always is (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="make what is measured, and measure nothing")
    options, console = parser.parse_args(), Console(width=160)
    options.batch = options.batch or list(BATCHES)
    options.model, options.form = options.model or [MINILM, *ETTIN], options.form or list(FORMS)
    prepare(options.work, options.model, options.form, console)
    if options.prepare:
        prepare_peers(options, console)
    else:
        measure(options, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
