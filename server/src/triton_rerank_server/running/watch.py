"""Notices that a running Triton no longer scores: Triton itself does not, and says "ready" with a dead backend."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from triton_rerank_server.running.backend_processes import processes
from triton_rerank_server.running.canary import Canary, score_canary
from triton_rerank_server.running.control import Control, ControlError

LOOK_S = 0.5  # between two looks
_CANARY_S = 2.0  # between two canaries of a model
_ENDED_LOOKS, _STILL_LOOKS = 3, 6  # in a row; what Triton ends on purpose, it waits for at once
_FAILURES = 2  # in a row
_IDLE = 0.05  # of one core: what computes uses more
_DEAD_BACKEND = "is not healthy"  # Triton's words for a stub that died or stands still


@dataclass
class _Probe:
    """The canary of one model: the one that is under way, and how the last ones ended."""

    canary: Canary
    asked: Future[list[float]] | None = None
    looks: int = 0  # since it was sent, or since the answer
    failures: int = 0


class Watch:
    """Looks at one Triton again and again.

    Args:
        group: process group of Triton and its stubs.
        control: its HTTP service.
        canaries: a model each; a pair of each is scored every two seconds.
        stall_timeout_s: seconds after which a canary without an answer is a fault, if nothing computes meanwhile.
    """

    def __init__(self, group: int, control: Control, canaries: list[Canary], *, stall_timeout_s: float) -> None:
        self._group = group
        self._control = control
        self._stall_timeout_s = stall_timeout_s
        self._probes = [_Probe(canary) for canary in canaries]
        self._pool = ThreadPoolExecutor(max(1, len(canaries)), thread_name_prefix="triton-rerank-canary")
        self._bad_looks: dict[tuple[int, str], int] = {}  # (pid, state) -> looks in a row
        # A process that has ended does not tell its name any more.
        self._names = {process.pid: process.name for process in processes(group)}
        self._computed_s = 0.0
        self._idle_looks = 0  # in a row; looks and not seconds, since all of us may be paused

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> str | None:
        """What is wrong now, or None."""
        found = self._process_fault()
        for probe in self._probes:
            found = found or self._probe_fault(probe)
        return found

    def _process_fault(self) -> str | None:
        seen = processes(self._group)
        computed_s = sum(process.cpu_s for process in seen)
        self._idle_looks = 0 if computed_s - self._computed_s > _IDLE * LOOK_S else self._idle_looks + 1
        self._computed_s = computed_s
        self._names |= {process.pid: process.name for process in seen if process.state != "Z"}
        bad = [(process.pid, process.state) for process in seen if process.state in "ZT"]
        self._bad_looks = {key: self._bad_looks.get(key, 0) + 1 for key in bad}
        for (pid, state), looks in self._bad_looks.items():
            if looks >= (_ENDED_LOOKS if state == "Z" else _STILL_LOOKS):
                return f"process {self._names.get(pid, '?')} ({pid}) {'ended' if state == 'Z' else 'stands still'}"
        return None

    def _probe_fault(self, probe: _Probe) -> str | None:
        probe.looks += 1
        if probe.asked is None:
            if probe.looks * LOOK_S >= _CANARY_S:
                probe.looks = 0
                long_s = 10 * self._stall_timeout_s
                probe.asked = self._pool.submit(score_canary, self._control, probe.canary, timeout_s=long_s)
            return None
        if not probe.asked.done():
            silent_s = min(probe.looks, self._idle_looks) * LOOK_S
            stalled = silent_s >= self._stall_timeout_s
            return (
                f"{probe.canary.model} has scored nothing for {silent_s:g} s, and computes nothing" if stalled else None
            )
        probe.looks = 0
        asked, probe.asked = probe.asked, None
        return _judge(probe, asked.exception())


def _judge(probe: _Probe, error: BaseException | None) -> str | None:
    """A model that was unloaded, and a full queue, are no fault."""
    if not isinstance(error, ControlError) or error.status != 500:
        probe.failures = 0
        return None
    probe.failures += 1
    if probe.failures < _FAILURES and _DEAD_BACKEND not in str(error):
        return None
    return f"{probe.canary.model} does not score any more: {error}"
