"""Where an export works, for whom else the repository is closed meanwhile, and what it may say when it is stopped."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from triton_rerank import repository as reader
from triton_rerank.contract import CONFIG_FILE
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository import replacement
from triton_rerank_server import atomic

Stamps = dict[str, tuple[int, int]]  # public model name -> inode and time of its config


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A scratch folder that Triton never sees, gone afterwards; what killed exports left of theirs goes first.

    Triton takes every folder inside a repository for a model, hidden or not. So it lies beside the repository, on its
    file system, or where that folder is not ours to write, or the repository is a mount, in TMPDIR.

    Raises:
        ExportError: the repository cannot be written.
        OSError: neither can TMPDIR.
    """
    repository = repository.resolve()
    there, beside = _nearest(repository), _nearest(repository.parent)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ExportError(f"{repository}: cannot be written ({there} is no folder that this user may write)")
    with contextlib.ExitStack() as stack:
        folder = None
        if beside.stat().st_dev == there.stat().st_dev:
            with contextlib.suppress(OSError):
                folder = stack.enter_context(atomic.scratch(beside, repository.name))
        yield folder or stack.enter_context(atomic.scratch(Path(tempfile.gettempdir()), repository.name))


@contextlib.contextmanager
def told(repository: Path) -> Iterator[None]:
    """Whatever ends the block, Ctrl-C or a full disk, says what really holds in the repository then.

    Raises:
        ExportError: for an OSError.
        KeyboardInterrupt: with the sentence, for Ctrl-C.
    """
    before = _stamps(repository)
    try:
        yield
    except KeyboardInterrupt as exc:
        raise KeyboardInterrupt(_what_holds(repository, before)) from exc
    except BrokenPipeError:  # of the reader of our output
        raise
    except OSError as exc:
        raise ExportError(f"{repository}: cannot be written ({exc}); {_what_holds(repository, before)}") from exc


@contextlib.contextmanager
def locked(repository: Path, name: str, on_step: Callable[[str], object]) -> Iterator[Path]:
    """The repository for us alone, and nothing half done in it of this model; gives its real path.

    Raises:
        OSError: it cannot be made, or what a killed export left cannot be put in order.
    """
    repository = repository.resolve()
    repository.mkdir(parents=True, exist_ok=True)
    with atomic.locked(repository, lambda holder: on_step(f"waiting for {holder}, which changes {repository}")):
        replacement.settle(repository, name)
        yield repository


def _nearest(path: Path) -> Path:
    """The path, or the last of its parents that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _stamps(repository: Path) -> Stamps:
    """Changes for a model with every change of what it serves: its config is a new file then."""
    stamps = {}
    for name in reader.exported_models(repository):
        with contextlib.suppress(FileNotFoundError):
            stat = (repository / name / CONFIG_FILE).stat()
            stamps[name] = (stat.st_ino, stat.st_mtime_ns)
    return stamps


def _what_holds(repository: Path, before: Stamps) -> str:
    changed = [name for name, stamp in _stamps(repository).items() if before.get(name) != stamp]
    holds = [f"version {reader.active_version(repository, name)} of {name} is active" for name in changed]
    return ", ".join(holds) or "the repository is as it was"
