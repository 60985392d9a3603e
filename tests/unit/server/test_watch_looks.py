"""What the watch makes of what it sees; looks are taken one after the other, without waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from triton_rerank_server.running import watch
from triton_rerank_server.running.backend_processes import Process, processes
from triton_rerank_server.running.canary import Canary
from triton_rerank_server.running.control import Control, ControlError
from triton_rerank_server.running.watch import Watch

CANARIES = [Canary("m", "q", ["a", "b"])]


class FakeControl(Control):
    """Answers a canary as the test says; counts them."""

    def __init__(self, answer: Callable[[], list[float]]) -> None:
        super().__init__("127.0.0.1:1")
        self._answer = answer
        self.asked = 0

    def logits(self, model: str, query: str, documents: list[str], *, timeout_s: float) -> list[float]:
        self.asked += 1
        return self._answer()


class Group:
    """The processes that each look finds; ``cpu_s`` grows by ``busy_s`` a look."""

    def __init__(self) -> None:
        self.states = {1: "S", 2: "S"}
        self.busy_s = 0.0
        self._cpu_s = 0.0

    def __call__(self, _: int) -> list[Process]:
        self._cpu_s += self.busy_s
        names = {pid: "" if state == "Z" else f"m-encoder_0_{pid}" for pid, state in self.states.items()}
        return [Process(pid, names[pid], state, self._cpu_s) for pid, state in self.states.items()]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    found = Group()
    monkeypatch.setattr(watch, "processes", found)
    return found


def looks(watching: Watch, number: int) -> list[str]:
    """Faults of so many looks, each after the canary that is under way, if one can end."""
    found = []
    for _ in range(number):
        found.append(watching.look())
        time.sleep(0.002)
    return [fault for fault in found if fault]


def watching_of(answer: Callable[[], list[float]]) -> Watch:
    return Watch(0, FakeControl(answer), CANARIES, stall_timeout_s=5.0)


def right() -> list[float]:
    return [2.0, 1.0]


def test_all_is_well_with_a_server_that_scores(group: Group) -> None:
    assert looks(watching_of(right), 50) == []


def test_a_backend_that_ended_is_named(group: Group) -> None:
    watching = watching_of(right)
    group.states[2] = "Z"
    assert looks(watching, 3) == ["process m-encoder_0_2 (2) ended"]


def test_a_backend_that_triton_ends_on_purpose_is_no_fault(group: Group) -> None:
    watching = watching_of(right)
    group.states[2] = "Z"
    assert looks(watching, 2) == []
    del group.states[2]
    assert looks(watching, 10) == []


def test_a_backend_that_stands_still_is_named_and_a_short_stop_is_none(group: Group) -> None:
    watching = watching_of(right)
    group.states[1] = "T"
    assert looks(watching, 5) == []
    group.states[1] = "S"
    assert looks(watching, 5) == []
    group.states[1] = "T"
    assert looks(watching, 6) == ["process m-encoder_0_1 (1) stands still"]


def failing(status: int | None, message: str) -> Callable[[], list[float]]:
    def answer() -> list[float]:
        raise ControlError(message, status=status)

    return answer


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (failing(500, "in ensemble 'm', Stub process 'm-encoder_0_0' is not healthy."), True),
        (failing(500, "onnx runtime error: out of memory"), True),
        (lambda: [float("nan"), 1.0], True),
        (failing(503, "Exceeds maximum queue size"), False),
        (failing(404, "Request for unknown model: 'm' has no available versions"), False),
        (failing(400, "unexpected shape"), False),
        (failing(None, "connection refused"), False),
    ],
)
def test_a_model_that_only_fails_is_a_fault_and_one_that_is_away_or_busy_is_not(
    group: Group, answer: Callable[[], list[float]], fault: bool
) -> None:
    found = looks(watching_of(answer), 60)
    assert bool(found) is fault
    assert all(line.startswith("m does not score any more: ") for line in found)


def test_one_failure_between_answers_is_no_fault(group: Group) -> None:
    answers = iter([right, failing(500, "out of memory"), right, failing(500, "out of memory"), right])
    assert looks(watching_of(lambda: next(answers, right)()), 60) == []


@pytest.fixture
def silence() -> Iterator[Callable[[], list[float]]]:
    """A canary that is not answered before the test's end."""
    end = threading.Event()

    def answer() -> list[float]:
        end.wait(60)
        return right()

    yield answer
    end.set()


def test_silence_while_nothing_computes_is_a_fault_after_its_time(
    group: Group, silence: Callable[[], list[float]]
) -> None:
    watching = watching_of(silence)
    assert looks(watching, 13) == []  # two seconds to the canary, and not yet five of silence
    assert looks(watching, 1) == ["m has scored nothing for 5 s, and computes nothing"]


def test_silence_while_something_computes_is_none(group: Group, silence: Callable[[], list[float]]) -> None:
    group.busy_s = 0.2
    assert looks(watching_of(silence), 100) == []


def test_the_processes_of_a_group_are_found_by_the_system() -> None:
    import os

    mine = next(process for process in processes(os.getpgid(0)) if process.pid == os.getpid())
    assert mine.state == "R"
    assert mine.cpu_s > 0
