"""The search for a peer's best setting, what is kept of a run, the targets, the report, and ways to call it wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from triton_rerank_bench.compare import command as peers_command
from triton_rerank_bench.compare.catalogue import LEAST_TAU, PEERS, Peer, Setting
from triton_rerank_bench.compare.command import Measured, comparison_report, judge, peers_files
from triton_rerank_bench.compare.contestants import IN_PROCESS, SERVED
from triton_rerank_bench.compare.process import PeerContestant, Workers
from triton_rerank_bench.compare.race import Outcome, Race, Tried, best_of, search
from triton_rerank_bench.errors import BenchError, PeerError
from triton_rerank_bench.machine import OtherLoad
from triton_rerank_bench.report import publish
from triton_rerank_bench.workloads import Workload, token_statistics

TEXT = Workload("passages", "q", ["a", "bb", "ccc", "dddd"], calls=1)
REFERENCE = [1.0, 2.0, 3.0, 4.0]
WRONG = [4.0, 3.0, 2.0, 1.0]


def a_peer(name: str, *settings: Setting, precision: str = "fp32") -> Peer:
    return Peer(name, precision, "onnx", "fastembed", "onnx", {}, settings)


def setting(text: str, seconds: float, scores: Sequence[float] = tuple(REFERENCE), **load: Any) -> Setting:
    return Setting(text, load, {"seconds": seconds, "scores": list(scores)})


class FakeWorkers:
    """Each call takes the seconds that its setting says, on a clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.kept: dict[str, list[str]] = {}
        self.dropped: list[str] = []
        self.dies_after: dict[str, int] = {}
        self.slower_later: dict[float, float] = {}  # seconds in the search -> in the rounds
        self.searched = False

    def get(self, peer: Peer, setting: Setting) -> PeerContestant:
        if setting.load.get("missing"):
            raise PeerError("its environment is not there")
        return PeerContestant(peer, setting, cast(Any, _FakeProcess(self, peer.name)))

    def keep(self, peer: Peer, contestants: Sequence[PeerContestant]) -> None:
        self.kept[peer.name] = [each.setting for each in contestants]

    def drop(self, peer: Peer, setting: Setting) -> None:
        self.dropped.append(setting.text)

    def idle_share(self, seconds: float) -> float:
        self.searched = True
        return 0.001

    def clock(self) -> float:
        return self.now


class _FakeProcess:
    notes: Mapping[str, str] = {"computes in": "fp32"}

    def __init__(self, workers: FakeWorkers, peer: str) -> None:
        self._workers, self._peer = workers, peer

    def scores(self, query: str, documents: Sequence[str], options: Mapping[str, Any]) -> list[float]:
        self._workers.calls.append(self._peer)
        if self._workers.calls.count(self._peer) > self._workers.dies_after.get(self._peer, 10**9):
            raise PeerError("its process ended; it said nothing")
        seconds: float = options["seconds"]
        self._workers.now += self._workers.slower_later.get(seconds, seconds) if self._workers.searched else seconds
        scores: list[float] = options["scores"]
        return scores


class Ours:
    def __init__(self, name: str, workers: FakeWorkers, seconds: float, interrupt_at: int = 10**9) -> None:
        self.name = name
        self._workers, self._seconds, self._left = workers, seconds, interrupt_at

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        self._workers.now += self._seconds
        return REFERENCE


def silent(doing: str, left_s: float | None = None) -> None:
    """Nobody watches."""


def find(peer: Peer, workers: FakeWorkers) -> list[Tried]:
    fake = cast(Workers, workers)
    return search(peer, peer.settings, TEXT, REFERENCE, fake, silent, workers.clock)


def test_the_best_setting_is_the_fastest_whose_order_is_right() -> None:
    workers = FakeWorkers()
    peer = a_peer("p", setting("a", 3.0), setting("b", 1.0, WRONG), setting("c", 2.0), setting("d", 2.5))
    found = find(peer, workers)
    assert (found[0].contestant.setting, best_of(peer, found).contestant.setting) == ("a", "c")
    assert [round(tried.seconds, 6) for tried in found] == [3.0, 1.0, 2.0, 2.5]
    assert best_of(peer, found).kendall_tau == pytest.approx(1.0)
    assert workers.kept == {"p": ["a", "c"]}


