"""Files and folders that appear whole: the old one or the new one, after Ctrl-C, kill -9 or a full disk at any moment.

New content is made in a scratch folder, which its process keeps locked, and put in its place by one rename. What a
killed process left behind is known by its free lock, however young it is, and goes with the next one. It stands in this
distribution because export and bench both need it, and neither may import the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system, kernel or C library that has none


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A folder to work in, ``.name-…`` in ``parent``, that is gone afterwards.

    Folders of the same name whose process died are removed first.

    Args:
        parent: an existing folder that may be written.
        name: what is being made.

    Raises:
        OSError: ``parent`` cannot be written.
    """
    sweep(parent, name)
    with _locked_folder(parent, name) as folder:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path, name: str | None = None) -> None:
    """Remove the scratch folders in ``parent``, of this name or of any, whose process died, if that can be done."""
    for path in parent.glob(f".{'*' if name is None else glob.escape(name)}-????????"):  # tempfile's eight letters
        with contextlib.suppress(OSError):  # another user's, no folder, or gone meanwhile
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(file):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(file)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write a file that becomes ``path`` when the block ends well; else ``path`` stays as it is.

    It stays as it is too if the block writes nothing.

    Raises:
        OSError: it cannot be written.
    """
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path.parent, path.name) as folder:
        new = folder / path.name
        yield new
        if new.exists():
            _to_disk(new)
            new.replace(path)


def write_file(path: Path, content: bytes) -> None:
    """Put a file in place, or the new one over the old. What is no file, such as a pipe, is written to.

    Raises:
        OSError: it cannot be written; the old one is there still.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with new_file(path) as new:
        new.write_bytes(content)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill that becomes ``path``, in place of an older one, when the block ends well.

    Raises:
        OSError: it cannot be written; the old one is there still.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path.parent, path.name) as folder:
        new = folder / "new"
        new.mkdir()
        yield new
        replace_folder(new, path)


def replace_folder(new: Path, path: Path) -> None:
    """Make a folder the one of that name, on one file system; ``new`` is then the old one, or gone.

    Where two folders cannot change places in one step (NFS), there is a moment without one. A failure in it brings the
    old one back, and after a kill the next call does, from ``.name.old`` beside it.

    Raises:
        OSError: the old one is there still.
    """
    old = path.with_name(f".{path.name}.old")
    if old.exists() and path.exists():
        shutil.rmtree(old)
    elif old.exists():
        old.rename(path)
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
        old.rename(new)


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[str], object]) -> Iterator[None]:
    """Hold a folder's lock: one process of this machine at a time, and a killed one holds it no longer.

    Nothing is written, so it needs no right to write.

    Args:
        folder: that is locked.
        on_wait: called with who holds it, such as "process 4711 (triton-rerank-export)", before it waits.

    Raises:
        OSError: there is no such folder.
    """
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _lock(file):
            on_wait(_holder(file))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> str:
    """The process, as far as the kernel tells."""
    inode = f":{os.fstat(file).st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                command = Path(f"/proc/{fields[4]}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
                return f"process {fields[4]} ({' '.join(Path(part).name for part in command[:2])})"
    return "another process"


@contextlib.contextmanager
def _locked_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder that is locked; made again if somebody took it for an abandoned one before it was."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        try:
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            if _lock(file) and folder.exists():
                yield folder
                return
        finally:
            os.close(file)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _to_disk(path: Path) -> None:
    """Full disks of some file systems are found out here only."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
