"""Machine description and process memory, read from the real system."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.machine import (
    OtherLoad,
    PeakMemory,
    ProcessMemory,
    describe_machine,
    installed_versions,
    sample,
    today,
    usable_cores,
    watching,
)

MB = 10**6


def test_cpu_model_and_relevant_flags_are_read_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: Other\n")
    machine = describe_machine(file)
    assert machine.cpu == "Some CPU"
    assert machine.cpu_flags == ["avx2", "avx512_vnni"]


def test_machine_without_cpuinfo_is_still_described(tmp_path: Path) -> None:
    assert describe_machine(tmp_path / "absent").cpu
    assert describe_machine(tmp_path / "absent").cpu_flags == []


def test_cores_are_at_least_one_and_at_most_the_machines() -> None:
    assert 1 <= usable_cores() <= psutil.cpu_count()


def test_versions_name_python_and_what_is_installed() -> None:
    versions = installed_versions()
    assert versions["python"].startswith("3.")
    assert versions["numpy"]


def test_date_is_iso() -> None:
    assert len(today()) == 10


def test_load_of_others_is_what_was_busy_but_not_ours_and_only_inside_the_blocks() -> None:
    # in all, busy, ours: 10 s with 4 of ours and 2 of others', then 100 s outside, then 10 s with 1 of others'
    readings = iter([(0.0, 0.0, 0.0), (10.0, 6.0, 4.0), (110.0, 99.0, 4.0), (120.0, 104.0, 8.0)])
    load = OtherLoad(lambda: next(readings))
    for _ in range(2):
        with load:
            pass
    assert load.share() == pytest.approx(3 / 20)


def test_load_of_others_on_this_machine_is_a_share() -> None:
    load = OtherLoad()
    with load, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"]):
        time.sleep(0.1)
    assert 0.0 <= load.share() <= 1.0


def test_load_of_others_is_zero_before_anything_ran() -> None:
    assert OtherLoad().share() == 0.0


def test_peak_keeps_the_largest_sample() -> None:
    peak = PeakMemory()
    for sizes in ([1, 2], [5, 4], [3, 3]):
        peak.take([ProcessMemory("p", size) for size in sizes])
    assert (peak.pss_bytes, [p.pss_bytes for p in peak.processes], peak.samples) == (9, [5, 4], 3)


def test_memory_of_a_child_process_is_counted_with_its_parents() -> None:
    # The parent starts a child that holds 60 MB.
    child = "import sys, time; block = b'x' * 60_000_000; print('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            processes = sample(process.pid)
        finally:
            for found in psutil.Process(process.pid).children(recursive=True):
                found.kill()
    assert len(processes) == 2
    assert 60 * MB < sum(memory.pss_bytes for memory in processes) < 160 * MB


def test_watching_sees_a_peak_that_is_gone_at_the_end() -> None:
    code = "b = b'x' * 80_000_000; print('up', flush=True); input(); del b; print('down', flush=True); input()"
    peak = PeakMemory()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with watching(process.pid, peak, interval_s=0.01):
            process.stdout.readline()
            time.sleep(0.3)
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
        after = sum(memory.pss_bytes for memory in sample(process.pid))
        process.stdin.write("\n")
        process.stdin.flush()
    assert peak.samples > 1
    assert peak.pss_bytes > 80 * MB
    assert after < peak.pss_bytes - 70 * MB


def test_server_that_has_ended_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(BenchError, match="the server has ended"):
        sample(process.pid)


def test_server_that_ends_while_it_is_watched_is_told() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as process,
        pytest.raises(BenchError, match="the server has ended"),
        watching(process.pid, PeakMemory()),
    ):
        process.communicate("\n")
