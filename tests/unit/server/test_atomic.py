"""Files and folders that are whole at every moment, the lock, and what a killed process leaves behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.faults import Operations, ctrl_c, die, failing, full_disk, killed, leftovers

from triton_rerank_server import atomic

Put = Callable[[Path, str], None]


def put_file(path: Path, text: str) -> None:
    atomic.write_file(path, text.encode())


def put_folder(path: Path, text: str) -> None:
    with atomic.new_folder(path) as folder:
        (folder / "a").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text(text)


def content(path: Path) -> set[str]:
    """Of all its files; empty if it is not there."""
    return {each.read_text() for each in (path, *path.rglob("*")) if each.is_file()} if path.exists() else set()


@pytest.fixture(params=["file", "folder", "folder without exchange"])
def put(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Put:
    if request.param == "folder without exchange":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return put_file if request.param == "file" else put_folder


@pytest.mark.parametrize("there", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("fault", [full_disk, ctrl_c, die])
def test_the_old_or_the_new_one_is_there_whatever_fails(
    put: Put, there: bool, fault: Callable[[], None], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    gap = "without exchange" in request.node.name  # such a file system has a moment without, which the next call ends
    (tmp_path / "all").mkdir()
    with failing(Operations()) as operations:
        put(tmp_path / "all" / "x[1]", "new")
    for at in range(1, 4 * len(operations.names)):
        path = tmp_path / f"{at}" / "x[1]"
        path.parent.mkdir()
        if there:
            put(path, "old")

        def work(path: Path = path, at: int = at) -> None:
            with failing(Operations(at, fault)):
                put(path, "new")

        ended = True
        with contextlib.suppress(OSError, KeyboardInterrupt):
            ended = killed(work) if fault is die else bool(work())  # type: ignore[func-returns-value]
        assert content(path) in ({"new"}, {"old"} if there else set(), *([set()] if gap and fault is die else [])), at
        put(path, "newer")
        assert content(path) == {"newer"}
        assert leftovers(path.parent) == []
        if not ended:
            return
    raise AssertionError("it never came to its end")


def test_a_failure_of_the_block_leaves_the_old_one(put: Put, tmp_path: Path) -> None:
    put(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), atomic.new_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic.new_file(tmp_path / "x") as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert content(tmp_path / "x") == {"old"}
    assert leftovers(tmp_path) == []


def test_a_file_that_was_not_written_stays(tmp_path: Path) -> None:
    put_file(tmp_path / "x", "old")
    with atomic.new_file(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "old"


def test_a_link_stays_one_and_what_it_points_to_changes(put: Put, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    put(tmp_path / "there" / "x", "old")
    (tmp_path / "x").symlink_to(tmp_path / "there" / "x")
    put(tmp_path / "x", "new")
    assert (tmp_path / "x").is_symlink()
    assert content(tmp_path / "there" / "x") == {"new"}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    put_file(tmp_path / "pipe", "new")
    reader.join(timeout=10)
    assert heard == [b"new"]
    assert (tmp_path / "pipe").is_fifo()


def test_scratch_of_a_living_process_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    def leave() -> None:
        with atomic.scratch(tmp_path, "x"):
            os._exit(9)

    assert killed(leave)
    (dead,) = tmp_path.iterdir()
    (tmp_path / ".x-folders").mkdir()  # not one of ours: its name is no such number of letters
    with atomic.scratch(tmp_path, "x") as living:
        assert not dead.exists()
        with atomic.scratch(tmp_path, "x") as second, atomic.scratch(tmp_path, "y") as other:
            assert len({living, second, other}) == 3
            assert living.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [".x-folders"]


def test_who_holds_the_lock_is_named_and_waited_for(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from triton_rerank_server import atomic\n"
        "with atomic.locked(Path(sys.argv[1]), print):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told: list[str] = []

        def say(holder: str) -> None:
            told.append(holder)
            other.stdin.close()  # type: ignore[union-attr]

        with atomic.locked(tmp_path, say):
            assert told[0].startswith(f"process {other.pid} (python")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    def die_with_it() -> None:
        with atomic.locked(tmp_path, print):
            os._exit(9)

    assert killed(die_with_it)
    told: list[str] = []
    with atomic.locked(tmp_path, told.append):
        assert not told
