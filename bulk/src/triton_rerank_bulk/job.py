"""A folder of output: whose job it is, who writes it now, and which blocks are there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from triton_rerank import ConfigurationError
from triton_rerank_bulk.pairs import Source
from triton_rerank_bulk.scoring import Work, reason_of

_JOB, _LOCK, _INPUT = "job.json", "lock", "input"


@dataclass(frozen=True)
class Job:
    """One output folder, and the facts that every row of it shares.

    Attributes:
        folder: of the output.
        facts: digest of the input, model, its version and so on, as in ``job.json``.
        n_pairs: to be scored.
    """

    folder: Path
    facts: Mapping[str, object]
    n_pairs: int

    @property
    def input(self) -> Path:
        """Folder with the pairs and texts."""
        return self.folder / _INPUT

    def done(self, work: Work, say: Callable[[str], None]) -> list[int]:
        """Blocks whose files are whole, by their footers; what a crash left half written is removed."""
        for draft in self.folder.glob(".part-*"):
            draft.unlink()
        return [block for block in range(work.n_blocks) if _is_whole(work, block, say)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is ours inside the block; the lock goes with the process, however it ends.

    Raises:
        ConfigurationError: another process has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in folder.iterdir() if path.name not in (_JOB, _LOCK)]
        if strangers and not any((folder / name).exists() for name in (_JOB, _LOCK)):
            raise ConfigurationError(
                f"--output {folder}: holds {strangers[0]}, which is not ours; give an empty folder"
            )
        lock = (folder / _LOCK).open("a+")
    except OSError as exc:
        raise ConfigurationError(f"--output {folder}: cannot be written ({reason_of(exc)})") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.seek(0)
            raise ConfigurationError(
                f"--output {folder}: another triton-rerank-bulk writes there ({lock.read().strip()[:80]}); "
                "wait until it ends, or give another folder"
            ) from exc
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield


def open_job(folder: Path, source: Source, facts: Mapping[str, object], say: Callable[[str], None]) -> Job:
    """Go on with the job in a folder that is `locked`, or begin one there.

    Args:
        folder: of the output.
        source: what is to be scored.
        facts: what makes two jobs the same, beside the input's digest.
        say: told what takes long.

    Raises:
        ConfigurationError: the folder holds another job; what differs is named.
        InvalidRequestError: the input is not of its form.
        OSError: it cannot be written.
    """
    say("reading the input")
    facts = {"input_sha256": source.digest(), **facts}
    if not (folder / _JOB).is_file():
        return _begin(folder, source, facts)
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
        n_pairs = int(found.pop("pairs"))
    except (ValueError, KeyError, AttributeError) as exc:
        raise ConfigurationError(f"{folder / _JOB}: is broken ({exc}); give another --output") from exc
    for name in (*facts, *found):
        if found.get(name) != facts.get(name):
            raise ConfigurationError(
                f"--output {folder}: is of another job: its {name} is {found.get(name)}, and {facts.get(name)} here; "
                "give another folder, or run that job as it was begun"
            )
    return Job(folder, facts, n_pairs)


def _begin(folder: Path, source: Source, facts: Mapping[str, object]) -> Job:
    """``job.json`` is written last: without it, a crash has left nothing to go on from."""
    inputs = folder / _INPUT
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir()
    n_pairs = source.prepare(inputs)
    draft = folder / f".{_JOB}"
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"pairs": n_pairs, **facts}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / _JOB)
    return Job(folder, facts, n_pairs)


def _is_whole(work: Work, block: int, say: Callable[[str], None]) -> bool:
    path = work.file(block)
    try:
        n_rows = int(pq.read_metadata(path).num_rows)
        if n_rows == len(work.rows(block)):
            return True
        reason = f"it has {n_rows} rows, not {len(work.rows(block))}"
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException) as exc:
        reason = str(exc)
    say(f"{path}: is broken ({reason}); its pairs are scored again")
    return False
