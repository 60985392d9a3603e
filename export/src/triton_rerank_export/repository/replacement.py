"""Whole models put in place of others: three folders change, and at every moment the old or the new model is served.

No file system changes three folders in one step. So the new steps come under **working names** first, the ensemble's
config is renamed over the old one and names them, and only then do the steps get their own names. A process that is
killed in between leaves a repository that can be served; `settle`, which every export and activation begins with,
finishes what became active and removes what did not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_rerank import ConfigurationError
from triton_rerank import repository as reader
from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX, TOKENIZER_SUFFIX
from triton_rerank_export.repository.triton_config import ServedModel, to_text
from triton_rerank_server import atomic

_WORKING = ".incoming"


def put(staged: Path, repository: Path, model: ServedModel) -> None:
    """Put a staged model, with its configs, in place of whatever has its name; all of it, or nothing.

    Args:
        staged: folder of the form of a repository.
        repository: model repository, locked.
        model: of one version, whose number nothing there has.

    Raises:
        OSError: the old one is served still, or the new one under working names, which the next export tidies up.
    """
    if not _is_served(repository, model.name):
        _put_first(staged, repository, model.folders)
        return
    try:
        for own, working in working_names(model.name).items():
            (staged / own).rename(staged / working)
            _rename_in_config(staged / working, working)
            bring(staged / working, repository / working)
        bring(staged / model.name / str(model.version), repository / model.name / str(model.version))
        _name_steps(repository, reader.read_config(staged, model.name), working_names(model.name))
    except BaseException:
        with contextlib.suppress(OSError):
            settle(repository, model.name)
        raise
    settle(repository, model.name)


def settle(repository: Path, name: str) -> None:
    """Give a model that is served under working names its own ones; remove one that did not come so far.

    Raises:
        OSError: that cannot be done; what is served stays the same.
    """
    names = working_names(name)
    for folder in (name, *names):
        atomic.sweep(repository / folder)
    there = [working for working in names.values() if (repository / working).exists()]
    if not there:
        return
    with contextlib.suppress(ConfigurationError):  # no ensemble, so none that names them
        ensemble = reader.read_config(repository, name)
        if {step.model_name for step in ensemble.ensemble_scheduling.step} & set(there):
            _give_own_names(repository, name, ensemble)
    for version in {version for working in there for version in reader.version_folders(repository, working)}:
        if (repository / name / str(version)).exists() and not any(
            (repository / own / str(version)).exists() for own in names
        ):
            remove(repository / name / str(version))
    for working in there:
        remove(repository / working)


@contextlib.contextmanager
def lent_names(repository: Path, name: str) -> Iterator[list[str]]:
    """Inside the block the ensemble takes its steps under working names, which are given; afterwards all is as before.

    Args:
        repository: model repository, locked.
        name: public model name.

    Raises:
        OSError: it cannot be written; the next export tidies up.
    """
    names, config = working_names(name), repository / name / CONFIG_FILE
    before = config.read_bytes()
    try:
        for own, working in names.items():
            _copy(repository, own, working)
        _name_steps(repository, reader.read_config(repository, name), names)
        yield list(names.values())
    finally:
        atomic.write_file(config, before)
        for working in names.values():
            if (repository / working).exists():
                remove(repository / working)


def bring(source: Path, target: Path) -> None:
    """Move a folder into the repository, where it appears whole.

    From another file system it is copied into a folder that Triton does not look at, since it lies in a model's and its
    name is no number, and renamed from there. In an empty repository there is none yet: the first step is written in
    place, its config last, and for these milliseconds Triton would complain of it.

    Args:
        source: in the staging folder.
        target: that is not there.

    Raises:
        OSError: nothing is there still.
    """
    try:
        source.rename(target)
        return
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
    inside = target.parent if target.name.isdecimal() else _any_model(target.parent)
    if inside is None:
        _copy_in_place(source, target)
        return
    with atomic.scratch(inside, target.name) as folder:
        shutil.copytree(source, folder / "new")
        (folder / "new").rename(target)


def remove(folder: Path) -> None:
    """Take a folder out of the repository in one step, then delete it.

    Raises:
        OSError: it is there still.
    """
    inside = folder.parent if folder.name.isdecimal() else _any_model(folder.parent, but=folder) or folder.parent
    with atomic.scratch(inside, "removed") as trash:
        folder.rename(trash / folder.name)


def link(source: str, target: str) -> None:
    """As large as the weights: a second name costs nothing, where the file system has one to give."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def working_names(name: str) -> dict[str, str]:
    """Step -> the name that it comes under."""
    return {name + suffix: name + _WORKING + suffix for suffix in (TOKENIZER_SUFFIX, ENCODER_SUFFIX)}


def _is_served(repository: Path, name: str) -> bool:
    try:
        model = reader.read_artefacts(repository, name)
    except ConfigurationError:
        return False
    return model.tokenizer_file.is_file() and model.encoder_file.is_file()


def _put_first(staged: Path, repository: Path, folders: Sequence[str]) -> None:
    """Where nothing is served, folders that are there are half of something; they come back if this fails."""
    old, done = staged / ".old", []  # no model has such a name
    old.mkdir()
    try:
        for name in reversed(folders):  # the ensemble first
            if (repository / name).exists():
                done.append(name)
                shutil.move(repository / name, old / name)
        for name in folders:
            done.append(name)
            bring(staged / name, repository / name)
    except BaseException:
        _put_back(repository, old, done)
        raise


def _put_back(repository: Path, old: Path, names: list[str]) -> None:
    for name in dict.fromkeys(reversed(names)):
        with contextlib.suppress(OSError):
            if (repository / name).exists() and not (old / name).exists():
                remove(repository / name)
            if (old / name).exists():
                shutil.move(old / name, repository / name)


def _rename_in_config(folder: Path, name: str) -> None:
    config = reader.read_config(folder.parent, folder.name)
    config.name = name
    (folder / CONFIG_FILE).unlink()  # it may be a link, and written over it would change both
    (folder / CONFIG_FILE).write_text(to_text(config), encoding="utf-8")


def _give_own_names(repository: Path, name: str, ensemble: Any) -> None:
    for own, working in working_names(name).items():
        _copy(repository, working, own)
    for version, folder in reader.version_folders(repository, name).items():
        if version not in reader.version_folders(repository, own):
            remove(folder)
    _name_steps(repository, ensemble, {working: own for own, working in working_names(name).items()})


def _copy(repository: Path, step: str, name: str) -> None:
    """A step under another name, in place of what has it."""
    with atomic.scratch(repository / step, name) as folder:
        shutil.copytree(repository / step, folder / name, copy_function=link, ignore=shutil.ignore_patterns(".*"))
        _rename_in_config(folder / name, name)
        atomic.replace_folder(folder / name, repository / name)


def _name_steps(repository: Path, ensemble: Any, names: Mapping[str, str]) -> None:
    """The config of an ensemble, with other names of its steps: a switch."""
    for step in ensemble.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    atomic.write_file(repository / ensemble.name / CONFIG_FILE, to_text(ensemble).encode())


def _any_model(repository: Path, *, but: Path | None = None) -> Path | None:
    """A model's folder."""
    configs = sorted(repository.glob(f"*/{CONFIG_FILE}"))
    return next((path.parent for path in configs if path.parent != but), None)


def _copy_in_place(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(CONFIG_FILE))
        shutil.copyfile(source / CONFIG_FILE, target / CONFIG_FILE)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
