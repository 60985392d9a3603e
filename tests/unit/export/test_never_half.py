"""The repository is the old or the new one, and can be served, whichever file operation fails or ends the process."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from support.exports import install, settled
from support.faults import Operations, ctrl_c, die, failing, full_disk, killed, leftovers
from support.folders import fingerprint

from triton_rerank.contract import CONFIG_FILE, MANIFEST_FILE
from triton_rerank.repository import read_artefacts, read_config
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository import replacement, staging
from triton_rerank_export.repository.changed_settings import change_settings
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.manifest import read_manifest
from triton_rerank_export.repository.settings import Settings
from triton_rerank_export.repository.store import activate, active_version
from triton_rerank_server.running.canary import read_canaries

NAME = "tiny-bert"
FOLDERS = (f"{NAME}-tokenizer", f"{NAME}-encoder", NAME)
SOME = ["a third", "replace two", "the first"]  # the ways that share no code
SETTINGS = ["fewer pairs", "more pairs again", "activate fewer", "settings of another"]
ALL = [*SOME, "a third at once", "the first of all", "activate", "lent names", *SETTINGS]
Work = Callable[[Path], object]
IN_MEMORY = Path("/dev/shm")
NOBODY = 65534


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to a repository.

    Attributes:
        before: that it begins with.
        old: sha256 of the graph that is served there, None for none.
        work: that is done.
        new: sha256 of the graph that is served afterwards.
    """

    before: Path
    old: str | None
    work: Work
    new: str


def with_settings(source: Path | None = None, **settings: int) -> Work:
    """What has the active version served so; another repository's in place of what is there."""

    def work(target: Path) -> None:
        other = source is not None
        change_settings(target, NAME, Settings(**settings), source=source, replace=other, keep=2)  # type: ignore[arg-type]

    return work


def lend(target: Path) -> None:
    """As `activate` does while a server changes from what was replaced."""
    with staging.locked(target, NAME, lambda _: None), replacement.lent_names(target, NAME):
        pass


def digest(folder: Path, version: int) -> str:
    files = read_manifest(folder / NAME / str(version) / MANIFEST_FILE).files
    return files[f"{NAME}-encoder/{version}/model.onnx"]


@pytest.fixture(autouse=True)
def _configs_are_read_and_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time goes there."""
    parse, seen = text_format.Parse, {}
    tell, told = text_format.MessageToString, {}

    def parsed(text: str, message: Any) -> Any:
        if text not in seen:
            seen[text] = parse(text, type(message)())
        message.CopyFrom(seen[text])
        return message

    def as_text(message: Any) -> str:
        key = message.SerializeToString(deterministic=True)
        if key not in told:
            told[key] = tell(message)
        return told[key]

    monkeypatch.setattr(text_format, "Parse", parsed)
    monkeypatch.setattr(text_format, "MessageToString", as_text)


@pytest.fixture(scope="module")
def changes(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Change]:
    folder = tmp_path_factory.mktemp("before")
    two = shutil.copytree(two_versions, folder / "two", ignore=shutil.ignore_patterns("tiny-xlmr*"))
    lately = shutil.copytree(two, folder / "lately")
    os.utime(lately / NAME / CONFIG_FILE)
    settled(two, NAME)
    one = shutil.copytree(two, folder / "one")
    activate(one, NAME, 1)
    install(two, NAME, 1, replace=True)(one)
    other = shutil.copytree(two_versions, folder / "other", ignore=shutil.ignore_patterns("tiny-bert*"))
    none = folder / "none"
    none.mkdir()
    old, new = digest(two, 1), digest(two, 2)
    fewer, more = (shutil.copytree(two, folder / name) for name in ("fewer", "more"))
    for each in (fewer, more):
        with_settings(max_batch_size=8)(each)
        settled(each, NAME)
    with_settings(max_batch_size=64)(more)
    return {
        "a second": Change(one, old, install(two, NAME, 2), new),
        "a third": Change(two, new, install(two, NAME, 1), old),
        "a third at once": Change(lately, new, install(two, NAME, 1), old),
        "replace two": Change(two, new, install(two, NAME, 1, replace=True), old),
        "the first": Change(other, None, install(two, NAME, 2), new),
        "the first of all": Change(none, None, install(two, NAME, 2), new),
        "activate": Change(two, new, lambda target: activate(target, NAME, 1), old),
        "lent names": Change(two, new, lend, new),
        "fewer pairs": Change(two, new, with_settings(max_batch_size=8, instances=2), new),
        "more pairs again": Change(fewer, new, with_settings(max_batch_size=64), new),
        "activate fewer": Change(more, new, lambda target: activate(target, NAME, 3), new),
        "settings of another": Change(one, old, with_settings(source=two, threads=2), new),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: what is killed is a process, so nothing hangs on the disk, which takes longer."""
    if not IN_MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as memory:
        yield Path(memory)


