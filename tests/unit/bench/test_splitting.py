"""Splitting: what the strategies group and pad, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_rerank._plan import BYTES_PER_TOKEN, Limits
from triton_rerank_bench import splitting
from triton_rerank_bench.cli import main
from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.raw import Sender
from triton_rerank_bench.rounds import Ratio
from triton_rerank_bench.splitting import Samples, summarise
from triton_rerank_bench.strategies import STRATEGIES, in_order, make_lists, padded_tokens, plan_list
from triton_rerank_bench.triton_statistics import Counts
from triton_rerank_bench.variants import without_queue_bounds
from triton_rerank_bench.workloads import Workload
from triton_rerank_server import TritonServer

LADDER = (32, 64, 128)
LIMITS = Limits(max_batch_size=4, max_request_bytes=10**6, length_ladder=LADDER)


def test_padding_is_rows_times_the_first_rung_that_holds_the_longest() -> None:
    token_counts = [10, 32, 33, 64, 65, 128]
    assert padded_tokens([range(6)], token_counts, LADDER) == 6 * 128
    assert padded_tokens([(0, 1), (2, 3), (4, 5)], token_counts, LADDER) == 2 * 32 + 2 * 64 + 2 * 128
    assert padded_tokens([(1,), (0, 2)], token_counts, LADDER) == 32 + 2 * 64


def test_naive_keeps_the_callers_order_and_cuts_at_the_limit() -> None:
    assert [list(group) for group in in_order(9, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_ideal_knows_the_tokens_that_plan_guesses_from_bytes() -> None:
    # All documents have the same bytes, but half of them four times the tokens: only the server knows.
    n = 200
    limits = Limits(max_batch_size=n, max_request_bytes=10**6, length_ladder=LADDER)
    workload = Workload("x", "query", ["word " * 20 for _ in range(n)], calls=1)
    token_counts = [30 if index % 2 else 120 for index in range(n)]
    planned = plan_list(workload, token_counts, limits)
    assert planned.figures.requests == {"plan": 1, "ideal": 2, "sorted": 1, "naive": 1}
    assert planned.figures.padded_tokens == {
        "plan": n * 128,
        "ideal": n // 2 * (32 + 128),
        "sorted": n * 128,
        "naive": n * 128,
    }
    assert sorted(planned.groups["ideal"][0]) == [index for index in range(n) if index % 2]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65, 128])
def test_ideal_puts_a_count_on_its_own_rung(count: int) -> None:
    filler = [1] * 2000  # enough for a split wherever the rungs differ
    limits = Limits(max_batch_size=4000, max_request_bytes=10**9, length_ladder=LADDER)
    workload = Workload("x", "q", ["d"] * 4000, calls=1)
    planned = plan_list(workload, [*filler, *([count] * 2000)], limits)
    rung = next(rung for rung in LADDER if rung >= count)
    assert planned.figures.padded_tokens["ideal"] == 2000 * (32 + rung)


def test_every_strategy_sends_each_document_once() -> None:
    (workload,) = make_lists((37,), spread=0.5, seed=1)
    token_counts = [min(128, round(len(document) / BYTES_PER_TOKEN)) for document in workload.documents]
    planned = plan_list(workload, token_counts, LIMITS)
    for strategy in STRATEGIES:
        sent = [index for group in planned.groups[strategy] for index in group]
        assert sorted(sent) == list(range(37))
        assert max(len(group) for group in planned.groups[strategy]) <= 4
    lengths = [len(workload.documents[index]) for group in planned.groups["sorted"] for index in group]
    assert lengths == sorted(lengths)
    assert planned.figures.tokens == sum(token_counts)


def test_lists_are_seeded_and_of_the_sizes_asked() -> None:
    lists = make_lists((10, 25), spread=0.37, seed=1)
    assert [len(workload.documents) for workload in lists] == [10, 25]
    assert lists == make_lists((10, 25), spread=0.37, seed=1)
    assert lists != make_lists((10, 25), spread=0.37, seed=2)
    words = [len(document.split()) for workload in lists for document in workload.documents]
    assert 65 < sum(words) / len(words) < 85


def test_ratios_are_paired_and_counts_are_summed() -> None:
    lists = [plan_list(workload, [40] * 8, LIMITS) for workload in make_lists((8, 8), spread=0.1, seed=1)]
    samples = Samples()
    for strategy in STRATEGIES:
        samples.seconds[strategy] = [2.0, 8.0, 3.0]
        samples.counts[strategy] = [Counts(4, 16, 2, 1.0)] * 3
    samples.seconds["naive"] = [4.0, 16.0, 5.0]
    told = summarise("mixed", 8, lists, samples)
    assert (told.lists, told.callers, told.documents, told.tokens) == ("mixed", 8, 16, 640)
    plan = told.strategies[0]
    assert (plan.strategy, plan.seconds, plan.ratio) == ("plan", 3.0, Ratio("plan", "naive", 0.5, 0.5, 0.6))
    assert (plan.rows_per_execution, plan.requests_per_execution) == (8.0, 2.0)
    assert plan.padding == 64 / 40


def test_sender_gives_the_servers_token_counts_in_the_callers_order(server: TritonServer) -> None:
    sizes = (1, 30, 2, 20, 3, 10, 4)
    documents = ["word " * size for size in sizes]
    sender = Sender(server.grpc_target, "tiny-bert")
    at_once = sender.send("a query", documents, [range(7)])
    assert sender.send("a query", documents, [(6, 0), (5, 1, 3), (4,), (2,)]) == at_once
    a_word = at_once[2] - at_once[0]
    assert a_word > 0
    assert at_once == [at_once[0] + a_word * (size - 1) for size in sizes]
    sender.close()


def test_sender_tells_a_request_that_failed(server: TritonServer) -> None:
    sender = Sender(server.grpc_target, "absent")
    with pytest.raises(BenchError, match="absent did not answer 1 pairs: .*unknown model"):
        sender.send("a query", ["a document"], [(0,)])
    sender.close()


def test_repository_without_queue_bounds_is_the_same_but_for_them(tiny_repository: Path) -> None:
    with without_queue_bounds(tiny_repository, "tiny-bert") as copy:
        assert sorted(path.name for path in copy.iterdir()) == ["tiny-bert", "tiny-bert-encoder", "tiny-bert-tokenizer"]
        for folder in copy.iterdir():
            there, here = (
                text_format.Parse((root / folder.name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
                for root in (tiny_repository, copy)
            )
            if there.HasField("dynamic_batching"):
                assert there.dynamic_batching.default_queue_policy.default_timeout_microseconds > 0
                there.dynamic_batching.ClearField("default_queue_policy")
            assert here == there
        assert (copy / "tiny-bert-encoder" / "1" / "model.onnx").is_file()
    assert not copy.exists()


def test_command_measures_all_strategies_and_prints_json_last(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splitting, "SETS", {"mixed": ((10, 300), 0.5), "like": ((20,) * 4, 0.02)})
    output = tmp_path / "splitting.json"
    command = ["splitting", "--model-repository", str(tiny_repository), "--model", "tiny-bert", "--rounds", "1"]
    assert main([*command, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document == json.loads(output.read_text(encoding="utf-8"))
    assert len(lines) > 1
    assert [(s["lists"], s["callers"], s["documents"]) for s in document["sets"]] == [
        *(("mixed", 1, 310), ("mixed", 8, 310), ("like", 1, 80), ("like", 8, 80)),
    ]
    for measured in document["sets"]:
        plan, ideal, by_length, naive = measured["strategies"]
        assert [s["strategy"] for s in measured["strategies"]] == list(STRATEGIES)
        assert 1.0 <= ideal["padding"] <= by_length["padding"] <= naive["padding"]
        assert plan["padding"] <= naive["padding"]
        assert naive["ratio"]["median"] == 1.0
        assert all(s["rows_per_execution"] >= 1.0 and s["requests_per_execution"] >= 1.0 for s in (plan, naive))
    alone = document["sets"][0]["strategies"]
    assert alone[3]["requests"] == len(in_order(10, document["max_batch_size"])) + len(
        in_order(300, document["max_batch_size"])
    )
    assert document["bytes_per_token"] == BYTES_PER_TOKEN


def test_missing_repository_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["splitting", "--model-repository", str(tmp_path / "absent")]) == 2
    captured = capsys.readouterr()
    assert "looked for the folder" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
