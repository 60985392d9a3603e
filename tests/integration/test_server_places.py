"""Where a server is started: odd paths, foreign folders, IPv6, proxies in the environment."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from support.stand_in import DeadSocket
from support.tritons import EXPLICIT, NAME, only_bert, start

from triton_rerank import RerankClient
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.rollout import reload
from triton_rerank_server import ServerStartError, TritonServer, process
from triton_rerank_server.launch.installation import Installation, find_installation

DOCUMENTS = ["gzip shrinks files", "the cat sat on the mat"]
FOREIGN = ("lost+found", ".git", ".ipynb_checkpoints", ".snapshot", "half/1")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy with one model."""
    return only_bert(tiny_repository, tmp_path / "model_repository")


def check_answers(server: TritonServer) -> None:
    with RerankClient(server.grpc_target, model=NAME, timeout_s=60.0) as client:
        assert len(client.rerank("how to zip a file", DOCUMENTS)) == len(DOCUMENTS)


def in_odd_folders(found: Installation, folder: Path) -> Installation:
    """The same installation, reached by a path with a space and an umlaut."""
    root = folder / "Programme für alle"
    root.symlink_to(found.backends.parent)
    libraries = None
    if found.libraries:
        libraries = folder / "geteilte Dateien"
        libraries.symlink_to(found.libraries)
    return dataclasses.replace(
        found,
        binary=root / "bin" / "tritonserver",
        backends=root / "backends",
        caches=root / "caches",
        libraries=libraries,
    )


def test_paths_with_spaces_umlauts_and_links_work(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository's, TMPDIR's and the installation's; Triton itself takes none of them."""
    odd = tmp_path / "Modelle für 'alle' (v2)"
    (odd / "tmp").mkdir(parents=True)
    only_bert(tiny_repository, odd / "Modell; ablage")
    (tmp_path / "Verweis").symlink_to(odd / "Modell; ablage")
    monkeypatch.setattr("tempfile.tempdir", str(odd / "tmp"))
    installation = in_odd_folders(find_installation(), odd)
    monkeypatch.setattr(process, "find_installation", lambda: installation)
    with start(tmp_path / "Verweis") as server:
        check_answers(server)
    (odd / "Modell; ablage" / f"{NAME}-encoder" / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(
        ServerStartError, match=r"Modell; ablage/tiny-bert-encoder/1/model\.onnx: ONNX Runtime cannot load"
    ):
        start(tmp_path / "Verweis").start()


POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")


@pytest.mark.parametrize("arguments", [(), EXPLICIT, POLL], ids=["default", "all", "poll"])
def test_foreign_folders_do_not_stop_a_start(repository: Path, arguments: tuple[str, ...]) -> None:
    for name in FOREIGN:
        (repository / name).mkdir(parents=True)
    (repository / "README.md").touch()
    with start(repository, *arguments) as server:
        check_answers(server)
        if "poll" in "".join(arguments):
            with pytest.raises(ExportError, match="nobody may load models there.*poll it takes the change by itself"):
                reload(server.grpc_target, NAME)
        else:
            assert reload(server.grpc_target, NAME) == [1]
            check_answers(server)


def test_without_model_control_nobody_but_the_command_loads_and_unloads(repository: Path) -> None:
    with (
        start(repository, "--model-control-mode=none") as server,
        triton.InferenceServerClient(server.grpc_target) as grpc,
    ):
        http = f"http://{server.http_target}/v2"
        for act in (lambda: grpc.unload_model(NAME), lambda: grpc.load_model(NAME), grpc.get_model_repository_index):
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                act()
        for path in (f"repository/models/{NAME}/unload", f"repository/models/{NAME}/load", "repository/index"):
            assert httpx.post(f"{http}/{path}", json={}).status_code == 403
        with pytest.raises(ExportError, match="restricted.*nobody may load models there"):
            reload(server.grpc_target, NAME)
        assert httpx.get(f"{http}/health/ready").status_code == 200
        assert grpc.is_server_ready() and grpc.is_model_ready(NAME)
        check_answers(server)


def test_a_model_that_fails_beside_a_foreign_folder_is_told_by_a_polling_server(repository: Path) -> None:
    (repository / "lost+found").mkdir()
    shutil.rmtree(repository / f"{NAME}-encoder" / "1")
    server = start(repository, "--model-control-mode=poll")
    with pytest.raises(ServerStartError, match=f"(?s)not loaded: {NAME}\n.*failed to load model '{NAME}-encoder'"):
        server.start()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 on loopback")
@pytest.mark.parametrize("address", ["::", "[::]", "::1"])
def test_ipv6_is_bound_and_reached(repository: Path, address: str) -> None:
    with start(repository, address=address) as server:
        assert server.grpc_target == f"[::1]:{server.grpc_port}"
        assert server.http_target.startswith("[::1]:")
        check_answers(server)


@contextmanager
def proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadSocket]:
    """Every variable that names a proxy names one that answers nobody."""
    with DeadSocket() as dead:
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{dead.port}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield dead


def test_readiness_and_canary_are_never_asked_through_a_proxy(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxies(monkeypatch) as dead, start(repository) as server:
        assert server.http_port
    assert dead.connections == 0
