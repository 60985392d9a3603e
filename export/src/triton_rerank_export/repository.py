"""The model repository on disk: written beside, then renamed; and checked."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.text_format import ParseError

from triton_rerank.contract import MANIFEST_FILE
from triton_rerank_export.checkpoint import Checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.manifest import Manifest, build_manifest, model_files, read_manifest, sha256, write_manifest
from triton_rerank_export.parity import ParityReport
from triton_rerank_export.triton_config import ServedModel, encoder_inputs, from_text, to_text


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A scratch folder on the repository's own file system, gone afterwards.

    It lies beside the repository where it can, since Triton takes every folder inside for a model. A repository that
    was made for it and got nothing is gone afterwards too.
    """
    made = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev
    folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=parent if beside else repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and not any(repository.iterdir()):
            repository.rmdir()


def lay_out(staged: Path, model: ServedModel, checkpoint: Checkpoint, graph: Path) -> None:
    """Write the three folders of a model, without the manifest.

    Args:
        staged: repository to write into.
        model: what the configs are made from.
        checkpoint: gives tokenizer.json.
        graph: the ONNX file that will be served; moved.
    """
    for name, config in model.configs().items():
        (staged / name / "1").mkdir(parents=True)
        (staged / name / "config.pbtxt").write_text(to_text(config), encoding="utf-8")
    shutil.copyfile(checkpoint.folder / "tokenizer.json", staged / model.tokenizer_name / "1" / "tokenizer.json")
    shutil.move(graph, staged / model.encoder_name / "1" / "model.onnx")


def finish(staged: Path, model: ServedModel, report: ParityReport) -> None:
    """Write the manifest; the staged repository is complete after this."""
    write_manifest(staged / model.name / MANIFEST_FILE, build_manifest(staged, model, report))


def install(staged: Path, repository: Path, names: Iterable[str]) -> None:
    """Put staged folders in place of the old ones; all of them, or none.

    Raises:
        ExportError: a rename failed; what was there is back in its place.
    """
    previous = staged / ".previous"
    previous.mkdir()
    done: list[str] = []
    try:
        for name in names:
            done.append(name)
            if (repository / name).exists():
                (repository / name).rename(previous / name)
            (staged / name).rename(repository / name)
    except OSError as exc:
        _roll_back(repository, previous, done)
        raise ExportError(f"{repository}: cannot be changed ({exc}); it is as it was") from exc


def _roll_back(repository: Path, previous: Path, names: list[str]) -> None:
    for name in names:
        if (previous / name).exists():
            shutil.rmtree(repository / name, ignore_errors=True)
            (previous / name).rename(repository / name)


def check_repository(repository: Path) -> list[str]:
    """Look for everything that would make Triton serve something else than was exported.

    Args:
        repository: model repository.

    Returns:
        Names of the models that are in order.

    Raises:
        ExportError: lists every fault found.
    """
    manifests = sorted(repository.glob(f"*/{MANIFEST_FILE}"))
    if not manifests:
        raise ExportError(f"{repository}: no model with a {MANIFEST_FILE}; `make export MODEL=…` builds one")
    faults: list[str] = []
    for path in manifests:
        faults += _model_faults(repository, path)
    if faults:
        raise ExportError(f"{repository}: {len(faults)} faults\n  " + "\n  ".join(faults))
    return [path.parent.name for path in manifests]


def _model_faults(repository: Path, manifest_path: Path) -> list[str]:
    try:
        manifest = read_manifest(manifest_path)
    except ExportError as exc:
        return [str(exc)]
    if manifest.model.name != manifest_path.parent.name:
        return [f"{manifest_path}: it is the manifest of {manifest.model.name!r}; export the model again"]
    return [
        *_file_faults(repository, manifest),
        *_config_faults(repository, manifest.model),
        *_graph_faults(repository, manifest.model),
    ]


def _file_faults(repository: Path, manifest: Manifest) -> list[str]:
    present = {str(path.relative_to(repository)): path for path in model_files(repository, manifest.model)}
    missing = [f"{name}: missing; export the model again" for name in manifest.files if name not in present]
    changed = [
        f"{name}: its sha256 is not the manifest's; it belongs to another export, or was edited"
        for name, digest in manifest.files.items()
        if name in present and sha256(present[name]) != digest
    ]
    return [*missing, *changed]


def _config_faults(repository: Path, model: ServedModel) -> list[str]:
    faults = []
    for name, expected in model.configs().items():
        path = repository / name / "config.pbtxt"
        try:
            found = from_text(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ParseError) as exc:
            faults.append(f"{path.relative_to(repository)}: not a model config ({exc})")
            continue
        if found != expected:
            faults.append(
                f"{path.relative_to(repository)}: it is not the config that the manifest's data give "
                f"(its name is {found.name!r}); export the model again"
            )
    return faults


def _graph_faults(repository: Path, model: ServedModel) -> list[str]:
    import onnx
    from google.protobuf.message import DecodeError

    path = repository / model.encoder_name / "1" / "model.onnx"
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as exc:
        return [f"{path.relative_to(repository)}: not an ONNX file ({exc})"]
    found = sorted(node.name for node in graph.input)
    expected = sorted(encoder_inputs(token_type_ids=model.token_type_ids))
    return [] if found == expected else [f"{path.relative_to(repository)}: its inputs are {found}, not {expected}"]