@pytest.fixture
def change(request: pytest.FixtureRequest, changes: dict[str, Change]) -> Change:
    return changes[request.param]


State = tuple[tuple[str, str], ...]


def state(folder: Path) -> State:
    """Every name and content; of scratch folders without what tempfile chose."""
    names = {re.sub(r"-[a-z0-9_]{8}(?=/|$)", "-x", str(path.relative_to(folder))): "" for path in folder.rglob("*")}
    return tuple(sorted((names | fingerprint(folder)).items()))


class Served:
    """What Triton would serve of a repository: sha256 of the graph, None without the model; all of it is loadable."""

    def __init__(self) -> None:
        self._seen: dict[State, str | None] = {}

    def __call__(self, target: Path) -> str | None:
        key = state(target)
        if key not in self._seen:
            self._seen[key] = self._look(target)
        return self._seen[key]

    def _look(self, target: Path) -> str | None:
        for folder in sorted(path for path in target.iterdir() if path.is_dir()):
            config = read_config(target, folder.name)
            assert config.name == folder.name
            for version in config.version_policy.specific.versions:
                assert (folder / str(version)).is_dir(), folder
            for step in config.ensemble_scheduling.step:
                its = read_config(target, step.model_name)
                assert step.model_version in its.version_policy.specific.versions, (folder.name, step.model_name)
                assert config.max_batch_size <= its.max_batch_size, (folder.name, step.model_name)
        if not (target / NAME).exists():
            return None
        model = read_artefacts(target, NAME)
        assert model.tokenizer_file.is_file()
        assert NAME in {canary.model for canary in read_canaries(target)}
        manifest = read_manifest(target / NAME / model.info.version / MANIFEST_FILE)
        (expected,) = (value for name, value in manifest.files.items() if name.endswith("model.onnx"))
        assert fingerprint(model.encoder_file.parent)["model.onnx"] == expected
        return expected


@pytest.fixture(scope="module")
def served() -> Served:
    return Served()


def fresh(change: Change, folder: Path, number: object) -> Path:
    return Path(shutil.copytree(change.before, folder / f"{number}" / "Modelle für (alle)"))


def count(change: Change, folder: Path, served: Served, *, changes_only: bool = False) -> int:
    """Operations of the whole, after which everything is as it should be."""
    target = fresh(change, folder, "all")
    with failing(Operations(), changes_only=changes_only) as operations:
        change.work(target)
    assert_done(change, target, served)
    assert NAME in check_repository(target)
    return len(operations.names)


def assert_done(change: Change, target: Path, served: Served) -> None:
    assert served(target) == change.new
    assert not leftovers(target.parent)
    assert {path.name for path in target.glob(f"{NAME}*")} == set(FOLDERS)


def kill_everywhere(change: Change, folder: Path, served: Served, outside: Path | None = None) -> None:
    """Of the states that are left each is put in order once; so is what lies in the folder outside, if there is one."""
    healed = set()
    for at in range(1, count(change, folder, served, changes_only=True) + 1):
        target = fresh(change, folder, at)

        def work(target: Path = target, at: int = at) -> None:
            with failing(Operations(at, die), changes_only=True):
                change.work(target)

        assert killed(work)
        assert served(target) in (change.old, change.new), at
        if (left := state(target.parent)) not in healed:
            healed.add(left)
            change.work(target)
            assert_done(change, target, served)
            assert outside is None or not list(outside.iterdir())
        for path in (target.parent, *(outside.iterdir() if outside else ())):
            shutil.rmtree(path)


@pytest.mark.parametrize("change", ALL, indirect=True)
def test_a_kill_leaves_the_old_or_the_new_one_and_the_next_export_tidies_up(
    change: Change, folder: Path, served: Served
) -> None:
    kill_everywhere(change, folder, served)


