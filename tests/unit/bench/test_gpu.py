"""`make perf-gpu` without a GPU: what it needs, what it serves, how it judges."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from triton_rerank_bench import gpu_command, gpu_device, gpu_models, gpu_report, gpu_speed
from triton_rerank_bench.contestants import SERVED
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.gpu_device import Device
from triton_rerank_bench.gpu_figures import REFERENCE, WorkloadFigures, capacity, judge
from triton_rerank_bench.gpu_models import Prepared, Shape, check_shape, prepare, write_random
from triton_rerank_bench.gpu_peer import DEFAULT, BatchSize, DevicePeer, best_rate, fastest
from triton_rerank_bench.gpu_settings import GRAPH_SHAPES, MICRO_BATCH_TOKENS, Setting, changes, graph_shapes
from triton_rerank_bench.gpu_workload import Plan, longest, pairs_of
from triton_rerank_bench.rounds import Agreement, WorkloadSpeed
from triton_rerank_bench.speed import Target
from triton_rerank_bench.variants import read_configs
from triton_rerank_bench.workloads import TokenStatistics, Workload, chunks, passages
from triton_rerank_server import ServerStartError
from triton_rerank_server.backends.encoder.cuda import parse_shapes, provider_options
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
    assert gpu_device.memory_used_mib("cuda", 2) == 1_234
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("--id=2" in line and "--format=csv,noheader,nounits" in line for line in asked)


def test_an_onnxruntime_without_cuda_is_refused() -> None:
    answer = "NVIDIA H100, 580.1, 81559, 9.0, 700, 1980"
    with pytest.raises(BenchError, match="no CUDA provider; `make perf-gpu` builds"):
        gpu_device.describe("cuda", query=lambda _: answer)


def test_a_cpu_is_called_one() -> None:
    device = gpu_device.describe("cpu")
    assert (device.kind, device.driver, device.cuda) == ("cpu", None, None)
    assert device.note is not None
    assert "no GPU" in device.note
    assert gpu_device.memory_used_mib("cpu") is None


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
        words = sum(len(f"{query} {document}".split()) for query, document in pairs_of(texts))
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
        prepare("tiny", None, tmp_path, "fp32", on_step=lambda _: None)


# --- settings -----------------------------------------------------------------------------------------------------


def test_a_gpu_setting_is_one_for_both_backends(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    setting = Setting("cuda", queue_bounds=False, graph_tokens=512, encoders=2, tokenizers=3, max_batch_size=1_024)
    setting.change(configs)
    encoder, tokenizer = configs.encoder, configs.tokenizer
    groups = [(group.count, group.Kind.Name(group.kind)) for group in (encoder.instance_group[0],)]
    assert groups == [(2, "KIND_GPU")]
    assert (tokenizer.instance_group[0].count, configs.ensemble.max_batch_size) == (3, 1_024)
    assert not encoder.dynamic_batching.HasField("default_queue_policy")
    assert all(warmup.batch_size <= 1_024 for warmup in encoder.model_warmup)
    assert encoder.parameters[MICRO_BATCH_TOKENS].string_value == "65536"
    shapes = parse_shapes(encoder.parameters[GRAPH_SHAPES].string_value)
    assert (1, 32) in shapes
    assert all(rows * width <= 512 for rows, width in shapes)
    (accelerator,) = encoder.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    provider_options(0, dict(accelerator.parameters), graphs=True)  # NVIDIA's backend would take graphs without shapes


def test_a_full_warm_up_stays_full_and_none_is_too_large(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    before = configs.encoder.max_batch_size
    configs.encoder.model_warmup[0].batch_size = before
    Setting("cuda", max_batch_size=2 * before).change(configs)
    assert configs.encoder.model_warmup[0].batch_size == 2 * before
    Setting("cuda", max_batch_size=4).change(configs)
    assert max(warmup.batch_size for warmup in configs.encoder.model_warmup) == 4


def test_a_cpu_setting_has_nothing_of_a_gpu(tiny_repository: Path) -> None:
    configs = read_configs(tiny_repository, "tiny-bert")
    Setting("cpu").change(configs)
    assert configs.encoder.instance_group[0].kind == configs.encoder.instance_group[0].KIND_CPU
    assert not configs.encoder.HasField("optimization")
    assert MICRO_BATCH_TOKENS not in configs.encoder.parameters


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_every_change_changes_something(kind: gpu_device.Kind) -> None:
    first = Setting(kind)
    assert changes(kind)
    assert all(dataclasses.replace(first, **change) != first for change in changes(kind))


def test_graph_shapes_leave_no_gap() -> None:
    shapes = graph_shapes((32, 64, 512), 8_192, 256)
    for width in (32, 64, 512):
        for rows in range(1, 8_192 // width + 1):
            fitting = [shape for shape in shapes if shape[0] >= rows and shape[1] >= width]
            if fitting:
                assert min(r * w for r, w in fitting) <= 1.5 * rows * width
    assert graph_shapes((512,), 256, 256) == []
    assert max(rows for rows, _ in graph_shapes((32,), 10**6, 8)) == 8


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pairs a second by setting, in place of servers; an exception is raised where one stands."""
    rates: dict[str, Any] = {}

    def answer(_model: Prepared, setting: Setting, *_: object) -> float:
        found = rates.get(str(setting), 50.0)
        if isinstance(found, Exception):
            raise found
        return float(found)

    monkeypatch.setattr(gpu_speed, "_try", answer)
    return rates