def test_a_hopeless_setting_is_called_twice_only_and_one_that_fails_is_passed_over() -> None:
    workers = FakeWorkers()
    found = find(a_peer("p", setting("a", 1.0), setting("b", 9.0), setting("c", 0.1, missing=True)), workers)
    assert len(workers.calls) == 4 + 2  # one that builds kernels, three counted; then one and one
    assert [tried.contestant.setting for tried in found] == ["a", "b"]
    assert workers.dropped == ["c"]


def test_a_peer_whose_default_fails_is_left_out() -> None:
    with pytest.raises(PeerError, match="environment is not there"):
        find(a_peer("p", setting("a", 1.0, missing=True), setting("b", 1.0)), FakeWorkers())


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Race, FakeWorkers, Any]]:
    """A race on a clock that calls move."""

    def make(*peers: Peer, interrupt_at: int = 10**9) -> tuple[Race, FakeWorkers, Any]:
        workers = FakeWorkers()
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        ours = [Ours(SERVED, workers, 2.0, interrupt_at), Ours(IN_PROCESS, workers, 1.6)]
        fake = cast(Workers, workers)
        load = OtherLoad(lambda: (1.0, 0.0, 0.0))
        return Race(peers, fake, 3, 1, silent, load, clock=workers.clock), workers, ours

    return make


def run(race: Race, ours: Any) -> list[Outcome]:
    figures = race.run(ours, TEXT, token_statistics(TEXT, [3, 4, 5, 6]), REFERENCE)
    return [figures] if figures else []


GOOD = a_peer("good", setting("batch 32", 8.0), setting("batch 8", 5.0))
LIAR = a_peer("liar", setting("batch 32", 0.1, WRONG))
ABSENT = a_peer("absent", setting("batch 32", 1.0, missing=True))


def test_a_race_gives_ratios_at_default_and_best_and_none_to_a_wrong_order(race: Any) -> None:
    it, _, ours = race(GOOD, LIAR, ABSENT)
    (figures,) = run(it, ours)
    assert [(row.name, row.kind, row.setting) for row in figures.rows] == [
        *((SERVED, "ours", ""), (IN_PROCESS, "ours", "")),
        *(("good", "default", "batch 32"), ("good", "best", "batch 8")),
        *(("liar", "default", "batch 32"), ("liar", "best", "batch 32")),
    ]
    good, best, *liar = (cast(Any, row) for row in figures.rows[2:])
    assert good.ratio.median == pytest.approx(4.0)
    assert best.ratio.median == pytest.approx(2.5)
    assert best.notes == {"computes in": "fp32"}
    assert [(row.ratio, row.kendall_tau) for row in liar] == [(None, -1.0)] * 2
    assert figures.not_measured == {"absent": "its environment is not there"}
    assert figures.tried["good"] == pytest.approx({"batch 32": 8.0, "batch 8": 5.0})
    assert figures.served_over_in_process
    assert figures.served_over_in_process.median == pytest.approx(1.25)
    assert figures.added_ms == pytest.approx(400.0)
    assert (figures.n_rounds, it.interrupted) == (3, False)
    targets = judge(Measured(cast(Any, None), 1, workloads=[figures]))
    assert [target["value"] for target in targets] == pytest.approx([4.0, 2.5])  # the liar does not count
    assert [target["passed"] for target in targets] == [True, True]


def test_a_default_that_is_faster_in_the_rounds_is_the_best(race: Any) -> None:
    it, workers, ours = race(a_peer("p", setting("batch 32", 2.0), setting("batch 8", 1.0)))
    workers.slower_later = {1.0: 9.0}
    (figures,) = run(it, ours)
    default, best = figures.rows[2:]
    assert best == replace(default, kind="best")


