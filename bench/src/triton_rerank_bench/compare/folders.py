"""Model folders that peers load, all made of one checkpoint: kept under a cache folder, made once."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from triton_rerank_bench import workloads
from triton_rerank_bench.compare.catalogue import (
    HERE,
    INFINITY_FILES,
    ONNX,
    ONNX_FILES,
    OPENVINO_FILES,
    PLAIN,
    SENTENCE_TRANSFORMERS,
    Peer,
)
from triton_rerank_bench.compare.process import WORKER, PeerProcess
from triton_rerank_bench.errors import BenchError, PeerError
from triton_rerank_bench.machine import describe_machine, usable_cores
from triton_rerank_server import atomic

EXPORT_TIMEOUT_S = 900.0
CALIBRATION_SEED = 1_000_003  # of texts that are never timed


class ModelFolders:
    """Gives a peer the folder it loads, made of a checkpoint the first time, and kept in ``cache``.

    ``max_length`` is written into the tokenizer's config, which is where some peers look for it.

    Raises:
        BenchError: there is no checkpoint.
    """

    def __init__(
        self, checkpoint: Path, cache: Path, environments: Path, *, max_length: int, on_step: Callable[[str], None]
    ) -> None:
        if not (checkpoint / "config.json").is_file() or not (checkpoint / "tokenizer_config.json").is_file():
            raise BenchError(
                f"--checkpoint {checkpoint}: looked for config.json and tokenizer_config.json there; give the PyTorch "
                "checkpoint folder that the served model was exported from"
            )
        self._checkpoint, self._environments, self._max_length = checkpoint, environments, max_length
        self._cache = cache / _key(checkpoint, max_length)
        self._on_step = on_step
        self._failed: dict[str, PeerError] = {}

    def locate(self, peer: Peer) -> tuple[Path, Path]:
        """Interpreter and model folder of a peer; raises PeerError where one of them cannot be had."""
        if peer.environment == HERE:
            return Path(sys.executable), self._checkpoint
        return python_of(self._environments, peer.environment), self.get(peer.files)

    def get(self, files: str) -> Path:
        """The folder of that name; raises PeerError where it cannot be made, the second time at once."""
        if files in self._failed:
            raise self._failed[files]
        folder = self._cache / files
        if not folder.is_dir():
            try:
                with atomic.new_folder(folder) as new:
                    self._make(files, new)
            except PeerError as exc:
                self._failed[files] = exc
                raise
        return folder.resolve()

    def _make(self, files: str, folder: Path) -> None:
        self._on_step(f"making the files of {files}")
        if files == PLAIN:
            _copy(self._checkpoint, folder, self._max_length)
        elif files == ONNX_FILES:
            self._export(ONNX, "onnx", folder, _instructions())
        elif files == OPENVINO_FILES:
            self._export(SENTENCE_TRANSFORMERS, "openvino", folder, str(self._calibration().resolve()))
        else:
            assert files == INFINITY_FILES, files
            _copy(self.get(PLAIN), folder, self._max_length, weights=False)
            shutil.copyfile(self.get(ONNX_FILES) / "onnx/model.onnx", folder / "model.onnx")

    def _export(self, environment: str, kind: str, folder: Path, detail: str) -> None:
        arguments = [str(self.get(PLAIN)), str(folder.resolve()), detail]
        python = python_of(self._environments, environment)
        try:
            with PeerProcess(kind, python, n_threads=usable_cores()) as process:
                process.ask({"op": "make", "kind": kind, "arguments": arguments}, EXPORT_TIMEOUT_S)
        except PeerError as exc:
            raise PeerError(f"making the files of {kind}: {exc}") from None

    def _calibration(self) -> Path:
        """JSON lines of pairs that are never timed."""
        folder = self._cache / "calibration"
        texts = [workloads.passages(CALIBRATION_SEED), workloads.chunks(CALIBRATION_SEED)]
        lines = [json.dumps({"pair": [text.query, document]}) for text in texts for document in text.documents]
        atomic.write_file(folder / "train.jsonl", ("\n".join(lines) + "\n").encode())
        return folder


def python_of(environments: Path, environment: str) -> Path:
    """The interpreter of a peer's environment; raises PeerError where that is not there."""
    python = environments / environment / "bin" / "python"
    if not python.exists():
        raise PeerError(f"its environment {environments / environment} is not there; `make perf-peers` builds it")
    return python


def _key(checkpoint: Path, max_length: int) -> str:
    """Of all that the files depend on."""
    digest = hashlib.sha256(WORKER.read_bytes() + str(max_length).encode())
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(checkpoint)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _copy(checkpoint: Path, folder: Path, max_length: int, *, weights: bool = True) -> None:
    for path in checkpoint.iterdir():
        if path.is_file() and (weights or path.suffix in {".json", ".txt"}):
            shutil.copyfile(path, folder / path.name)
        elif weights and (path / "config.json").is_file():  # a module of sentence-transformers
            shutil.copytree(path, folder / path.name)
    config = folder / "tokenizer_config.json"
    texts = json.loads(config.read_text(encoding="utf-8")) | {"model_max_length": max_length}
    config.write_text(json.dumps(texts, indent=2) + "\n", encoding="utf-8")


def _instructions() -> str:
    """What sentence-transformers calls this processor's instructions for int8."""
    machine = describe_machine()
    if "aarch64" in machine.system or "arm64" in machine.system:
        return "arm64"
    if "avx512_vnni" in machine.cpu_flags:
        return "avx512_vnni"
    return "avx512" if "avx512f" in machine.cpu_flags else "avx2"
