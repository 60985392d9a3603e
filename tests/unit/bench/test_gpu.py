"""`make perf-gpu` without a GPU: what it needs, what it serves, how it judges."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from triton_rerank.contract import CUDA_GRAPH_SHAPES, MICRO_BATCH_TOKENS
from triton_rerank_bench.compare.catalogue import on_device, without_padding
from triton_rerank_bench.compare.contestants import SERVED
from triton_rerank_bench.compare.process import PeerProcess
from triton_rerank_bench.compare.race import ratio
from triton_rerank_bench.errors import INTERRUPTED, BenchError, PeerError
from triton_rerank_bench.gpu import command as gpu_command
from triton_rerank_bench.gpu import device as gpu_device
from triton_rerank_bench.gpu import forms
from triton_rerank_bench.gpu import models as gpu_models
from triton_rerank_bench.gpu import steps as gpu_steps
from triton_rerank_bench.gpu.device import Device
from triton_rerank_bench.gpu.measure import AS_EXPORTED, Beside, Served, everything, judge
from triton_rerank_bench.gpu.models import Prepared, Shape, check_shape, prepare, write_random
from triton_rerank_bench.gpu.steps import Steps
from triton_rerank_bench.load.generator import LoadFigures, latency
from triton_rerank_bench.report import LOUD, target
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
from triton_rerank_bench.workloads import Workload, chunks, passages
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
    assert device.memory_used_mib() == 1_234
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("--id=2" in line and "--format=csv,noheader,nounits" in line for line in asked)


def test_memory_that_nvidia_smi_does_not_tell_of_a_share_of_a_gpu_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device, "_check_libraries", lambda: None)
    monkeypatch.setattr(gpu_device, "_smi", lambda *_: "NVIDIA H100 MIG 1g.10gb, 580.1, [N/A], 9.0, [N/A], 1980")
    device = gpu_device.describe("cuda")
    assert device.memory_mib is None
    assert device.lines()[0].startswith("device: NVIDIA H100 MIG 1g.10gb, memory not told, compute capability 9.0")
    monkeypatch.setattr(gpu_device, "_smi", lambda *_: "[N/A]")
    assert device.memory_used_mib() is None


@pytest.mark.parametrize(("driver", "old"), [("575.57.08", True), ("580.159.04", False), ("[N/A]", False)])
def test_the_driver_is_told_and_one_too_old_for_cuda_13_loudly(driver: str, old: bool) -> None:
    told = Device("cuda", "NVIDIA H100", driver=driver).lines()
    assert f"driver {driver}" in told[0]
    assert [line.startswith(LOUD) for line in told[1:]] == [True] * old


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
    with pytest.raises(
        BenchError, match="tiny cannot be exported by --precision fp32 --graph padded: triton-rer.*: the disk is full"
    ):
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


# --- steps --------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_told_and_each_is_written_before_the_next_begins() -> None:
    written: list[dict[str, float]] = []
    steps = Steps(1.0, lambda: written.append(dict(steps.seconds)), Console(quiet=True))

    def fail() -> None:
        raise EngineError("no kernel for it")

    steps.run("flat", fail)
    steps.run("padded", lambda: None)
    assert steps.left_out == ["flat: no kernel for it"]
    assert [list(each) for each in written] == [["flat"], ["flat", "padded"]]
    with pytest.raises(KeyboardInterrupt):
        steps.run("served", lambda: signal.raise_signal(signal.SIGINT))


def test_a_step_that_would_begin_too_late_is_left_out() -> None:
    steps = Steps(0.4, lambda: None, Console(quiet=True))
    steps.run("late", lambda: pytest.fail("it began"))
    assert steps.left_out == ["late: of 0.4 minutes less than 30 s are left"]
    assert steps.seconds == {}


def test_a_running_step_is_cut_before_the_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "LEAST_S", 0.0)
    monkeypatch.setattr(gpu_steps, "ENDING_S", 0.0)
    found: list[str] = []
    steps = Steps(0.2 / 60, lambda: found.append("written"), Console(quiet=True))

    def endless() -> None:
        found.append("begun")
        with contextlib.suppress(Exception):  # as code does that goes on after errors of its own
            time.sleep(60)

    steps.run("endless", endless)
    assert found == ["begun", "written"]
    assert steps.left_out == ["endless: was cut, since the minutes are over; the report keeps what it had found"]
    assert steps.seconds["endless"] < 30


def run_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """A run whose forms and servers are not real, and where some forms fail: the report, and what was served."""
    served: list[str] = []

    def form(prepared: Prepared, form: str, *_: object) -> forms.Form:
        if form in broken:
            raise EngineError("no kernel for it")
        return forms.Form(prepared.shape, form, {"CPU MatMul": 1}, {"kendall_tau": 1.0})

    @contextlib.contextmanager
    def serving(figures: Served, repository: Path, *_: object) -> Iterator[object]:
        served.append(f"{figures.way}: {repository.name}")
        figures.levels.append(level(1_000.0))
        yield None

    def prepare(shape: str, checkpoint: Path | None, work: Path, precision: str, form: str, **_: object) -> Prepared:
        return Prepared(shape, checkpoint or work, work / form)

    monkeypatch.setattr(gpu_command, "prepare", prepare)
    monkeypatch.setattr(gpu_command, "measure_form", form)
    monkeypatch.setattr(gpu_command, "show", lambda *_: None)
    monkeypatch.setattr(gpu_command, "serving", serving)
    monkeypatch.setattr(gpu_command, "beside_peers", lambda *_: ([], ["tiny, a peer: it does not start"]))
    monkeypatch.setattr(gpu_command, "matrix_rate", lambda *_: 1e12)
    given = options("--device", "cpu", "--shape", "tiny", "--output", str(tmp_path / "gpu.json"))
    document, code = gpu_command.run(given, Console(quiet=True))
    assert code == 0
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept == json.loads(json.dumps(document))
    return kept, served


def test_what_matters_most_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept, served = run_of(monkeypatch, tmp_path)
    names = [name.removeprefix("tiny, ") for name in kept["seconds"]]
    assert names[:4] == ["products of matrices", "flat", "as exported", "padded"]
    assert names[4:] == ["flat, with casts", "flat, native backend", *gpu_command.WAYS]
    native = "this Triton has no ONNX Runtime backend of its own; NVIDIA's image has"
    assert kept["left_out"] == ["tiny, a peer: it does not start", f"tiny, flat, native backend: {native}"]
    assert served == [f"{way}: flat" for way in (AS_EXPORTED, *gpu_command.WAYS)]


def test_where_the_flat_form_fails_the_padded_one_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept, served = run_of(monkeypatch, tmp_path, broken=["flat"])
    assert list(kept["seconds"])[1:4] == ["tiny, flat", "tiny, padded", "tiny, as exported"]
    assert kept["left_out"][0] == "tiny, flat: no kernel for it"
    assert set(served) == {f"{way}: padded" for way in (AS_EXPORTED, *gpu_command.WAYS)}
    kept, served = run_of(monkeypatch, tmp_path, broken=list(gpu_models.FORMS))
    assert "tiny, as exported: no form of its graph works here" in kept["left_out"]
    assert served == []


def test_operations_of_a_layer_are_its_products() -> None:
    shape = gpu_models.Shape("bert", 2, 8, 2, 100, 64)
    # four projections of 8 × 8 and two of 8 × 32; queries × keys and weights × values, each for 3 and for 5 tokens
    linear = 2 * (4 * 8 * 8 + 2 * 8 * 32) * (3 + 5)
    attention = 2 * 2 * 8 * (3 * 3 + 5 * 5)
    assert forms.flops(shape, np.array([3, 5])) == 2 * (linear + attention)


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


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
def test_a_peer_without_padding_gives_the_logits_of_the_padded_one(checkpoints: dict[str, Path], name: str) -> None:
    documents = ["quick sort", "a file", "the sort of an array " * 9, "", "it"]
    fp32 = {"dtype": "float32"}
    with PeerProcess("torch", Path(sys.executable), n_threads=1) as process:
        arguments = {"folder": str(checkpoints[name]), "max_length": 32, "n_threads": 1}
        padded, packed = on_device("cpu", "sdpa", (2,)), without_padding("cpu", (24, 4_096))
        process.load(padded.library, {**arguments, **padded.load, **fp32})
        wanted = process.scores("how do I sort?", documents, padded.settings[0].options)
        process.load(packed.library, {**arguments, **packed.load, **fp32})
        for setting in packed.settings:
            assert process.scores("how do I sort?", documents, setting.options) == pytest.approx(wanted, abs=1e-5)
        asked, bulk = everything(packed, [Workload("x", "how do I sort?", documents, 1)])
        assert process.scores(bulk.query, bulk.documents, asked.settings[0].options) == pytest.approx(wanted, abs=1e-5)


# --- figures ------------------------------------------------------------------------------------------------------


def level(pairs_per_s: float, workload: str = "passages") -> LoadFigures:
    told = dict.fromkeys((field.name for field in dataclasses.fields(LoadFigures)), None)
    seen = {"workload": workload, "mode": "closed", "concurrency": 8, "pairs_per_s": pairs_per_s, "errors": {}}
    return LoadFigures(**cast(Any, {**told, **seen, "latency": latency([1.0])}))


def verdicts(device: Device, rate: float, pairs_per_s: float, served_tau: float = 0.99) -> list[object]:
    figures = Served("minilm-l6", AS_EXPORTED, levels=[level(1.0), level(pairs_per_s), level(1e9, "short")])
    seconds = {SERVED: [1 / pairs_per_s] * 3, "p": [1 / 10_000] * 3}
    peer = Beside("minilm-l6", "p", 8, [], [], ratio("p", SERVED, seconds), served_tau, 0.95)
    rows = judge(device, rate, [figures, Served("minilm-l6", "2 tokenizers", levels=[level(1e9)])], [peer])
    return [row["passed"] for row in rows]


def test_a_goal_is_a_share_of_the_devices_own_matrix_rate() -> None:
    at_h100s = gpu_models.H100_FLOPS
    assert verdicts(H100, at_h100s, 29_000.0)[0] is False
    assert verdicts(H100, at_h100s, 31_000.0)[0] is True
    assert verdicts(OTHER, at_h100s / 2, 14_000.0)[0] is False
    assert verdicts(OTHER, at_h100s / 2, 16_000.0)[0] is True
    assert verdicts(CPU, 1e12, 9.0) == [None, True, None]
    assert judge(H100, 1e12, [Served("tiny", AS_EXPORTED)], []) == []


def test_a_peer_is_beaten_in_speed_and_not_by_being_wrong() -> None:
    assert verdicts(OTHER, 1e12, 9_000.0)[1:] == [True, False]
    assert verdicts(OTHER, 1e12, 11_000.0)[1:] == [True, True]
    assert verdicts(OTHER, 1e12, 11_000.0, served_tau=0.94)[1] is True
    assert verdicts(OTHER, 1e12, 11_000.0, served_tau=0.90)[1] is False


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
        ["--minutes", "0"],
        ["--level-s", "0"],
        ["--level-s", "nan"],
        ["--concurrency", "x"],
        ["--shape", "xl"],
    ],
)
def test_wrong_numbers_are_refused_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        options(*arguments)
    assert raised.value.code == 2


def test_an_interruption_keeps_the_steps_that_are_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_command, "matrix_rate", lambda *_: 2e12)

    def interrupted(*_: object, **__: object) -> Prepared:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_command, "prepare", interrupted)
    given = options("--device", "cpu", "--shape", "tiny", "--work", str(tmp_path))
    document, code = gpu_command.run(given, Console(quiet=True))
    assert (document["matrix_flops"], document["interrupted"], code) == (2e12, True, INTERRUPTED)


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--check"], 1)])
def test_a_missed_target_is_an_exit_code_where_it_is_asked_for(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [target("missed", 2.0, at_most=1), target("unknown", 1.0, at_most=0, judged=False)]
    monkeypatch.setattr(gpu_command, "judge", lambda *_: rows)
    given = options("--device", "cpu", "--shape", "tiny", "--minutes", "0.1", *arguments)
    assert gpu_command.run(given, Console(quiet=True))[1] == code