@pytest.mark.parametrize(
    ("change", "for_ever"),
    [*((name, False) for name in SOME), ("a third", True), ("replace two", True)],
    indirect=["change"],
)
def test_a_full_disk_says_what_holds(change: Change, folder: Path, served: Served, for_ever: bool) -> None:
    for at in range(1, count(change, folder, served) + 1):
        target = fresh(change, folder, at)
        before, message = fingerprint(target), ""
        try:
            with failing(Operations(at, full_disk, for_ever=for_ever)):
                change.work(target)
        except ExportError as exc:
            message = str(exc)
        assert_told(change, target, message, served)
        if "as it was" in message and not for_ever:
            assert fingerprint(target) == before, (at, message)
        shutil.rmtree(target.parent)


@pytest.mark.parametrize("change", SOME, indirect=True)
def test_ctrl_c_says_what_holds(change: Change, folder: Path, served: Served) -> None:
    for at in range(1, count(change, folder, served) + 1):
        target = fresh(change, folder, at)
        before = fingerprint(target)
        with pytest.raises(KeyboardInterrupt) as stopped, failing(Operations(at, ctrl_c)):
            change.work(target)
        assert_told(change, target, str(stopped.value), served)
        if "as it was" in str(stopped.value):
            now = {name: value for name, value in fingerprint(target).items() if "/." not in f"/{name}"}
            assert now == before, at
        shutil.rmtree(target.parent)


def assert_told(change: Change, target: Path, message: str, served: Served) -> None:
    """The message, if there is one, is true."""
    found = served(target)
    if "the repository is as it was" in message:
        assert found == change.old, message
    else:
        assert not message or f"version {active_version(target, NAME)} of {NAME} is active" in message
        assert found == change.new, message


@pytest.mark.parametrize("change", ["a second", "replace two", "the first"], indirect=True)
def test_a_kill_is_harmless_where_staging_is_on_another_file_system(
    change: Change, tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the repository is a mount, or the folder that it lies in is not ours to write."""
    if not IN_MEMORY.is_dir() or IN_MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{IN_MEMORY} is no file system of its own here")
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as memory:
        monkeypatch.setattr(tempfile, "tempdir", memory)
        monkeypatch.setattr(staging, "_nearest", functools.partial(_other_device, Path(memory)))
        kill_everywhere(change, tmp_path, served, Path(memory))


def _other_device(memory: Path, path: Path) -> Path:
    return path if path.name == "Modelle für (alle)" else memory


def test_an_owner_who_may_not_write_the_parent_folder_can_export(changes: dict[str, Change]) -> None:
    """Another user, where this is root: nothing may be refused to root."""
    with tempfile.TemporaryDirectory() as folder:
        parent, target, scratch = (Path(folder, *names) for names in (("srv",), ("srv", "models"), ("tmp",)))
        shutil.copytree(changes["a second"].before, target)
        new = Path(shutil.copytree(changes["a third"].before, Path(folder, "new")))
        scratch.mkdir()
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, NOBODY if path == scratch or target in (path, *path.parents) else os.getuid(), -1)
            path.chmod(0o755 if path.is_dir() else 0o644)
        parent.chmod(0o555)

        def work() -> None:
            if not os.getuid():
                os.setuid(NOBODY)
            assert not os.access(parent, os.W_OK)
            tempfile.tempdir = str(scratch)
            for replace in (False, True):
                before = active_version(target, NAME)
                install(new, NAME, 2, replace=replace)(target)
                assert active_version(target, NAME) == before + 1
            assert not leftovers(Path(folder))
            assert not list(scratch.iterdir())

        try:
            assert not killed(work)
        finally:
            parent.chmod(0o755)


def test_a_repository_that_may_not_be_written_is_refused_before_the_work(changes: dict[str, Change]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(shutil.copytree(changes["a second"].before, Path(folder, "models")))
        Path(folder).chmod(0o755)
        target.chmod(0o555)

        def work() -> None:
            if not os.getuid():
                os.setuid(NOBODY)
            with pytest.raises(ExportError, match="may write"), staging.staging(target):
                raise AssertionError("nothing should have been begun")

        assert not killed(work)