def test_the_search_keeps_what_is_faster_and_notes_what_is_refused(trials: dict[str, Any], tmp_path: Path) -> None:
    first = Setting("cuda")
    unbounded = dataclasses.replace(first, queue_bounds=False)
    graphs = dataclasses.replace(unbounded, graph_tokens=8_192)
    trials |= {str(first): 100.0, str(unbounded): 120.0, str(graphs): ServerStartError("no graphs\nlog")}
    two = dataclasses.replace(unbounded, encoders=2)
    trials[str(two)] = 130.0
    model = Prepared("tiny", "random", tmp_path, tmp_path)
    best, tried = gpu_speed.choose_setting(model, plan(H100), on_step=lambda _: None)
    assert best == two
    assert tried[0].pairs_per_s == 100.0
    (refused,) = [each for each in tried if each.refused]
    assert (refused.setting, refused.pairs_per_s, refused.refused) == (str(graphs), None, "no graphs\nlog")
    assert len(tried) == 1 + len(changes("cuda"))


def test_a_first_setting_that_does_not_start_ends_the_run(trials: dict[str, Any], tmp_path: Path) -> None:
    trials[str(Setting("cuda"))] = ServerStartError("no CUDA")
    with pytest.raises(ServerStartError):
        gpu_speed.choose_setting(Prepared("tiny", "random", tmp_path, tmp_path), plan(H100), on_step=lambda _: None)


# --- the peer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(checkpoints: dict[str, Path]) -> Iterator[DevicePeer]:
    peer = DevicePeer(
        checkpoints["tiny-bert"], max_length=128, kind="cpu", device_id=0, dtype="float32", attention="sdpa"
    )
    yield peer
    peer.close()


def test_both_ways_to_ask_the_peer_give_its_logits(peer: DevicePeer) -> None:
    pairs = [("how do I sort?", text) for text in ("quick sort", "a file", "the sort of an array", "")]
    default, tuned = peer.default(pairs), peer.tuned(pairs, 2)
    assert default == pytest.approx(tuned, abs=1e-5)


def test_the_peer_gives_logits(peer: DevicePeer, tmp_path: Path) -> None:
    random = write_random(tmp_path / "model", TINY_XLMR)  # num_labels 1 and no word on it: CrossEncoder's is a sigmoid
    bf16 = DevicePeer(random, max_length=128, kind="cpu", device_id=0, dtype="bfloat16", attention="sdpa")
    documents = passages(1).documents
    scores = bf16.default([("sort", document) for document in documents])
    assert min(scores) < 0 or max(scores) > 1  # a sigmoid in bf16 would tie the best


def test_batch_sizes_stop_where_a_list_is_one_batch(peer: DevicePeer) -> None:
    pairs = [("sort", f"text {i}") for i in range(5)]
    assert [size.batch_size for size in peer.sweep(pairs, (2, 4, 8, 16))] == [2, 4, 8]
    assert [size.batch_size for size in peer.sweep(pairs[:1], (2, 4))] == [2]