def test_a_peer_that_dies_in_the_rounds_is_named_and_the_others_are_kept(race: Any) -> None:
    doomed = a_peer("doomed", setting("batch 32", 1.0))
    it, workers, ours = race(GOOD, doomed)
    workers.dies_after["doomed"] = 6  # in its second round
    (figures,) = run(it, ours)
    assert {row.name for row in figures.rows} == {SERVED, IN_PROCESS, "good"}
    assert figures.not_measured == {"doomed": "its process ended; it said nothing"}


@pytest.mark.parametrize(("calls", "rounds"), [(2, []), (4, [2])])
def test_an_interruption_keeps_complete_rounds(race: Any, calls: int, rounds: list[int]) -> None:
    it, _, ours = race(GOOD, interrupt_at=calls)  # two rounds are uncounted
    found = run(it, ours)
    assert it.interrupted
    assert [figures.n_rounds for figures in found] == rounds


def test_every_peer_has_a_bound_and_settings_that_differ() -> None:
    assert {peer.precision for peer in PEERS} <= LEAST_TAU.keys()
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert len({each.text for each in peer.settings}) == len(peer.settings) > 1


def test_the_report_says_who_was_not_measured_and_whose_order_is_wrong(race: Any, tmp_path: Path) -> None:
    it, _, ours = race(GOOD, LIAR, ABSENT)
    files = SimpleNamespace(info=SimpleNamespace(name="m", precision="int8", max_length=512), engine="onnxruntime")
    measured = Measured(cast(Any, files), 2, "2.51.0", workloads=run(it, ours))
    report = comparison_report("peers", measured, {"seed": 1}, [], {"onnx": {"torch": "2.13.0"}})
    markdown, line, plot = publish(tmp_path / "perf", peers_files(measured, report))
    text = markdown.read_text(encoding="utf-8")
    assert "| good | default | batch 32 | 8.0000 | 4.00 (4.00 to 4.00) |" in text
    assert "| good | best | batch 8 | 5.0000 |" in text
    assert "| liar | default | batch 32 | 0.1000 | other order |" in text
    assert "- good: computes in fp32" in text
    assert "- liar: gets no ratio: Kendall's tau to torch fp32 is -1.000, and fp32 must reach 0.995" in text
    assert "- absent: not measured: its environment is not there" in text
    assert "- onnx: torch 2.13.0" in text
    assert json.loads(line.read_text(encoding="utf-8"))["workloads"][0]["rows"][2]["name"] == "good"
    assert plot.read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=140)
    comparison_report("peers", replace(measured, interrupted=True), {}, [], {}).print(console)
    assert "Interrupted" in console.export_text()


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peers_command.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "lucene"], "--only lucene: no peer's name begins so; there are sentence-transformers torch fp32"),
        ([], "looked for"),  # no model there
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    output = tmp_path / "perf"
    place = ["--model-repository", str(tmp_path / "r"), "--checkpoint", str(tmp_path / "c"), "--output", str(output)]
    with pytest.raises(BenchError, match=message) as caught:
        peers_command.run(options(*place, *words), Console())
    assert "\n" not in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--rounds", "x"], ["--workload", "poems"]])
def test_what_is_no_value_at_all_is_refused_by_the_parser(words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        options("--model-repository", "r", "--checkpoint", "c", *words)
    assert raised.value.code == 2


def test_a_report_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "perf").write_text("mine", encoding="utf-8")
    place = ["--model-repository", str(tmp_path), "--checkpoint", str(tmp_path), "--output", str(tmp_path / "perf")]
    with pytest.raises(BenchError, match="must be a folder to write to"):
        peers_command.run(options(*place), Console())
    assert (tmp_path / "perf").read_text(encoding="utf-8") == "mine"


def test_only_takes_beginnings_in_any_case() -> None:
    names = [peer.name for peer in peers_command.choose_peers(["fastembed", "Sentence-Transformers torch"])]
    assert names == [
        "sentence-transformers torch fp32",
        "sentence-transformers torch bf16",
        "fastembed",  # a whole name is that peer alone
    ]
    assert [peer.name for peer in peers_command.choose_peers(["fastemb"])] == ["fastembed", "fastembed int8"]
