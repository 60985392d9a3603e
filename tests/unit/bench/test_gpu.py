"""`make perf-gpu` without a GPU: what it needs, what it serves, how it judges."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from triton_rerank.contract import CUDA_GRAPH_SHAPES, MICRO_BATCH_TOKENS
from triton_rerank_bench.compare.catalogue import on_device
from triton_rerank_bench.compare.contestants import SERVED
from triton_rerank_bench.compare.process import PeerProcess
from triton_rerank_bench.compare.race import AtSetting, PeerFigures, WorkloadPeers
from triton_rerank_bench.compare.rounds import Timing
from triton_rerank_bench.errors import INTERRUPTED, BenchError, PeerError
from triton_rerank_bench.gpu import command as gpu_command
from triton_rerank_bench.gpu import device as gpu_device
from triton_rerank_bench.gpu import first
from triton_rerank_bench.gpu import models as gpu_models
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.measure import WorkloadFigures, capacity, everything, judge, longest
from triton_rerank_bench.gpu.models import Shape, check_shape, prepare, write_random
from triton_rerank_bench.report import Json, Report, target
from triton_rerank_bench.tune.knobs import (
    UNBOUNDED,
    Setting,
    candidates,
    exported_setting,
    graph_shapes,
    ground,
    on_cpu,
    on_gpu,
)
from triton_rerank_bench.tune.variants import Configs, read_configs
from triton_rerank_bench.workloads import TokenStatistics, Workload, chunks, passages
from triton_rerank_server.backends.encoder.cuda import parse_shapes, provider_options
from triton_rerank_server.backends.encoder.session import EngineError
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

H100 = Device("cuda", "NVIDIA H100 80GB HBM3")
OTHER = Device("cuda", "NVIDIA L4")
CPU = Device("cpu", "a CPU", note=gpu_device.CPU_NOTE)
TINY_XLMR = Shape("xlm-roberta", layers=1, hidden=32, heads=4, vocabulary=4_096, max_length=256)


# --- the device ---------------------------------------------------------------------------------------------------


def test_without_a_driver_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"^--device cuda: nvidia-smi is not on PATH.*--device cpu --shape tiny$"):
        gpu_device.describe("cuda")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'No devices were found'; exit 6", "cannot see GPU 3 (No devices were found)"),
        ("exit 9", "cannot see GPU 3 (exit code 9)"),
        ("echo 'NVIDIA H100, 580.1'", "it is not understood"),
    ],
)
def test_a_driver_that_sees_no_gpu_is_named(
    script: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError) as raised:
        gpu_device.describe("cuda", 3)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nvidia_smi_is_asked_for_the_device_and_its_answer_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncase "$1" in\n*=memory.used) echo 1234 ;;\n'
        "*) echo 'NVIDIA H100 80GB HBM3, 580.159.04, 81559, 9.0, 700.00, 1980' ;;\nesac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_device, "_check_libraries", lambda: None)
    device = gpu_device.describe("cuda", 2)
    assert (device.name, device.driver, device.memory_mib) == ("NVIDIA H100 80GB HBM3", "580.159.04", 81_559)
    assert (device.compute_capability, device.power_limit_w, device.max_sm_clock_mhz) == ("9.0", "700.00", "1980")
    assert gpu_device.memory_used_mib(2) == 1_234
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("--id=2" in line and "--format=csv,noheader,nounits" in line for line in asked)


def test_memory_that_nvidia_smi_does_not_tell_of_a_share_of_a_gpu_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device, "_check_libraries", lambda: None)
    monkeypatch.setattr(gpu_device, "_smi", lambda *_: "NVIDIA H100 MIG 1g.10gb, 580.1, [N/A], 9.0, [N/A], 1980")
    device = gpu_device.describe("cuda")
    assert device.memory_mib is None
    assert device.lines()[0].startswith("device: NVIDIA H100 MIG 1g.10gb, memory not told, compute capability 9.0")
    monkeypatch.setattr(gpu_device, "_smi", lambda *_: "[N/A]")
    assert gpu_device.memory_used_mib(0) is None


def test_an_onnxruntime_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device, "_smi", lambda *_: "NVIDIA H100, 580.1, 81559, 9.0, 700, 1980")
    with pytest.raises(BenchError, match="no CUDA provider; `make perf-gpu` builds"):
        gpu_device.describe("cuda")


def test_a_cpu_is_called_one() -> None:
    device = gpu_device.describe("cpu")
    assert (device.kind, device.driver, device.cuda) == ("cpu", None, None)
    assert device.note is not None
    assert "no GPU" in device.note


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [gpu_models.SHAPES["tiny"], TINY_XLMR])
def test_random_models_have_the_size_and_read_the_words_that_are_timed(shape: Shape, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = write_random(tmp_path / "model", shape)
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.num_hidden_layers, config.hidden_size, config.num_labels) == (shape.layers, shape.hidden, 1)
    assert config.vocab_size == shape.vocabulary
    tokenizer = PairTokenizer(folder / "tokenizer.json", max_length=512, length_ladder=(512,), pad_token_id=0)
    for texts in (passages(1), chunks(1)):
        counts = tokenizer.encode(texts.query, texts.documents).token_count[:, 0]
        words = sum(len(f"{texts.query} {document}".split()) for document in texts.documents)
        assert 1.0 < counts.sum() / words < 1.2


def test_the_vocabulary_has_room_for_the_words() -> None:
    assert all(len(gpu_models._pieces("▁")) + 5 < shape.vocabulary for shape in gpu_models.SHAPES.values())


def test_the_shapes_are_those_of_the_models() -> None:
    parameters = {
        name: shape.vocabulary * shape.hidden + 12 * shape.layers * shape.hidden**2
        for name, shape in gpu_models.SHAPES.items()
    }
    assert parameters["minilm-l6"] == pytest.approx(22.7e6, rel=0.03)
    assert parameters["bge-base"] == pytest.approx(278e6, rel=0.03)
    assert parameters["v2-m3"] == pytest.approx(568e6, rel=0.03)


def test_weights_of_another_shape_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match=r"type, layers and width are \('bert', 2, 32\), not \('xlm-roberta', 12, 768\)"
    ):
        check_shape(checkpoints["tiny-bert"], "bge-base")
    with pytest.raises(BenchError, match="looked for config.json"):
        check_shape(tmp_path, "bge-base")
    check_shape(checkpoints["tiny-bert"], "tiny")


def test_an_export_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "step\ntriton-rerank-export: the disk is full\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(BenchError, match="tiny cannot be exported to fp32: triton-rerank-export: the disk is full"):
        prepare("tiny", None, tmp_path, "fp32", "padded", on_step=lambda _: None)


# --- settings -----------------------------------------------------------------------------------------------------


def exported(configs: Configs) -> Setting:
    on_gpu(configs)
    return exported_setting("tiny", configs)


def test_a_gpu_setting_is_one_for_both_backends(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    setting = dataclasses.replace(
        exported(configs),
        queue_bounds=UNBOUNDED,
        micro_batch_tokens=16_384,
        graph_tokens=512,
        instances=2,
        tokenizers=3,
        max_batch_size=1_024,
    )
    setting.change(configs)
    encoder, tokenizer = configs.encoder, configs.tokenizer
    assert [(group.count, group.Kind.Name(group.kind)) for group in encoder.instance_group] == [(2, "KIND_GPU")]
    assert (tokenizer.instance_group[0].count, configs.ensemble.max_batch_size) == (3, 1_024)
    assert not encoder.dynamic_batching.HasField("default_queue_policy")
    assert encoder.parameters[MICRO_BATCH_TOKENS].string_value == "16384"
    shapes = parse_shapes(encoder.parameters[CUDA_GRAPH_SHAPES].string_value)
    assert (1, 32) in shapes
    assert all(rows * width <= 512 for rows, width in shapes)
    (accelerator,) = encoder.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    provider_options(0, dict(accelerator.parameters), graphs=True)  # NVIDIA's backend would take graphs without shapes
    assert exported_setting("tiny", configs) == setting


def test_a_full_warm_up_stays_full_and_none_is_too_large(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    setting, before = exported(configs), configs.encoder.max_batch_size
    configs.encoder.model_warmup[0].batch_size = before
    dataclasses.replace(setting, max_batch_size=2 * before).change(configs)
    assert configs.encoder.model_warmup[0].batch_size == 2 * before
    dataclasses.replace(setting, max_batch_size=4).change(configs)
    assert max(warmup.batch_size for warmup in configs.encoder.model_warmup) == 4


def test_on_a_cpu_nothing_of_a_gpu_is_tried_or_set(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    on_cpu(configs)
    on = ground("tiny", configs, cores=4, has_gpu=False, most_pairs=100)
    assert not on.on_gpu
    for knob in ("micro_batch_tokens", "graph_tokens", "tokenizers"):
        assert candidates(knob, on.exported, on) == []
    on.exported.change(configs)
    assert not configs.encoder.HasField("optimization")
    assert MICRO_BATCH_TOKENS not in configs.encoder.parameters


def test_on_a_gpu_every_knob_of_its_own_has_values_to_try(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    on_gpu(configs)
    on = ground("tiny", configs, cores=4, has_gpu=True, most_pairs=100)
    assert on.on_gpu
    for knob in ("micro_batch_tokens", "graph_tokens", "tokenizers", "instances"):
        assert {frozenset(each.changes_from(on.exported)) for each in candidates(knob, on.exported, on)} == {
            frozenset({knob})
        }


def test_on_a_gpu_the_provider_keeps_the_options_that_the_export_gave_it(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    cuda = configs.encoder.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    cuda.parameters["enable_skip_layer_norm_strict_mode"] = "1"
    on_gpu(configs)
    (cuda,) = configs.encoder.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(cuda.parameters) == {"enable_skip_layer_norm_strict_mode": "1", "use_ep_level_unified_stream": "1"}


def test_the_first_minutes_keep_what_was_measured_and_tell_what_was_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(_: Path, shape: str, graph: str, *__: object) -> first.Form:
        if (shape, graph) == ("tiny", "flat"):
            raise EngineError("no kernel for it")
        if shape == "bge-base":
            raise KeyboardInterrupt
        return first.Form(shape, graph, {"CPU MatMul": 1}, {"kendall_tau": 1.0})

    monkeypatch.setattr(first, "prepare", lambda *_, **__: gpu_models.Prepared("", "random", tmp_path, tmp_path))
    monkeypatch.setattr(first, "_measure", measured)
    monkeypatch.setattr(first, "matrix_rate", lambda *_: 1e12)
    options = argparse.Namespace(
        shape=["tiny", "bge-base"], work=tmp_path, seed=1, output=tmp_path / "first.json", device_id=0
    )
    document, code = first.run_first(options, {}, gpu_device.describe("cpu"), "fp32", Console(quiet=True))
    assert code == INTERRUPTED
    assert document["left_out"] == ["tiny, flat: no kernel for it"]
    kept = json.loads((tmp_path / "first.json").read_text())
    assert [(form["shape"], form["graph"]) for form in kept["forms"]] == [("tiny", "padded")]


def test_a_form_that_would_begin_after_the_minutes_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(first, "MINUTES", -1.0)
    monkeypatch.setattr(first, "matrix_rate", lambda *_: 1e12)
    options = argparse.Namespace(shape=["tiny"], work=tmp_path, seed=1, output=None, device_id=0)
    document, code = first.run_first(options, {}, gpu_device.describe("cpu"), "fp32", Console(quiet=True))
    assert (code, document["forms"]) == (0, [])
    assert document["left_out"] == ["tiny, padded: -1 minutes are over", "tiny, flat: -1 minutes are over"]


def test_operations_of_a_layer_are_its_products() -> None:
    shape = gpu_models.Shape("bert", 2, 8, 2, 100, 64)
    # four projections of 8 × 8 and two of 8 × 32; queries × keys and weights × values, each for 3 and for 5 tokens
    linear = 2 * (4 * 8 * 8 + 2 * 8 * 32) * (3 + 5)
    attention = 2 * 2 * 8 * (3 * 3 + 5 * 5)
    assert first.flops(shape, np.array([3, 5])) == 2 * (linear + attention)


def test_graph_shapes_leave_no_gap() -> None:
    shapes = graph_shapes((32, 64, 512), 8_192, 256)
    for width in (32, 64, 512):
        for rows in range(1, 8_192 // width + 1):
            fitting = [shape for shape in shapes if shape[0] >= rows and shape[1] >= width]
            if fitting:
                assert min(r * w for r, w in fitting) <= 1.5 * rows * width
    assert graph_shapes((512,), 256, 256) == []
    assert max(rows for rows, _ in graph_shapes((32,), 10**6, 8)) == 8


# --- the peer -----------------------------------------------------------------------------------------------------


def test_both_ways_to_ask_the_peer_give_its_logits(checkpoints: dict[str, Path]) -> None:
    documents = ["quick sort", "a file", "the sort of an array", ""]
    fp32 = {"dtype": "float32"}
    with PeerProcess("torch", Path(sys.executable), n_threads=1) as process:
        peer = on_device("cpu", "sdpa", (2,))
        arguments = {"folder": str(checkpoints["tiny-bert"]), "max_length": 128, "n_threads": 1}
        process.load(peer.library, {**arguments, **peer.load, **fp32})
        default, best = (process.scores("how do I sort?", documents, each.options) for each in peer.settings)
        assert default == pytest.approx(best, abs=1e-5)
        lists = [Workload("x", "how do I sort?", documents[:2], 1), Workload("x", "a file", documents[2:], 1)]
        asked, bulk = everything(peer, lists)
        scores = process.scores(bulk.query, bulk.documents, asked.settings[1].options)
        assert scores[:2] == pytest.approx(best[:2], abs=1e-5)
        assert scores[2:] != pytest.approx(best[2:], abs=1e-5)  # another query
        with pytest.raises(PeerError, match="nonsense"):
            process.load(peer.library, {**arguments, **peer.load, **fp32, "attention": "nonsense"})


def test_the_peers_batch_sizes_are_tried_beside_its_default() -> None:
    peer = on_device("cuda:3", "sdpa", (16, 512))
    assert [each.text for each in peer.settings] == ["batch 32", "batch 16, one piece", "batch 512, one piece"]
    assert (peer.load["device"], peer.load["dtype"]) == ("cuda:3", "bfloat16")
    assert peer.least_tau == -1.0  # its order is held against ours


# --- figures ------------------------------------------------------------------------------------------------------


def workload(served_tau: float, peer_tau: float, served: float = 20_000.0, peer: float = 10_000.0) -> WorkloadFigures:
    tokens = TokenStatistics(pairs=2, total=180, mean=90.0, median=90.0, longest=100, tokens_per_word=1.1)
    default = AtSetting("batch 32", peer_tau, Timing("peer", 1.0, 1.0, 1.0, 2.0, 180.0), None)
    lists = WorkloadPeers(
        "passages", tokens, 1, [], None, None, served_tau, [PeerFigures("p", "bf16", -1, {}, default)], 0.0
    )
    return WorkloadFigures(lists, [], capacity(8, "p", {SERVED: [1 / served] * 3, "p": [1 / peer] * 3}))


def verdicts(shape: str, device: Device, *figures: WorkloadFigures) -> list[object]:
    return [target["passed"] for target in judge(shape, device, figures)]


def test_nobody_wins_by_being_wrong() -> None:
    assert verdicts("minilm-l6", OTHER, workload(0.99, 0.95)) == [True, True, None]
    assert verdicts("minilm-l6", OTHER, workload(0.94, 0.95)) == [True, True, None]
    assert verdicts("minilm-l6", OTHER, workload(0.90, 0.95)) == [False, True, None]
    assert verdicts("minilm-l6", OTHER, workload(0.99, 0.95), workload(0.1, 0.95))[0] is False


def test_speed_is_judged_on_gpus_and_the_goal_on_its_own_device_only() -> None:
    slower = workload(0.99, 0.95, served=9_000.0)
    assert verdicts("minilm-l6", OTHER, slower) == [True, False, None]
    assert verdicts("minilm-l6", CPU, slower) == [True, None, None]
    assert verdicts("minilm-l6", H100, workload(0.99, 0.95)) == [True, True, False]
    assert verdicts("minilm-l6", H100, workload(0.99, 0.95, served=31_000.0)) == [True, True, True]
    assert len(judge("tiny", H100, [workload(0.99, 0.95)])) == 2


def test_capacity_is_paired_within_rounds() -> None:
    found = capacity(8, "p", {SERVED: [1 / 100, 1 / 50, 1 / 120], "p": [1 / 50, 1 / 25, 1 / 40]})
    assert (found.ratio.median, found.ratio.min, found.ratio.max) == pytest.approx((2.0, 2.0, 3.0))
    assert found.served_pairs_per_s == pytest.approx([100.0, 50.0, 120.0])


def test_the_longest_list_of_a_workload_is_timed_alone() -> None:
    lists = [Workload("mixed", "q", ["a"] * size, 1) for size in (2, 7, 1, 7)]
    assert longest(lists) is lists[1]


# --- the command --------------------------------------------------------------------------------------------------


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gpu_command.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "large=/x"], "--checkpoint large=/x: it must be SHAPE=FOLDER"),
        (["--checkpoint", "/x"], "--checkpoint /x: it must be SHAPE=FOLDER"),
        (["--checkpoint", "tiny=/nowhere"], "looked for config.json"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(arguments: list[str], says: str) -> None:
    with pytest.raises(BenchError) as raised:
        gpu_command.run(options("--device", "cpu", *arguments), Console(quiet=True))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--level-s", "0"],
        ["--level-s", "nan"],
        ["--concurrency", "x"],
        ["--shape", "xl"],
        ["--workload", "books"],
    ],
)
def test_wrong_numbers_are_refused_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        options(*arguments)
    assert raised.value.code == 2


def measured(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """`measure_model` gives these, then the user interrupts."""
    answers = iter(models)

    def measure(*_: object, **__: object) -> Any:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(gpu_command, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(gpu_command, "measure_model", measure)
    monkeypatch.setattr(gpu_command, "model_report", lambda _: Report("gpu", None, {}, {}, []))


def model(*targets: Json) -> Any:
    return SimpleNamespace(targets=list(targets), triton_version="2.51.0")


def test_an_interruption_keeps_the_models_that_are_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured(monkeypatch, model(target("met", 1.0, at_most=1)))
    given = options("--device", "cpu", "--work", str(tmp_path))
    document, code = gpu_command.run(given, Console(quiet=True))
    assert (len(cast(Any, document["models"])), cast(Any, document["settings"])["interrupted"], code) == (1, True, 130)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        gpu_command.run(given, Console(quiet=True))


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--check"], 1)])
def test_a_missed_target_is_an_exit_code_where_it_is_asked_for(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, model(target("missed", 2.0, at_most=1), target("unknown", 1.0, at_most=0, judged=False)))
    given = options("--device", "cpu", "--shape", "tiny", *arguments)
    assert gpu_command.run(given, Console(quiet=True))[1] == code
