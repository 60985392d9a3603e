"""A folder of report files that replace older ones only when all of them are there."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from triton_rerank_bench.errors import BenchError
from triton_rerank_server import atomic


class ReportFolder:
    """Files are written beside their places, and moved there at the end; a context manager that tidies up.

    Whether they can be written is found out at once, before anything is measured for them.

    Args:
        folder: where the files belong; made if it is not there.
        names: of all files.

    Raises:
        BenchError: from ``with``: it is a file, or cannot be written to.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self._names = folder, names
        self._made: list[Path] = []
        self._beside: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> ReportFolder:
        try:
            self._make()
            self._beside = self._stack.enter_context(atomic.scratch(self.folder, "report"))
        except OSError as exc:
            self._remove_made()
            raise BenchError(f"--output {self.folder}: must be a folder to write to ({exc.strerror})") from exc
        blocked = [name for name in self._names if (self.folder / name).is_dir()]
        if blocked:
            self.__exit__(None, None, None)
            raise BenchError(f"--output {self.folder}: {blocked[0]} in it is a folder, and cannot be replaced")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()
        self._remove_made()

    def path(self, name: str) -> Path:
        """Where to write a file until `publish`."""
        assert self._beside is not None
        return self._beside / name

    def publish(self) -> list[Path]:
        """Move all files to their places.

        Raises:
            OSError: one was not written; nothing is moved then.
        """
        sizes = {name: self.path(name).stat().st_size for name in self._names}  # raises before anything is moved
        return [self.path(name).replace(self.folder / name) for name in sizes]

    def _make(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made.append(path)

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            with suppress(OSError):  # it holds the report
                path.rmdir()
