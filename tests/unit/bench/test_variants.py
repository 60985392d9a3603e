"""Variants of a repository, and the knobs that make them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_bench import EXPORTED, ground_of

from triton_rerank import ConfigurationError, TritonOptions
from triton_rerank_bench.tune.knobs import BOUNDED, KNOBS, UNBOUNDED, candidates, exported_setting, ground
from triton_rerank_bench.tune.variants import Configs, clear_queue_bounds, config_diff, read_configs, variant
from triton_rerank_server.backends.encoder.engine import options_of

NAME = "tiny-bert"


@pytest.fixture
def configs(tiny_repository: Path) -> Configs:
    return read_configs(tiny_repository, NAME)


def nothing(_: Configs) -> None:
    return


# --- variants -----------------------------------------------------------------------------------------------------


def test_a_variant_without_a_change_has_the_same_bytes_and_links_to_the_rest(tiny_repository: Path) -> None:
    with variant(tiny_repository, NAME, nothing) as copy:
        assert sorted(path.name for path in copy.iterdir()) == [NAME, f"{NAME}-encoder", f"{NAME}-tokenizer"]
        for folder in copy.iterdir():
            source = tiny_repository / folder.name
            assert (folder / "config.pbtxt").read_bytes() == (source / "config.pbtxt").read_bytes()
            assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
            others = [path for path in folder.iterdir() if path.name != "config.pbtxt"]
            assert all(path.is_symlink() and path.resolve() == (source / path.name).resolve() for path in others)
    assert not copy.exists()


def test_a_variant_changes_what_it_is_told_and_nothing_else(tiny_repository: Path, configs: Configs) -> None:
    def change(changed: Configs) -> None:
        changed.encoder.dynamic_batching.max_queue_delay_microseconds = 700

    before = {path: path.read_bytes() for path in tiny_repository.rglob("config.pbtxt")}
    with variant(tiny_repository, NAME, change) as copy:
        there = read_configs(copy, NAME)
    assert (there.ensemble, there.tokenizer) == (configs.ensemble, configs.tokenizer)
    assert there.encoder != configs.encoder
    change(configs)
    assert there.encoder == configs.encoder
    assert {path: path.read_bytes() for path in tiny_repository.rglob("config.pbtxt")} == before


def test_a_diff_names_the_file_and_the_line(tiny_repository: Path) -> None:
    def change(changed: Configs) -> None:
        changed.encoder.instance_group[0].count = 3

    assert config_diff(tiny_repository, NAME, nothing) == ""
    lines = config_diff(tiny_repository, NAME, change).splitlines()
    assert lines[0].split() == ["---", f"{NAME}-encoder/config.pbtxt"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-  count: 1", "+  count: 3"]


def test_a_broken_or_missing_config_is_told(tmp_path: Path, tiny_repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; .* or export the model"):
        read_configs(tmp_path, NAME)
    with variant(tiny_repository, NAME, clear_queue_bounds) as copy:
        (copy / NAME / "config.pbtxt").write_text("no config {")
        with pytest.raises(ConfigurationError, match=r"config\.pbtxt: not a model config"):
            read_configs(copy, NAME)


def test_without_queue_bounds_changes_the_policies_only(tiny_repository: Path, configs: Configs) -> None:
    with variant(tiny_repository, NAME, clear_queue_bounds) as copy:
        there = read_configs(copy, NAME)
    for old, new in zip(configs, there, strict=True):
        assert not new.dynamic_batching.HasField("default_queue_policy")
        if old.HasField("dynamic_batching"):
            assert old.dynamic_batching.HasField("default_queue_policy")
            old.dynamic_batching.ClearField("default_queue_policy")
        assert old == new


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_exported_setting_is_read_from_the_configs_and_changes_nothing(configs: Configs) -> None:
    setting = exported_setting("fp32", configs)
    assert (setting.instances, setting.threads, setting.max_batch_size) == (1, 0, 256)
    assert (setting.queue_delay_us, setting.queue_bounds) == (0, BOUNDED)
    assert setting.length_ladder[-1] == int(configs.tokenizer.parameters["max_length"].string_value)
    before = [config.SerializeToString(deterministic=True) for config in configs]
    setting.change(configs)
    assert [config.SerializeToString(deterministic=True) for config in configs] == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instances", 3),
        ("threads", 2),
        ("max_batch_size", 8),
        ("queue_delay_us", 500),
        ("queue_bounds", UNBOUNDED),
        ("length_ladder", (64, 128)),
    ],
)
def test_a_changed_setting_is_what_the_configs_then_say(configs: Configs, field: str, value: Any) -> None:
    setting = replace(exported_setting("fp32", configs), **{field: value})
    setting.change(configs)
    assert exported_setting("fp32", configs) == setting


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_are_set_by_the_name_that_the_backend_reads(configs: Configs, backend: str) -> None:
    configs.encoder.parameters["engine"].string_value = backend
    replace(exported_setting("fp32", configs), threads=2).change(configs)
    parameters = {key: value.string_value for key, value in configs.encoder.parameters.items()}
    options = options_of(backend, parameters)
    assert 2 in (getattr(options, "intra_op_thread_count", 0), getattr(options, "inference_num_threads", 0))


def test_a_smaller_batch_is_in_all_three_configs_and_warms_up_no_larger_one(configs: Configs) -> None:
    assert max(warmup.batch_size for warmup in configs.encoder.model_warmup) > 8
    replace(exported_setting("fp32", configs), max_batch_size=8).change(configs)
    assert [config.max_batch_size for config in configs] == [8, 8, 8]
    assert max(warmup.batch_size for warmup in configs.encoder.model_warmup) == 8


def test_instances_without_a_group_get_one(configs: Configs) -> None:
    del configs.encoder.instance_group[:]
    replace(exported_setting("fp32", configs), instances=2).change(configs)
    assert [group.count for group in configs.encoder.instance_group] == [2]


def test_settings_that_differ_for_the_client_only_share_a_server() -> None:
    other = replace(EXPORTED, split="padding", sub_requests=4)
    assert other.served == EXPORTED.served
    assert other.client_options == TritonOptions(split="padding", concurrency=4)
    assert replace(EXPORTED, threads=2).served != EXPORTED.served
    assert other.changes_from(EXPORTED) == {"split": ("auto", "padding"), "sub_requests": (None, 4)}


# --- values that are tried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("cores", [1, 2, 6, 64])
def test_values_differ_from_the_setting_in_their_knob_and_are_possible(knob: str, cores: int) -> None:
    for candidate in candidates(knob, EXPORTED, ground_of(cores=cores)):
        changed = set(candidate.changes_from(EXPORTED))
        assert changed == {knob} or changed == {"instances", "threads"} == changed | {knob}
        assert candidate.instances <= cores
        assert candidate.threads <= cores
        assert candidate.instances * (candidate.threads or 1) <= cores or knob == "threads"
        assert candidate.length_ladder[-1] == EXPORTED.length_ladder[-1]
        assert list(candidate.length_ladder) == sorted(set(candidate.length_ladder))


def test_a_search_can_come_back_to_each_exported_value() -> None:
    best = replace(
        EXPORTED, instances=2, threads=2, queue_delay_us=500, queue_bounds=UNBOUNDED, max_batch_size=64, split="limits"
    )
    for knob in ("instances", "queue_delay_us", "queue_bounds", "max_batch_size", "split"):
        values = [getattr(each, knob) for each in candidates(knob, best, ground_of())]
        assert getattr(EXPORTED, knob) in values


def test_instances_on_a_cpu_share_its_cores() -> None:
    pairs = [(each.instances, each.threads) for each in candidates("instances", EXPORTED, ground_of(cores=8))]
    assert pairs == [(2, 4), (4, 2), (8, 1)]
    assert candidates("instances", EXPORTED, ground_of(cores=1)) == []


def test_on_a_gpu_threads_stay() -> None:
    on_gpu = ground_of(on_gpu=True)
    assert {each.threads for each in candidates("instances", EXPORTED, on_gpu)} == {0}
    assert candidates("threads", EXPORTED, on_gpu) == []


def test_fixed_shapes_get_no_larger_ones() -> None:
    fixed = ground_of(fixed_shapes=True)
    assert max(each.max_batch_size for each in candidates("max_batch_size", EXPORTED, fixed)) < 256
    for each in candidates("length_ladder", EXPORTED, fixed):
        assert set(each.length_ladder) < set(EXPORTED.length_ladder)
    assert any(
        set(each.length_ladder) > set(EXPORTED.length_ladder)
        for each in candidates("length_ladder", EXPORTED, ground_of())
    )


def test_the_client_is_not_tuned_where_a_call_is_one_request() -> None:
    assert candidates("split", EXPORTED, ground_of(most_pairs=1)) == []
    assert candidates("sub_requests", EXPORTED, ground_of()) == []  # bounded queues: one request of 100 pairs
    assert candidates("sub_requests", replace(EXPORTED, split="padding"), ground_of())
    assert candidates("sub_requests", replace(EXPORTED, max_batch_size=64), ground_of())


@pytest.mark.parametrize(
    ("kind", "has_gpu", "on_gpu"),
    [("KIND_CPU", True, False), ("KIND_GPU", False, True), ("KIND_AUTO", True, True), ("KIND_AUTO", False, False)],
)
def test_where_the_encoder_computes(configs: Configs, kind: str, has_gpu: bool, on_gpu: bool) -> None:
    group = configs.encoder.instance_group[0]
    group.kind = group.Kind.Value(kind)
    found = ground("fp32", configs, cores=2, has_gpu=has_gpu, most_pairs=100)
    assert (found.on_gpu, found.fixed_shapes) == (on_gpu, False)


def test_tensorrt_has_fixed_shapes(configs: Configs) -> None:
    configs.encoder.backend = "tensorrt"
    assert ground("fp16", configs, cores=2, has_gpu=True, most_pairs=100).fixed_shapes