def test_a_batch_without_room_is_no_end(peer: DevicePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    tuned = peer.tuned

    def small(pairs: Any, batch_size: int) -> list[float]:
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tuned(pairs, batch_size)

    monkeypatch.setattr(peer, "tuned", small)
    found = peer.sweep([("sort", f"text {i}") for i in range(5)], (2, 4))
    assert found[0].pairs_per_s is not None
    assert found[1] == BatchSize(4, None)
    assert fastest(found) == 2
    with pytest.raises(BenchError, match="no batch of 4 pairs or more fits"):
        fastest(found[1:])


def test_the_first_call_is_not_counted() -> None:
    times = iter([0.0, 10.0, 10.0, 12.0, 12.0, 13.0, 13.0, 17.0])
    assert best_rate(lambda *_: [], [("a", "b")] * 4, 2, clock=times.__next__) == 4.0


def test_an_attention_that_is_not_there_is_one_line(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(BenchError, match="cannot load .* with nonsense attention"):
        DevicePeer(
            checkpoints["tiny-bert"], max_length=128, kind="cpu", device_id=0, dtype="float32", attention="nonsense"
        )


# --- figures ------------------------------------------------------------------------------------------------------


def plan(device: Device) -> Plan:
    return Plan(
        device=device,
        device_id=0,
        workloads=("passages",),
        n_rounds=1,
        level_s=1.0,
        concurrencies=(1, 4),
        attention="sdpa",
        batch_sizes=(32,),
        seed=1,
    )


def workload(served_tau: float, peer_tau: float, served: float = 20_000.0, peer: float = 10_000.0) -> WorkloadFigures:
    tokens = TokenStatistics(pairs=2, total=180, mean=90.0, median=90.0, longest=100, tokens_per_word=1.1)
    return WorkloadFigures(
        speed=WorkloadSpeed("passages", tokens, [], [], []),
        levels=[],
        capacity=capacity(8, 64, [served] * 3, [peer] * 3, 90.0),
        batch_sizes=[],
        bulk_batch_sizes=[],
        to_reference=[Agreement(REFERENCE, SERVED, served_tau), Agreement(REFERENCE, DEFAULT, peer_tau)],
    )


def verdicts(targets: list[Target]) -> list[bool | None]:
    return [target.passed for target in targets]


def test_nobody_wins_by_being_wrong() -> None:
    assert verdicts(judge("minilm-l6", OTHER, [workload(0.99, 0.95)])) == [True, True, None]
    assert verdicts(judge("minilm-l6", OTHER, [workload(0.94, 0.95)])) == [True, True, None]
    assert verdicts(judge("minilm-l6", OTHER, [workload(0.90, 0.95)])) == [False, True, None]
    assert verdicts(judge("minilm-l6", OTHER, [workload(0.99, 0.95), workload(0.1, 0.95)]))[0] is False


def test_speed_is_judged_on_gpus_and_the_goal_on_its_own_device_only() -> None:
    slower = workload(0.99, 0.95, served=9_000.0)
    assert verdicts(judge("minilm-l6", OTHER, [slower])) == [True, False, None]
    assert verdicts(judge("minilm-l6", CPU, [slower])) == [True, None, None]
    assert verdicts(judge("minilm-l6", H100, [workload(0.99, 0.95)])) == [True, True, False]
    assert verdicts(judge("minilm-l6", H100, [workload(0.99, 0.95, served=31_000.0)])) == [True, True, True]
    assert len(judge("tiny", H100, [workload(0.99, 0.95)])) == 2


def test_capacity_is_paired_within_rounds() -> None:
    found = capacity(8, 64, [100.0, 50.0, 120.0], [50.0, 25.0, 40.0], 90.0)
    assert (found.ratio.median, found.ratio.min, found.ratio.max) == (2.0, 2.0, 3.0)
    assert found.peer_tokens_per_s == 3_600.0


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
        (["--workload", "books"], "--workload books: there is none of that name; there are passages"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(arguments: list[str], says: str) -> None:
    with pytest.raises(BenchError) as raised:
        gpu_command.run(options("--device", "cpu", *arguments), Console(quiet=True))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--level-s", "0"], ["--level-s", "nan"], ["--concurrency", "x"], ["--shape", "xl"]],
)
def test_wrong_numbers_are_refused_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        options(*arguments)
    assert raised.value.code == 2


def test_an_interruption_keeps_the_models_that_are_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = SimpleNamespace(targets=[Target("met", 1.0, True)], triton_version="2.51.0")
    answers = iter([done])

    def measure(*_: object, **__: object) -> Any:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(gpu_command, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(gpu_command, "measure_model", measure)
    monkeypatch.setattr(gpu_report, "print_model", lambda *_: None)
    monkeypatch.setattr(gpu_report, "gpu_json", lambda device, models, settings: {"n": len(models), **settings})
    given = options("--device", "cpu", "--work", str(tmp_path))
    document, code = gpu_command.run(given, Console(quiet=True))
    assert (document["n"], document["interrupted"], code) == (1, True, 130)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
        gpu_command.run(given, Console(quiet=True))


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--check"], 1)])
def test_a_missed_target_is_an_exit_code_where_it_is_asked_for(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = SimpleNamespace(targets=[Target("missed", 1.0, False), Target("unknown", 1.0, None)])
    monkeypatch.setattr(gpu_command, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(gpu_command, "measure_model", lambda *_, **__: done)
    monkeypatch.setattr(gpu_report, "print_model", lambda *_: None)
    monkeypatch.setattr(gpu_report, "gpu_json", lambda *_: {})
    given = options("--device", "cpu", "--shape", "tiny", *arguments)
    assert gpu_command.run(given, Console(quiet=True))[1] == code
