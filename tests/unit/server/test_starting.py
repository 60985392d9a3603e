from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from pathlib import Path

import grpc
import pytest

from triton_rerank_server import ServerStartError, ports
from triton_rerank_server.child import Child
from triton_rerank_server.cli import main
from triton_rerank_server.environment import triton_environment
from triton_rerank_server.installation import Installation, find_installation, lay_out_backends
from triton_rerank_server.ports import resolve_port


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def nvidia_image(root: Path, *, native: bool) -> Installation:
    """The parts of NVIDIA's image that matter here."""
    binary = executable(root / "bin" / "tritonserver")
    (root / "backends" / "python").mkdir(parents=True)
    (root / "backends" / "tensorrt").mkdir()
    if native:
        (root / "backends" / "onnxruntime").mkdir()
        (root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    return Installation(binary, root / "backends", root / "caches")


def test_tritonserver_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nvidia_image(tmp_path, native=True)
    monkeypatch.setenv("PATH", str(image.binary.parent))
    assert find_installation() == image


def test_without_one_on_path_the_wheels_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = find_installation()
    assert found.binary.name == "tritonserver"
    assert found.stub is not None
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in str(found.stub)


def test_with_neither_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerStartError, match=r"pip install 'triton-rerank-server\[tritonserver\]'"):
        find_installation()


def test_a_native_onnxruntime_backend_is_kept(tmp_path: Path) -> None:
    backends = lay_out_backends(nvidia_image(tmp_path / "image", native=True), tmp_path / "backends")
    assert (backends / "onnxruntime" / "libtriton_onnxruntime.so").exists()
    assert (backends / "tokenizer" / "model.py").is_file()
    assert (backends / "tokenizer" / "tokenizer" / "pairs.py").is_file()
    assert (backends / "tensorrt").is_dir()


def test_ours_stands_in_where_there_is_no_native_one(tmp_path: Path) -> None:
    backends = lay_out_backends(nvidia_image(tmp_path / "image", native=False), tmp_path / "backends")
    assert (backends / "onnxruntime" / "model.py").is_file()


def test_port_0_is_a_free_one() -> None:
    port = resolve_port("grpc", "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", port)) as listener:
        assert listener.getsockname()[1] == port


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ServerStartError, match=f"--http-port is {port}: it must be from 0"):
        resolve_port("http", "127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServerStartError, match=r"grpc port 0 on 192\.0\.2\.1 cannot be bound"):
        resolve_port("grpc", "192.0.2.1", 0)


def test_equal_ports_are_refused(tiny_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(resolve_port("grpc", "127.0.0.1", 0))
    arguments = ["--grpc-port", port, "--http-port", port, "--metrics-port", "0"]
    assert main(["--model-repository", str(tiny_repository), *arguments]) == 1
    assert "they must differ" in capsys.readouterr().err


def test_the_command_ends_with_1_and_a_message_without_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model-repository", str(tmp_path / "nothing")]) == 1
    assert "no such model repository" in capsys.readouterr().err


def test_a_binary_that_cannot_run_is_said_so(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nvidia_image(tmp_path, native=False)
    image.binary.write_bytes(b"\x7fELF broken")
    monkeypatch.setenv("PATH", str(image.binary.parent))
    assert shutil.which("tritonserver")
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    assert main(["--model-repository", str(tiny_repository), *ports]) == 1
    assert "cannot be started" in capsys.readouterr().err


def test_a_grpc_client_in_this_process_does_not_end_the_child(tmp_path: Path) -> None:
    """A child that is forked dies with the client's poller, one time in thirty (docs/LOG.md)."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError):  # nobody is there, but the poller runs now
            channel.unary_unary("/nobody/there")(b"", timeout=5.0)
        children = [
            Child(["/bin/true"], environment=dict(os.environ), log_file=tmp_path / "log").wait(10.0) for _ in range(60)
        ]
    assert children == [0] * 60


def test_python_folders_with_a_module_called_model_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("module", "package/model", "neither/model", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "module" / "model.py").touch()
    (tmp_path / "package" / "model" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["module", str(tmp_path / "package"), "neither", "", "other"]))
    given = triton_environment(None)["PYTHONPATH"].split(os.pathsep)
    assert given[-2:] == [str(tmp_path / "neither"), str(tmp_path / "other")]
    assert not any(path.endswith(("module", "package")) for path in given)
    assert caplog.text.count("would hide our backends") == 2
    monkeypatch.delenv("PYTHONPATH")
    assert all(Path(path).is_absolute() for path in triton_environment(None)["PYTHONPATH"].split(os.pathsep))


def test_a_free_port_is_not_one_that_was_chosen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = iter([4001, 4001, 4002])
    monkeypatch.setattr(ports, "_bind", lambda *_: next(offered))
    chosen = resolve_port("grpc", "127.0.0.1", 0)
    assert resolve_port("http", "127.0.0.1", 0, taken=[chosen]) == 4002
